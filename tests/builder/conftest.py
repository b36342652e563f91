import asyncio
import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builder.orders import read_environment
from builder.outcome import Exit
from builder.pace import Pace
from builder.run import run
from tests.builder.standin import RUN, TOKEN, ControlPlane, serving
from tests.support.agents import Toolbox

PACE = Pace(connect=2.0, read=1.5, first=0.02, most=0.1, registry_patience=30.0, flush=1.0)

GO_MOD = "module example.com/agent\n\ngo 1.25\n"
MAIN = "package main\n\nfunc main() { println(1) }\n"


@pytest.fixture(scope="session")
def go(toolbox: Toolbox) -> str:
    return str(toolbox.go)


@pytest.fixture(scope="session")
def gocache(toolbox: Toolbox) -> Path:
    return toolbox.gocache


def packed(files: Mapping[str, str | bytes], *, executable: tuple[str, ...] = ()) -> bytes:
    """Return a gzipped tar of plain files."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name in executable else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with serving(ControlPlane(source=packed({"go.mod": GO_MOD, "main.go": MAIN}))) as state:
        yield state


@dataclass
class Bench:
    """Starts builders: in this process, where tests are about the build; as a process, where they are about it."""

    plane: ControlPlane
    go: str
    gocache: Path
    folder: Path
    pace: Pace = PACE
    made: int = 0
    terminated: asyncio.Event = field(default_factory=asyncio.Event)

    def environ(self, **more: str) -> dict[str, str]:
        self.made += 1
        work = self.folder / f"work{self.made}"
        work.mkdir()
        return {
            "SLIPWAY_URL": self.plane.url,
            "SLIPWAY_RUN_ID": RUN,
            "SLIPWAY_RUN_TOKEN": TOKEN,
            "SLIPWAY_RUN_DEADLINE": str(self.plane.deadline),
            "SLIPWAY_INSTANCE": "instance-1",
            "SLIPWAY_GO": self.go,
            "SLIPWAY_GOCACHE": str(self.gocache),
            "SLIPWAY_WORK": str(work),
            **more,
        }

    async def run(self, **more: str) -> Exit:
        return await run(read_environment(self.environ(**more)), self.terminated, self.pace)

    def start(self, **more: str) -> "subprocess.Popen[str]":
        root = Path(__file__).parents[2]
        env = {**self.environ(**more), "PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
        env |= {name: value for name, value in os.environ.items() if name.startswith("COV")}
        return subprocess.Popen(
            [sys.executable, "-m", "builder"],
            env=env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def reason(self) -> str | None:
        assert self.plane.completion is not None
        reason = self.plane.completion["reason"]
        assert reason is None or isinstance(reason, str)
        return reason

    def message(self) -> str:
        assert self.plane.completion is not None
        return str(self.plane.completion["message"])

    def send(self, files: Mapping[str, str | bytes]) -> None:
        self.plane.source = packed(files)


@pytest.fixture
def bench(plane: ControlPlane, go: str, gocache: Path, tmp_path: Path) -> Bench:
    return Bench(plane=plane, go=go, gocache=gocache, folder=tmp_path)
