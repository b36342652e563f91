"""Run what the shipping files say as processes of this machine, with their environment and their health checks.

Docker and Fly give each part a network, a disk and neighbours with names. Here ``Stand`` puts what is there in their place:
a free port for each fixed one, a folder for the volume, the test's database and registry for the neighbours.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import Child, assert_gone, descendants, running, spawned
from tests.support.waiting import eventually_sync, free_port

HEALTHY_SECONDS = 60.0
CHECK_SECONDS = 20.0
LOOK_SECONDS = 0.2
"""Between two checks, each of which is a process that takes from the part that is starting."""
HOME = "/var/lib/slipway"

Json = dict[str, Any]


@dataclass
class Stand:
    """What stands for the world of the files: ``texts`` maps what they say to what is here."""

    folder: Path
    texts: dict[str, str]
    port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)

    def here(self, text: str, part: str) -> str:
        """Return a text of the files as it has to be on this machine, for one part."""
        for there, here in self.texts.items():
            text = text.replace(there, here)
        text = re.sub(r"(?<=127\.0\.0\.1:)8080\b", str(self.port), text)
        text = re.sub(r"(?<=127\.0\.0\.1:)8081\b", str(self.gateway_port), text)
        return text.replace(HOME, str(self.folder / part))

    def environment(self, given: Mapping[str, str], part: str, venv: Path) -> dict[str, str]:
        """Return a part's whole environment: the given one and, for want of networks of their own, the ports."""
        (self.folder / part).mkdir(exist_ok=True)
        env = {name: self.here(str(value), part) for name, value in given.items()}
        env |= {"SLIPWAY_PORT": str(self.port), "SLIPWAY_GATEWAY_PORT": str(self.gateway_port)}
        return env | {"PATH": f"{venv / 'bin'}:/usr/bin:/bin"}


@dataclass
class Part:
    """One running part."""

    name: str
    child: Child
    env: dict[str, str]
    health: list[str]
    grace: float

    def healthy(self) -> bool:
        """Run the part's health check as its container would; AssertionError when the part has ended."""
        assert self.child.process.poll() is None, f"{self.name} ended:\n{''.join(self.child.output)}"
        return check(self.health, self.env) == 0

    def until_healthy(self) -> None:
        eventually_sync(self.healthy, HEALTHY_SECONDS, every=LOOK_SECONDS)

    def end(self) -> None:
        """Send SIGTERM: the part has to end by itself in its time, with 0, and leave no process."""
        below = descendants(self.child.pid)
        self.child.signal(signal.SIGTERM)
        try:
            code = self.child.wait(self.grace)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, f"{self.name} ended with {code}:\n{''.join(self.child.output)}"
        assert_gone(below, 5)


def check(command: list[str], env: Mapping[str, str]) -> int:
    """Run a health check and return its exit code."""
    done = subprocess.run(
        resolve(command, env), env=env, cwd="/", capture_output=True, timeout=CHECK_SECONDS, check=False
    )
    return done.returncode


def resolve(command: list[str], env: Mapping[str, str]) -> list[str]:
    """Find the command's program on the PATH of its own environment."""
    found = [Path(folder) / command[0] for folder in env["PATH"].split(":")]
    return [str(next(path for path in found if os.access(path, os.X_OK))), *command[1:]]


@contextlib.contextmanager
def part(name: str, command: list[str], env: dict[str, str], health: list[str], grace: float) -> Iterator[Part]:
    """Run one part for the length of the block."""
    with spawned(*resolve(command, env), env=env, cwd=Path("/")) as child:
        yield Part(name, child, env, health, grace)


class Caller:
    """Somebody outside: the API with its key, and services through the gateway."""

    def __init__(self, stand: Stand, key: str) -> None:
        self.stand, self.http = stand, httpx.Client(timeout=60, trust_env=False)
        self._headers = {"Authorization": f"Bearer {key}"}

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def api(self, method: str, path: str, *, status: int = 200, **options: Any) -> Json:
        answer = self.http.request(
            method, f"http://127.0.0.1:{self.stand.port}{path}", headers=self._headers, **options
        )
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def ask(self, name: str) -> Json:
        host = f"{name}.localhost:{self.stand.gateway_port}"
        answer = self.http.get(f"http://127.0.0.1:{self.stand.gateway_port}/", headers={"Host": host})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def built(self, build: Json, seconds: float = 120.0) -> Json:
        """Wait for the end of a build and return it; AssertionError when it has failed."""
        seen: list[Json] = []

        def ended() -> bool:
            seen[:] = [self.api("GET", f"/v1/builds/{build['id']}")]
            return seen[0]["status"] in {"succeeded", "failed", "canceled"}

        eventually_sync(ended, seconds)
        assert seen[0]["status"] == "succeeded", seen[0]["failure"]
        return seen[0]

    def until(self, name: str, status: str, seconds: float = 30.0) -> Json:
        """Wait until a service has this status."""
        seen: list[Json] = []

        def there() -> bool:
            seen[:] = [self.api("GET", f"/v1/services/{name}")]
            assert seen[0]["status"] == status
            return True

        eventually_sync(there, seconds)
        return seen[0]


def below(parts: Part, marker: str) -> list[int]:
    """Return the processes below a part whose command line holds ``marker``."""
    found = []
    for process in descendants(parts.child.pid):
        with contextlib.suppress(Exception):
            if running(process) and marker in process.cmdline():
                found.append(process.pid)
    return found
