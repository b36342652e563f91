"""The public API over HTTP: calls that are tried again, and streams that go on where they were cut off."""

import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import IO, Any

import httpx

from app import __version__
from app.client import sse
from app.client.config import PATIENCE, Target
from app.client.failed import Failed, Json
from app.client.problems import hopeless, refused, unreachable

TIMEOUT = httpx.Timeout(60, connect=5)
SILENCE = httpx.Timeout(45, connect=5)
"""A stream says something every 15 seconds."""
PAGE = 100
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


@dataclass
class Api:
    """One API. ``patience`` is in seconds; ``tell`` is told that something is tried again, and why."""

    target: Target
    patience: float = PATIENCE
    tell: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        url = httpx.URL(self.target.url)
        headers = {"User-Agent": f"slipway/{__version__}"}
        if self.target.key:
            headers["Authorization"] = f"Bearer {self.target.key}"
        # What is on this machine is not behind a proxy, and without TLS no certificates need be read.
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=not _is_loopback(url.host),
            verify=url.scheme == "https",
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Json | None = None,
        params: Json | None = None,
        file: IO[bytes] | None = None,
        patient: bool = True,
    ) -> Json:
        """Call it and return its JSON; Failed when it refuses, or when it does not answer for as long as we are patient.

        A POST goes under an ``Idempotency-Key``, so that it is carried out once however often it is sent. ``file`` is a body,
        sent from its beginning each time. ``patient`` False: a 503 is the answer to this call.
        """
        headers = {"Idempotency-Key": str(uuid.uuid4())} if method == "POST" else {}
        if file is not None:
            headers["Content-Type"] = "application/gzip"
        sent: Json = {"params": _given(params), "headers": headers} | ({"json": json} if json is not None else {})
        deadline = self.clock() + self.patience
        for attempt in itertools.count():
            pause = None
            try:
                if file is not None:
                    file.seek(0)
                answer = self._http.request(method, path, content=file, **sent)
            except httpx.TransportError as e:
                failed = self._unreached(e)
            else:
                if answer.is_success:
                    return self._read(answer)
                if method == "DELETE" and attempt and answer.status_code == 404:
                    return {}  # the first one did it, and its answer was lost
                failed = refused(answer)
                if not patient or not _may_pass(answer, failed):
                    raise failed
                pause = _retry_after(answer)
            self._pause(failed, attempt, deadline, pause)
        raise AssertionError

    def pages(self, path: str, limit: int, params: Json | None = None) -> list[Json]:
        """Return the first ``limit`` items of a list, however many pages they are."""
        found: list[Json] = []
        cursor = None
        while len(found) < limit:
            query = (params or {}) | {"limit": min(PAGE, limit - len(found)), "cursor": cursor}
            page = self.call("GET", path, params=query)
            found += page["items"]
            cursor = page.get("next_cursor")
            if cursor is None:
                break
        return found

    def follow(self, path: str, params: Json | None = None) -> Iterator[sse.Block]:
        """Yield what a stream says, until it says that this was all; where it breaks off it is gone on with."""
        last: str | None = None
        attempt, deadline = 0, self.clock() + self.patience
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            pause = None
            try:
                with self._http.stream("GET", path, params=_given(params), headers=headers, timeout=SILENCE) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        failed, pause = refused(answer), _retry_after(answer)
                        if not _may_pass(answer, failed):
                            raise failed
                    else:
                        for block in sse.blocks(answer.iter_bytes()):
                            attempt, deadline, last = 0, self.clock() + self.patience, block.id or last
                            if block.data is not None:
                                yield block
                            if block.event == "end":
                                return
                        failed = unreachable(self.target.url, "the stream broke off")
            except httpx.TransportError as e:
                failed = self._unreached(e)
            self._pause(failed, attempt, deadline, pause)
            attempt += 1

    def _unreached(self, error: httpx.TransportError) -> Failed:
        """Return what to say when we give up; raises it where trying again can't help."""
        failed = unreachable(self.target.url, error)
        if hopeless(error):
            raise failed
        return failed

    def _pause(self, failed: Failed, attempt: int, deadline: float, pause: float | None) -> None:
        """Wait before the next try, as long as the server says or longer each time; raises when that would be too long."""
        if pause is None:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311 - spreads clients
        if self.clock() + pause > deadline:
            raise failed
        self.tell(f"{failed.text}; trying again for up to {self.patience:.0f} s")
        self.sleep(pause)

    def _read(self, answer: httpx.Response) -> Json:
        if not answer.content:
            return {}
        try:
            found: Any = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise unreachable(self.target.url, "what answers there is no Slipway")
        return found


def _may_pass(answer: httpx.Response, failed: Failed) -> bool:
    return answer.status_code in _AGAIN or failed.problem.get("reason") == "idempotency_in_flight"


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _given(params: Json | None) -> Json:
    return {k: v for k, v in (params or {}).items() if v is not None}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
