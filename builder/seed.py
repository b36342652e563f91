"""``python -m builder.seed <cache folder>``: compile the standard library once, the way builds will ask for it.

A build whose ``SLIPWAY_GOCACHE`` starts from this folder then compiles only what is its own. ``SLIPWAY_GO`` names the
go command. Takes 15 s on two cores; safe to repeat.
"""

import subprocess
import sys
import tempfile
from os import environ
from pathlib import Path
from shutil import which

from builder.orders import Environment
from builder.toolchain import go_env


def seed(cache: Path, *, go: str, goarch: str = "amd64") -> None:
    """Fill the build cache for one architecture; CalledProcessError when the toolchain fails."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Environment(
            url="",
            run_id="",
            token="",
            deadline=0.0,
            instance="",
            hold=False,
            go=go,
            goroot=None,
            gocache=cache.absolute(),
            work=Path(folder),
            ca_file=None,
        )
        env = {**go_env(work, go=go), "GOARCH": goarch}
        subprocess.run([go, "build", "-trimpath", "std"], env=env, cwd=folder, check=True, timeout=1800)


if __name__ == "__main__":
    found = which(environ.get("SLIPWAY_GO") or "go")
    if found is None or len(sys.argv) < 2:
        sys.exit("usage: [SLIPWAY_GO=…] python -m builder.seed <cache folder> [<goarch> …]")
    for arch in sys.argv[2:] or ["amd64"]:
        seed(Path(sys.argv[1]), go=found, goarch=arch)
