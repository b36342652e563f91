"""``pytest --live``: what it says without credentials, and that it keeps to the account it is given and leaves nothing there."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.images.support import USER, registry
from tests.platforms import cloud, fly_support
from tests.support.agents import Toolbox
from tests.support.processes import REPOSITORY


async def live(*words: str, **env: str) -> tuple[int, str]:
    """Run pytest as a developer would, with nothing set but this."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLIPWAY_", "PYTEST_"))}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--live", *words),
        env=own | env,
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), 120)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    return child.returncode, said.decode()


async def test_it_says_what_is_missing() -> None:
    code, output = await live("fly", "tests/platforms/test_fly.py")
    assert code == pytest.ExitCode.USAGE_ERROR
    registry = "SLIPWAY_REGISTRY, SLIPWAY_REGISTRY_USERNAME, SLIPWAY_REGISTRY_PASSWORD"
    assert f"--live fly: set SLIPWAY_FLY__TOKEN, {registry}" in output


def test_it_knows_the_platforms() -> None:
    with pytest.raises(pytest.UsageError, match="one of fly, koyeb, northflank, railway, not moon"):
        cloud.missing("moon")


async def test_it_runs_on_the_account_of_the_environment_and_leaves_nothing(
    tmp_path: Path, toolbox: Toolbox, stored: cloud.Stored
) -> None:
    async with registry(tmp_path / "outside") as outside:
        image = f"{outside.url.removeprefix('http://')}/slipway/contract@{stored.image.digest}"
        options = {"builder": (str(toolbox.agent),), "builder_image": image}
        async with fly_support.imitation(tmp_path / "fly", **options) as account:
            fly = fly_support.settings(account).fly
            assert fly is not None
            urls = {"API_URL": fly.api_url, "LOGS_URL": fly.logs_url, "REGISTRY": fly.registry}
            code, output = await live(
                *(
                    "fly",
                    "tests/platforms/test_fly.py",
                    "--durations=5",
                    "-k",
                    "launching_twice or secrets_and_environment",
                ),
                SLIPWAY_REGISTRY=outside.url,
                SLIPWAY_REGISTRY_USERNAME=USER[0],
                SLIPWAY_REGISTRY_PASSWORD=USER[1],
                SLIPWAY_FLY__TOKEN=fly.token.get_secret_value(),
                SLIPWAY_FLY__SERVICE_URL=fly.service_url,
                **{f"SLIPWAY_FLY__{name}": url for name, url in urls.items()},
            )
            assert code == 0, output
            assert "2 passed" in output, output
            assert account.count("create machine") == 2
            assert account.machines == []
            assert [a for a in account.apps if "-svc-" in a] == []
