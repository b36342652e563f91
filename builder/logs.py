"""The build's log on its way out: secrets taken out, long lines cut, numbered, sent in batches; and heartbeats.

One task does all the sending of lines, so that they keep their order and a batch whose answer was lost is sent again
under the same number.
"""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

from builder.control import Control, Refused, Unreachable
from builder.guard import Guard, Why
from builder.pace import Pace

CUT = " …[cut]"
HIDDEN = "[redacted]"
#: Anything shorter would hide ordinary words.
SHORTEST_SECRET = 6
BATCH_LINES, BATCH_BYTES = 500, 256 << 10
#: How long the first line of a batch waits for company, in seconds.
GATHER = 0.3


class Redactor:
    """Takes known secrets out of text, as they are and as they look inside a URL."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._secrets: list[str] = []
        self.add(*values)

    def add(self, *values: str) -> None:
        """Hide these from now on; values that are too short to tell from ordinary words are left."""
        forms = {form for v in values for form in (v, quote(v, safe=""), unquote(v)) if len(form) >= SHORTEST_SECRET}
        # The longest first, so that no part of one is left over by another.
        self._secrets = sorted({*self._secrets, *forms}, key=lambda s: (-len(s), s))

    @property
    def longest(self) -> int:
        """Length of the longest secret, in bytes of UTF-8."""
        return max((len(s.encode()) for s in self._secrets), default=0)

    def clean(self, text: str, *, partial: bool = False) -> str:
        """Return the text without secrets; ``partial`` says that it was cut, so that a secret may end it half."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        if partial:
            for secret in self._secrets:
                for length in range(min(len(secret) - 1, len(text)), 3, -1):
                    if text.endswith(secret[:length]):
                        return text[:-length] + HIDDEN
        return text


def cut(text: str, most: int, *, partial: bool = False) -> str:
    """Return at most ``most`` bytes of UTF-8 of it, the mark included when anything was left out."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= most and not partial:
        return raw.decode()
    return raw[: max(0, most - len(CUT.encode()))].decode("utf-8", "ignore") + CUT


class Log:
    """What the run has to say; ``line_bytes`` and ``most_bytes`` come with the orders."""

    def __init__(self, redactor: Redactor, *, line_bytes: int, most_bytes: int) -> None:
        self.redactor = redactor
        self.line_bytes = line_bytes
        self.stage = "fetch"
        self.fresh = asyncio.Event()
        self._left = most_bytes
        self._seq = 0
        self._waiting: deque[dict[str, object]] = deque()

    @property
    def pending(self) -> int:
        """How many lines have not been taken yet."""
        return len(self._waiting)

    def write(self, text: str, stream: str = "builder", *, partial: bool = False) -> None:
        """Add one line; ``partial`` when its rest was thrown away before it came here."""
        text = text.replace("\x00", "�").rstrip("\r\n")
        line = cut(self.redactor.clean(text, partial=partial), self.line_bytes, partial=partial)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        if self._left <= 0:
            return
        self._left -= len(line.encode())
        if self._left <= 0:
            line, stream = "The log is full; what follows is not kept.", "builder"
        self._waiting.append({"t": round(time.time(), 3), "s": stream, "m": line})
        self.fresh.set()

    def batch(self) -> tuple[int, list[dict[str, object]]]:
        """Return the number of the first waiting line and as many lines as go into one call."""
        lines: list[dict[str, object]] = []
        size = 0
        for line in self._waiting:
            size += len(str(line["m"]).encode())
            if lines and (size > BATCH_BYTES or len(lines) >= BATCH_LINES):
                break
            lines.append(line)
        return self._seq, lines

    def taken(self, count: int) -> None:
        """Forget the first ``count`` lines: the control plane has them."""
        self.drop(count)
        self._seq += count

    def drop(self, count: int) -> None:
        """Forget the first ``count`` lines without their having been taken."""
        for _ in range(count):
            self._waiting.popleft()
        if not self._waiting:
            self.fresh.clear()


async def ship(log: Log, control: Control, guard: Guard) -> None:
    """Send lines as they come, until canceled; stops the guard when the control plane wants no more."""
    with _obey(guard):
        while True:
            await log.fresh.wait()
            await asyncio.sleep(GATHER)
            await _send(log, control)


async def beat(log: Log, control: Control, guard: Guard, every: float) -> None:
    """Send a heartbeat each ``every`` seconds, until canceled; stops the guard when told to.

    Logs don't stand in for heartbeats here: only the answer to a heartbeat says that the build was canceled.
    """
    with _obey(guard):
        while True:
            await asyncio.sleep(every)
            canceled, deadline = await control.heartbeat(log.stage)
            if canceled:
                guard.stop(Why.CANCELED)
                return
            if deadline != guard.deadline:
                control.deadline = deadline
                guard.move_deadline(deadline)


@contextlib.contextmanager
def _obey(guard: Guard) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        guard.stop(why_refused(error))
    except Unreachable:
        guard.stop(Why.DEADLINE)


async def flush(log: Log, control: Control, pace: Pace) -> None:
    """Send what is left, for a bounded time: a log that nobody takes must not hold up the report."""
    with contextlib.suppress(TimeoutError, Refused, Unreachable):
        async with asyncio.timeout(pace.flush):
            while log.pending:
                await _send(log, control)


def why_refused(error: Refused) -> Why:
    """Return what a refusal means for the run: 409 another instance has it, 410 it is over, else we are not known."""
    return {409: Why.TAKEN, 410: Why.CANCELED}.get(error.status, Why.REFUSED)


async def _send(log: Log, control: Control) -> None:
    seq, lines = log.batch()
    try:
        await control.log(seq, lines)
    except Refused as error:
        if error.status not in {400, 413, 422}:
            raise
        # A batch that can't be taken is not worth a build. Its numbers go to the lines that follow: no gap.
        log.drop(len(lines))
    else:
        log.taken(len(lines))
