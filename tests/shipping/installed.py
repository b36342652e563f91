"""The wheel, built and installed alone with its locked libraries: as the images have it, once per run."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import REPOSITORY

INSTALL_SECONDS = 600


@dataclass(frozen=True)
class Installed:
    """Folders of two environments: ``control`` has requirements/runtime.txt, ``local`` has requirements/local.txt."""

    wheel: Path
    control: Path
    local: Path

    def target(self, name: str | None) -> Path:
        """Return the environment that a target of the Dockerfile stands for; the last one is the default."""
        return {"control": self.control, "local": self.local}[name or "control"]


def install(folder: Path) -> Installed:
    """Build and install into ``folder``, or find what another process of the run has put there."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        control, local, done = folder / "control", folder / "local", folder / "done"
        if not done.exists():
            _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", REPOSITORY)
            wheel = next((folder / "dist").glob("slipway-*.whl"))
            _environment(control)
            _pip("install", "--require-hashes", "-r", REPOSITORY / "requirements/runtime.txt", into=control)
            _environment(local)
            # The second has all of the first, so pip brings only what is more.
            shutil.copytree(_site(control), _site(local), copy_function=os.link, dirs_exist_ok=True)
            _pip("install", "--require-hashes", "-r", REPOSITORY / "requirements/local.txt", into=local)
            for target in (control, local):
                _pip("install", "--no-deps", "--no-index", wheel, into=target)
            done.touch()
    return Installed(next((folder / "dist").glob("slipway-*.whl")), control, local)


def _environment(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=INSTALL_SECONDS)


def _site(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


def _pip(command: str, *words: str | Path, into: Path | None = None) -> None:
    where = ["--python", str(into / "bin/python")] if into else []
    options = ["--quiet", "--disable-pip-version-check", *(["--no-compile"] if into else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *where, command, *options, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"pip {command}: {done.stdout}{done.stderr}"
