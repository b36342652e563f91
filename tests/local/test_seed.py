"""The seed is made once, and whoever waits for it is told."""

import asyncio
import fcntl
from dataclasses import replace
from pathlib import Path

from app.settings import Settings
from tests.local.support import Machine, builder_spec
from tests.support.agents import Toolbox
from tests.support.waiting import eventually


async def test_builds_that_wait_for_the_seed_are_told_and_others_are_not(tmp_path: Path, toolbox: Toolbox) -> None:
    """Another process of the same home is making it: we wait for its lock."""
    machine = Machine(Settings(home=toolbox.home(tmp_path / "home")))
    seeds = machine.settings.home / "local/seed"
    ready = next(seeds.glob("seed-*"))
    aside = ready.rename(seeds / "aside")
    said: list[str] = []

    async def tell(words: str) -> None:
        said.append(words)

    async def two_told() -> bool:
        return len(said) == 2

    await machine.start()
    try:
        launch = machine.platform.builders.launch
        with (seeds / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            launches = [asyncio.create_task(launch(replace(builder_spec(), progress=tell))) for _ in range(2)]
            await eventually(two_told)
            aside.rename(ready)
        await asyncio.gather(*launches)
        assert all("standard library of go1." in words for words in said)
        await launch(replace(builder_spec(), progress=tell))
        assert len(said) == 2
    finally:
        await machine.close()
