"""A whole ``slipway serve`` as a child process, seen from outside: started, watched, and stopped for good."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 120.0
STOP_SECONDS = 45.0
TAIL_LINES = 40
KEPT = (
    "SLIPWAY_HOME", "SLIPWAY_SECRET_KEYS", "SLIPWAY_SANDBOX", "SLIPWAY_LOCAL__", "SLIPWAY_LOG_", "SLIPWAY_GO",
    "SLIPWAY_CONTRACTS",
)  # fmt: skip
"""What the demo takes over from its own environment. Anything else could lead it to somebody's database or registry."""
SPEED = 60
"""A stand-in's idle minutes are seconds here."""


_SERVE = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {signal.SIGTERM:d})
if os.getppid() == int(sys.argv.pop(1)):
    from app.cli import main
    main()
"""
"""What the child runs: PR_SET_PDEATHSIG (prctl(2)) ends it with the demo, even one that is killed."""


@dataclass
class NotSeen(Exception):
    """Something that the demo is there to show was not to be seen."""

    expected: str
    seen: str

    def __str__(self) -> str:
        return f"expected {self.expected}; saw {self.seen}"


@dataclass(frozen=True)
class Server:
    """The running child: where it listens, and the key that opens its API."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str
    api_key: str
    stand_ins: Mapping[str, str]
    """Where the imitated platforms are, by name."""

    def instance(self, answer: Mapping[str, object]) -> list[psutil.Process]:
        """Return the processes of the instance that gave ``answer``: those below the server that carry its names."""
        found: dict[int, psutil.Process] = {}
        for process in descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if _carries(process, str(answer["hostname"]), str(answer["release"])):
                    found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return [p for p in found.values() if alive(p)]


def _carries(process: psutil.Process, hostname: str, release: str) -> bool:
    # The sandbox is given its host name as a word. Without a sandbox there is only the environment, which is readable then.
    return hostname in process.cmdline() or process.environ().get("SLIPWAY_RELEASE") == release


def alive(process: psutil.Process) -> bool:
    """Tell whether it still does anything; a zombie doesn't."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment(home: Path, api_key: str, outside: Mapping[str, str], imitate: Sequence[str] = ()) -> dict[str, str]:
    """Return the child's environment: nothing of the caller's set-up but what is in ``KEPT``, ports of its own choice."""
    own = {k: v for k, v in outside.items() if not k.startswith("SLIPWAY_") and k not in {"DATABASE_URL", "PORT"}}
    own |= {k: v for k, v in outside.items() if k.startswith(KEPT)}
    if imitate:
        own |= {"SLIPWAY_IMITATE": ",".join(imitate), "SLIPWAY_IMITATE_SPEED": str(SPEED)}
    return own | {
        "SLIPWAY_HOME": str(home),
        "SLIPWAY_API_KEY": api_key,
        "SLIPWAY_PORT": "0",
        "SLIPWAY_GATEWAY_PORT": "0",
        "SLIPWAY_DRAIN_SECONDS": "1",
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def running(
    log: Path, home: Path, imitate: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run ``slipway serve`` for the length of the block; NotSeen when it does not come up or does not end cleanly.

    ``imitate`` are the platforms that it runs stand-ins of. ``env``, where given, is its whole environment but for the key.
    """
    api_key = os.environ.get("SLIPWAY_API_KEY") or f"slp_{secrets.token_urlsafe(32)}"
    with log.open("wb") as out:
        # -P: a folder named `app` where the user happens to stand is not ours.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(os.getpid()), "serve"],
            env={**env, "SLIPWAY_API_KEY": api_key} if env else environment(home, api_key, os.environ, imitate),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on, once
        )
    try:
        found = _addresses(process, log, {"API", "services", *imitate})
        yield Server(process, log, found["API"], api_key, {name: found[name] for name in imitate})
    except BaseException:
        with contextlib.suppress(NotSeen):
            stop(process)
        raise
    else:
        stop(process)


def _addresses(process: subprocess.Popen[bytes], log: Path, wanted: set[str]) -> dict[str, str]:
    """Wait for what ``serve`` says once it is up, and read these addresses out of it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        words = [line.split() for line in log.read_text(errors="replace").splitlines()]
        found = {w[0]: w[1] for w in words if len(w) > 1 and w[0] in wanted}
        if len(found) == len(wanted):
            return found
        if process.poll() is not None:
            raise NotSeen("slipway serve to come up", f"its end with exit code {process.returncode}")
        time.sleep(0.05)
    raise NotSeen(f"slipway serve to come up within {START_SECONDS:.0f} s", "it is still starting")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the child and everything below it: SIGTERM, then, past its time, SIGKILL and NotSeen."""
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
        code = None
    _, left = psutil.wait_procs(below, timeout=0 if code is None else 5)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=5)
    if code is None:
        raise NotSeen(f"slipway serve to end within {STOP_SECONDS:.0f} s of SIGTERM", "it had to be killed")
    if code != 0 or left:
        names = ", ".join(f"{p.pid}" for p in left) or "none"
        raise NotSeen("slipway serve to end cleanly", f"exit code {code}, processes left over: {names}")


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living processes below ``pid``."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """Give a SLIPWAY_HOME, the user's own if it is set; a fresh one is removed at the end."""
    if own := os.environ.get("SLIPWAY_HOME"):
        yield Path(own).expanduser().absolute()
        return
    with tempfile.TemporaryDirectory(prefix="slipway-demo-") as folder:
        yield Path(folder) / "home"


def tail(log: Path) -> str:
    """Return the last lines of the child's log."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
