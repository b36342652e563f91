"""Fly in the catalog: what it lacks to be offered, how its settings are read, and sizes."""

from pathlib import Path

import pytest

from app.platforms import catalog, fly
from app.platforms.base import Size, Unsupported
from app.platforms.fly import sizes
from app.settings import Settings


def test_without_a_token_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIPWAY_FLY__TOKEN", raising=False)
    entry = catalog.entries(Settings(home=tmp_path))["fly"]
    assert (entry.configured, entry.missing) == (False, ("SLIPWAY_FLY__TOKEN",))


async def test_settings_from_the_environment_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_FLY__TOKEN", "FlyV1 fm2_x")
    monkeypatch.setenv("SLIPWAY_FLY__REGIONS", "ams, iad")
    settings = Settings(home=tmp_path)
    entry = catalog.entries(settings)["fly"]
    assert (entry.configured, entry.traits.regions) == (True, ("ams", "iad"))
    assert "fm2_x" not in repr(settings)
    async with fly.opened(settings) as platform:
        assert (platform.name, platform.traits) == ("fly", entry.traits)


@pytest.mark.parametrize(
    ("wish", "kinds", "plan", "memory"),
    [
        (Size(cpus=1, memory_mb=1), sizes.SERVICE_KINDS, "shared-cpu-1x", 256),
        (Size(cpus=0.5, memory_mb=300), sizes.SERVICE_KINDS, "shared-cpu-1x", 512),
        (Size(cpus=1, memory_mb=2049), sizes.SERVICE_KINDS, "shared-cpu-2x", 2304),
        (Size(cpus=3, memory_mb=256), sizes.SERVICE_KINDS, "shared-cpu-4x", 1024),
        (Size(cpus=2, memory_mb=2048), sizes.BUILDER_KINDS, "performance-cpu-2x", 4096),
        (Size(cpus=16, memory_mb=100_000), sizes.SERVICE_KINDS, "performance-cpu-16x", 100_096),
    ],
)
def test_sizes_keep_fly_s_bounds(wish: Size, kinds: tuple[str, ...], plan: str, memory: int) -> None:
    got = sizes.fit(wish, kinds, "fit")
    assert (got.plan, got.memory_mb) == (plan, memory)
    assert sizes.fit(got, kinds, "fit") == got
    assert sizes.guest(got) == {"cpu_kind": plan.partition("-")[0], "cpus": got.cpus, "memory_mb": memory}


def test_what_no_machine_has_is_refused() -> None:
    with pytest.raises(Unsupported):
        sizes.fit(Size(cpus=17, memory_mb=256), sizes.SERVICE_KINDS, "fit")
