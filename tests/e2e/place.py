"""A whole ``slipway serve`` as a child process on a home of its own: started, killed, started again, looked at from outside."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.support import waiting
from tests.support.processes import Child
from tests.support.waiting import free_port

KEY = "slp_of_these_tests_and_long_enough"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
CALL_SECONDS = 30.0
BUILD_SECONDS = 90.0
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
ENDED = {"succeeded", "failed", "canceled"}
_INSTANCE = re.compile(r"sli-[0-9a-f]{12}-[0-9a-f]{16}")

Json = dict[str, Any]
T = TypeVar("T")


def eventually(look: Callable[[], T], timeout: float = WAIT_SECONDS) -> T:
    """Wait as elsewhere, but look less often: each look costs the server and its processes something."""
    return waiting.eventually_sync(look, timeout, every=POLL_SECONDS)


class Place:
    """A home with fixed ports, and what runs there. ``set`` are settings of every start, by the variable's name."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.set = home, settings
        self.port, self.gateway_port = free_port(), free_port()
        self.fault = home / "local/fault"  # where also the thread that starts sandboxes can see it
        self.child: Child | None = None
        self.http = httpx.Client(timeout=CALL_SECONDS, trust_env=False)
        self.outputs: list[str] = []

    # ------------------------------------------------------------------------------------------------ its life

    def start(self, *, up: bool = True, **settings: str) -> None:
        """Start it and wait until it says that it is up; with ``up=False`` don't, since it will die before."""
        assert self.child is None, "it runs already"
        command = [sys.executable, "-P", "-m", "app.cli", "serve"]
        self.child = Child(command, self._environment(settings), cwd=self.home)
        if up:
            try:
                self.child.line("  home", START_SECONDS)
            except AssertionError:
                self._leave()
                raise

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        ours = ("SLIPWAY_", "GO", "DATABASE_URL", "PORT", "PG")
        env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        env |= {"SLIPWAY_HOME": str(self.home), "SLIPWAY_API_KEY": KEY, "PYTHONUNBUFFERED": "1"}
        env |= {"SLIPWAY_PORT": str(self.port), "SLIPWAY_GATEWAY_PORT": str(self.gateway_port)}
        env |= {"SLIPWAY_FAULT_POINT": f"@{self.fault}", "SLIPWAY_LOG_FORMAT": "json"}
        return env | self.set | settings

    def kill(self) -> None:
        """kill -9 of the one process."""
        assert self.child is not None
        self.child.process.kill()
        self.died()

    def died(self, timeout: float = BUILD_SECONDS) -> None:
        """Wait until it has died by SIGKILL."""
        assert self.child is not None
        code = self.child.wait(timeout)
        self._leave()
        assert code == -signal.SIGKILL, f"it ended with {code}:\n{self.output[-5000:]}"

    def stop(self) -> None:
        """SIGTERM: it has to end by itself with 0, and leave no process."""
        assert self.child is not None
        self.child.signal(signal.SIGTERM)
        code = self.child.wait(STOP_SECONDS)
        self._leave()
        assert code == 0, f"it ended with {code}:\n{self.output[-5000:]}"
        assert self.processes() == []

    def _leave(self) -> None:
        assert self.child is not None
        self.child.close()
        self.outputs.append("".join(self.child.output))
        self.child = None

    def close(self) -> None:
        """End whatever is still there and remove it."""
        if self.child is not None:
            self.child.close()
            self._leave()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.http.close()
        eventually(lambda: self.processes() == [])
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def output(self) -> str:
        """All it has ever written."""
        return "".join([*self.outputs, *(self.child.output if self.child else [])])

    # ------------------------------------------------------------------------------------------------ from outside

    def api(self, method: str, path: str, *, status: int | None = None, **options: Any) -> Json:
        """Call the API; AssertionError on another status than ``status``, by default on anything but a 2xx."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
        answer = self.http.request(method, url, headers=headers, **options)
        good = answer.is_success if status is None else answer.status_code == status
        assert good, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def send(
        self,
        files: dict[str, str],
        service: str | None = None,
        /,
        *,
        builder: Json | None = None,
        cache: bool = False,
        **config: Any,
    ) -> str:
        """Send a build of these files, for a service with this config if it has a name; returns its id.

        It gets a builder, although tests of one home build the same files, unless ``cache`` is true.
        """
        body: Json = {
            "source": {"kind": "files", "files": files},
            "build": {"cache": cache},
            "builder": {"cpus": 1, "memory_mb": 1024} | (builder or {}),
        }
        body |= {"service": {"name": service, **config}} if service else {}
        return str(self.api("POST", "/v1/builds", json=body)["id"])

    def ended(self, build: str, status: str = "succeeded", timeout: float = BUILD_SECONDS) -> Json:
        """Wait for the end of a build, which must be this one; returns the build."""
        seen: list[Json] = []

        def over() -> bool:
            seen[:] = [self.api("GET", f"/v1/builds/{build}")]
            return seen[0]["status"] in ENDED

        eventually(over, timeout)
        assert seen[0]["status"] == status, (seen[0]["status"], seen[0]["failure"], self.log(build))
        return seen[0]

    def build(self, files: dict[str, str], service: str | None = None, /, **config: Any) -> Json:
        """Send a build and wait until it has succeeded."""
        return self.ended(self.send(files, service, **config))

    def log(self, build: str) -> str:
        """Return what the builders of a build wrote."""
        return "\n".join(line["text"] for line in self.api("GET", f"/v1/builds/{build}/logs")["items"])

    def events(self, build: str) -> list[str]:
        """Return the kinds of all events of a build, oldest first."""
        return [e["kind"] for e in self.api("GET", f"/v1/builds/{build}/events", params={"limit": 200})["items"]]

    def service(self, name: str) -> Json:
        return self.api("GET", f"/v1/services/{name}")

    def until(self, name: str, status: str, timeout: float = WAIT_SECONDS) -> Json:
        """Wait until a service has this status; returns the service."""
        seen: list[Json] = []

        def there() -> bool:
            seen[:] = [self.service(name)]
            assert seen[0]["status"] == status, seen[0]
            return True

        eventually(there, timeout)
        return seen[0]

    def ask(self, name: str, path: str = "/") -> Json:
        """GET a path of a service through the gateway; AssertionError when the answer isn't 200."""
        answer = self.http.get(f"http://127.0.0.1:{self.gateway_port}{path}", headers={"Host": self.host(name)})
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return dict(answer.json())

    def host(self, name: str) -> str:
        return f"{name}.localhost:{self.gateway_port}"

    # ------------------------------------------------------------------------------------------------ what is there

    def processes(self) -> list[int]:
        """Return every process that names this home or is marked as started from it, the server itself excluded."""
        own = {os.getpid(), self.child.pid if self.child else 0}
        marks = (os.fsencode(self.home), *self._prefix())
        return [p for p, words in _words() if p not in own and any(mark in words for mark in marks)]

    def instances(self) -> set[str]:
        """Return the markers of the sandboxes that run here, builders' and services'."""
        marks = self._prefix()
        return {
            found for _, words in _words() if any(m in words for m in marks)
            for found in _INSTANCE.findall(words.decode(errors="replace")) if os.fsencode(found[:-17]) in marks
        }  # fmt: skip

    def _prefix(self) -> tuple[bytes, ...]:
        # Each home has a prefix of its own, which all its sandboxes and programs carry in words or environment.
        file = self.home / "local/processes/prefix"
        return tuple(re.findall(rb"sli-[0-9a-f]{12}", file.read_bytes())) if file.exists() else ()

    def kill_instance(self, marker: str) -> None:
        """kill -9 of every process of one sandbox, and see them gone."""
        mark = os.fsencode(marker)

        def none_left() -> bool:
            left = [pid for pid, words in _words() if mark in words]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return left == []

        eventually(none_left)

    def settled(self, *names: str, timeout: float = WAIT_SECONDS) -> None:
        """Wait until what runs here are the instances of these services, of those that are awake, and nothing else."""

        def only_ours() -> bool:
            expected = {self.service(name)["instance_id"] for name in names} - {None}
            found = self.instances()
            assert found == expected, f"running: {found}, by the rows: {expected}"
            return True

        eventually(only_ours, timeout)


def _words() -> Iterator[tuple[int, bytes]]:
    """Give each process with its command line and environment, as far as they can be read."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = b""
            for name in ("cmdline", "environ"):
                try:
                    words += (entry / name).read_bytes() + b"\0"
                except OSError:
                    continue
            yield int(entry.name), words


@contextmanager
def place(home: Path, **settings: str) -> Iterator[Place]:
    """Give a place; at the end of the block nothing of it is left."""
    it = Place(home, **settings)
    try:
        yield it
    finally:
        it.close()
