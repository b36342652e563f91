"""A program whose start is canceled ends with all that it started, whoever starts it."""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

import app
from app import children
from app.embedded import cluster
from app.imitations import programs
from tests.support.processes import running
from tests.support.waiting import eventually

Start = Callable[[list[str], Path], Awaitable[object]]
STARTS: dict[str, Start] = {
    "children": lambda command, cwd: children.start(*command, cwd=cwd),
    "cluster": lambda command, _: cluster.run(command),
    "programs": lambda command, cwd: programs.start(command, {"PATH": os.defpath}, cwd, deque()),
}


@pytest.mark.parametrize("name", STARTS)
async def test_who_is_canceled_while_it_starts_leaves_nothing(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    script = f"sleep 600 & echo $! > {tmp_path}/started; wait"
    start = asyncio.ensure_future(STARTS[name](["/bin/sh", "-c", script], tmp_path))
    for _ in range(3):  # it has forked, and nobody has been told
        await asyncio.sleep(0)
    sleeping = psutil.Process(int((tmp_path / "started").read_text()))
    try:
        assert not start.done()
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(30):
                await start
        await eventually(lambda: not running(sleeping), 10)
    finally:
        if running(sleeping):
            sleeping.kill()


async def test_a_program_that_can_not_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await children.start(tmp_path / "nothing")


def test_nobody_starts_programs_in_another_way() -> None:
    found = {p.name for p in Path(app.__file__).parent.rglob("*.py") if "create_subprocess" in p.read_text()}
    assert found == {"children.py"}
