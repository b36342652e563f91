"""The wheel, built and installed alone with its locked libraries: as the images have it, once per run.

Libraries that our own environment has in the locked version are linked from there, where pip has checked them against the
same hashes (test_files.py sees to that); pip brings the others, and refuses what is not complete.
"""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.agents import link
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
            for target, name in ((control, "runtime"), (local, "local")):
                requirements = REPOSITORY / f"requirements/{name}.txt"
                _environment(target, requirements)
                _pip("install", "--require-hashes", "-r", requirements, into=target)
                _pip("install", "--no-deps", "--no-index", wheel, into=target)
            done.touch()
    return Installed(next((folder / "dist").glob("slipway-*.whl")), control, local)


def locked(requirements: Path) -> Iterator[tuple[Requirement, frozenset[str]]]:
    """Give what a locked file names, each with its hashes."""
    for block in requirements.read_text().replace(" \\\n", " ").splitlines():
        if block[:1] not in {"", " ", "#"}:
            named, *hashes = block.split(" --hash=")
            yield Requirement(named), frozenset(word.strip() for word in hashes)


def _environment(folder: Path, requirements: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=INSTALL_SECONDS)
    site = next(folder.glob("lib/python3*/site-packages"))
    ours = {d.metadata["Name"].lower().replace("_", "-"): d for d in metadata.distributions()}
    for requirement, _ in locked(requirements):
        found = ours.get(requirement.name)
        if found is not None and requirement.specifier.contains(found.version, prereleases=True):
            for file in found.files or ():
                if ".." not in file.parts:  # commands begin with the path of our own Python
                    (site / file).parent.mkdir(parents=True, exist_ok=True)
                    link(str(file.locate()), str(site / file))


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
