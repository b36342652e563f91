"""The real builder program on the local platform: from source to a pushed image, compiled without the network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.platforms import local
from app.platforms.base import Phase, Ref
from app.settings import Settings
from tests.builder.conftest import GO_MOD, MAIN, packed
from tests.builder.standin import RUN, TOKEN, ControlPlane, serving
from tests.local.support import builder_spec
from tests.support.agents import KEY, Toolbox


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with serving(ControlPlane(source=packed({"go.mod": GO_MOD, "main.go": MAIN}))) as state:
        yield state


async def test_source_becomes_an_image(plane: ControlPlane, toolbox: Toolbox, tmp_path: Path) -> None:
    home = toolbox.home(tmp_path / "home", seeded=True)
    async with local.create(Settings(home=home), KEY) as platform:
        orders = {"SLIPWAY_URL": plane.url, "SLIPWAY_RUN_ID": RUN, "SLIPWAY_RUN_TOKEN": TOKEN}
        spec = builder_spec(memory_mb=1024, env={**orders, "SLIPWAY_RUN_DEADLINE": str(plane.deadline)})
        await platform.builders.launch(spec)
        await platform.processes.live[spec.name].ended.wait()
        seen = await platform.builders.inspect(Ref(name=spec.name))
        said = "\n".join(line.text for line in await platform.builders.logs(Ref(name=spec.name)))
        assert (seen.phase, seen.exit_code) == (Phase.EXITED, 0), said
        assert plane.completion is not None
        assert plane.completion["status"] == "succeeded", plane.completion
        assert plane.completion["isolation"] == "netns"
        assert TOKEN not in said
        print(plane.completion["timings"], os.getloadavg())
