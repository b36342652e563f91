"""A build's log as pages and as a stream.

Several builders may have worked on a build, and an earlier one's last lines may come after a later one's first. So a position
says for each of them how many lines were seen: ``1.120,2.30``. Within one, lines are numbered in the order they are written.
"""

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import sse
from app.api.follower import Topic
from app.api.hub import Hub
from app.api.schemas import BuildEnd, LogLineOut, LogPage
from app.lifecycle import is_terminal
from app.models import Build, Run, RunLog

READ = 1000
"""Lines read at a time by a stream."""
_FORM = re.compile(r"[0-9]{1,9}\.[0-9]{1,18}(,[0-9]{1,9}\.[0-9]{1,18}){0,31}")


class Seen(NamedTuple):
    """How many lines were seen of each attempt."""

    counts: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{a}.{n}" for a, n in self.counts) or "0.0"

    def of(self, attempt: int) -> int:
        """Return the number of the next line of an attempt."""
        return dict(self.counts).get(attempt, 0)

    def to(self, attempt: int, count: int) -> "Seen":
        """Return the position after more lines of an attempt."""
        return Seen(tuple(sorted((dict(self.counts) | {attempt: count}).items())))


def parse(text: str) -> Seen:
    """Read a position back; ValueError when it isn't one."""
    if not _FORM.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not the position of a line")
    pairs = (pair.partition(".") for pair in text.split(","))
    return Seen(tuple(sorted({int(a): int(n) for a, _, n in pairs if int(a)}.items())))


class Found(NamedTuple):
    """Some lines, each with the position after it; how far was looked, whether there is more, and how the build ended."""

    lines: list[tuple[LogLineOut, Seen]]
    upto: Seen
    more: bool
    ended: BuildEnd | None = None


async def look(session: AsyncSession, build_id: str, after: Seen, limit: int, since: datetime | None) -> Found:
    """Read the next lines; of one batch, which is what a builder sends at a time, all are read at once."""
    status = (await session.execute(select(Build.status).where(Build.id == build_id))).scalar_one_or_none()
    runs = select(Run.id, Run.attempt, Run.log_next).where(Run.build_id == build_id).order_by(Run.attempt)
    lines: list[tuple[LogLineOut, Seen]] = []
    for run_id, attempt, log_next in (await session.execute(runs)).all():
        seen = after.of(attempt)
        if seen >= log_next:
            continue
        before = select(func.max(RunLog.number)).where(RunLog.run_id == run_id, RunLog.number <= seen).scalar_subquery()
        batches = select(RunLog.number, RunLog.lines).where(RunLog.run_id == run_id)
        batches = batches.where(RunLog.number >= func.coalesce(before, 0)).order_by(RunLog.number)
        async for first, batch in await session.stream(batches):
            for number, line in enumerate(batch[max(0, seen - first) :], max(seen, first)):
                if len(lines) == limit:
                    return Found(lines, after, more=True)
                after = after.to(attempt, number + 1)
                if since is None or line["t"] >= since.timestamp():
                    lines.append((_shown(run_id, number, line), after))
    ended = BuildEnd(build_id=build_id, status=status) if status is not None and is_terminal(status) else None
    return Found(lines, after, more=False, ended=ended)


def _shown(run_id: str, number: int, line: dict[str, Any]) -> LogLineOut:
    at = datetime.fromtimestamp(line["t"], UTC)
    return LogLineOut(at=at, stream=line["s"], text=line["m"], run_id=run_id, number=number)


async def page(session: AsyncSession, build_id: str, after: Seen, limit: int, since: datetime | None) -> LogPage:
    """Return one page, oldest first."""
    found = await look(session, build_id, after, limit, since)
    return LogPage(
        items=[line for line, _ in found.lines],
        next_cursor=str(found.upto) if found.more else None,
        after=str(found.upto),
        ended=found.ended is not None,
    )


async def stream(hub: Hub, build_id: str, after: Seen, since: datetime | None, key_id: str) -> sse.Blocks:
    """Yield blocks from a position on: what is there, then what comes, until the build has ended."""
    at, pulse = after, sse.Pulse(hub.keep_alive_seconds)

    async def read() -> tuple[Found, bytes]:
        async with hub.context.sessions() as session:
            found = await look(session, build_id, at, READ, since)
        return found, b"".join(sse.item(line, position) for line, position in found.lines)

    yield sse.opening(at)
    with hub.follow(key_id, Topic("log", build_id), Topic("build", build_id)) as follower:
        while not follower.over:
            follower.take()  # that something happened is all that matters here
            # Many read one log, and all at the same place; but who was woken must not be given what was read before.
            found, blocks = await hub.shared((build_id, at, since), read)
            if blocks:
                yield pulse.of(blocks)
            at = found.upto
            if found.ended:
                yield sse.end(found.ended, at)
                return
            if found.more:
                continue
            while not await follower.wait(pulse.left()):
                yield pulse.of(sse.keep_alive(at))
