"""The command line as its callers have it: in this process on a thread, or as a process; and a server that does as it is told."""

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from app.cli import app
from app.models import Build
from tests.support.world import World

COMMAND = (sys.executable, "-P", "-m", "app.cli")
OURS = ("SLIPWAY_", "DATABASE_URL", "XDG_CONFIG_HOME", "NO_COLOR", "FORCE_COLOR")


def environment(url: str, key: str, home: Path) -> dict[str, str]:
    """Return the environment of a command whose caller has nothing else set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    return env | {"SLIPWAY_URL": url, "SLIPWAY_API_KEY": key, "XDG_CONFIG_HOME": str(home)}


@dataclass
class Shell:
    """Runs commands in this process, one at a time, beside whatever the test does meanwhile."""

    url: str
    key: str
    home: Path
    set: dict[str, str] = field(default_factory=dict)
    under_way: "list[asyncio.Future[Result]]" = field(default_factory=list)

    def run(self, *words: str | Path, stdin: str | None = None) -> Result:
        env: dict[str, str | None] = {k: None for k in os.environ if k.startswith(OURS)}
        env |= environment(self.url, self.key, self.home) | self.set
        return CliRunner().invoke(app, [str(w) for w in words], env=env, input=stdin)

    async def __call__(self, *words: str | Path, code: int = 0, stdin: str | None = None) -> Result:
        """Run it and return what it said; AssertionError on another exit code."""
        running = asyncio.ensure_future(asyncio.to_thread(self.run, *words, stdin=stdin))
        self.under_way.append(running)
        running.add_done_callback(self.under_way.remove)
        result = await running
        assert result.exit_code == code, f"{words}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    async def json(self, *words: str | Path, code: int = 0) -> Any:
        """Run it with ``--json`` and return the document."""
        return json.loads((await self(*words, "--json", code=code)).stdout)

    async def leave(self, here: World) -> None:
        """End the builds that commands still follow, as they do in a test that failed: nothing else ends their threads."""
        while left := tuple(self.under_way):
            for build in await here.rows(Build):
                await here.http.post(f"/v1/builds/{build.id}/cancel")  # refused where it has ended
            await here.jobs(strict=False)
            await asyncio.wait(left, timeout=0.02)


async def beside(here: World, command: Awaitable[Any]) -> Any:
    """Run jobs as they come until a command has ended."""
    task = asyncio.ensure_future(command)
    while not task.done():
        await here.jobs()
        await asyncio.wait([task], timeout=0.02)
    return task.result()


@dataclass
class Said:
    """One answer: a status, headers and a body; ``cut`` ends the connection in the middle of a longer one."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def problem(status: int, reason: str, **more: object) -> Said:
    """Return a refusal as the API has them."""
    body = {"reason": reason, "detail": "So it is.", "status": status, **more}
    return Said(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})


@dataclass
class Scripted:
    """A server with a list of answers, and what it was asked."""

    url: str
    answers: list[Said]
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def header(self, name: str) -> list[str | None]:
        return [headers.get(name.lower()) for _, _, headers, _ in self.asked]


@contextlib.contextmanager
def scripted(*answers: Said) -> Iterator[Scripted]:
    """Serve these answers, each once and in order, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            it.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            said = it.answers.pop(0)
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) + said.cut))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names are the library's

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        it = Scripted(f"http://127.0.0.1:{server.server_port}", list(answers))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield it
        finally:
            server.shutdown()
            thread.join()
