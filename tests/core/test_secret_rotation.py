"""A new first key seals everything anew, so that the old one can go; and no secret is ever where it doesn't belong."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from app.db import alone
from app.platforms.base import StartFailed
from app.secrets import KeysError, make_keys
from app.services.rewrap import in_use, rewrap
from tests.support.platform import NAME, Yard
from tests.support.processes import python
from tests.support.world import KEYS, World, world

NEW = make_keys()


async def test_secrets_move_to_the_first_key_and_the_old_one_can_go(database_url: str, tmp_path: Path) -> None:
    old_id, new_id = KEYS.partition(":")[0], NEW.partition(":")[0]
    yard = Yard()
    async with world(database_url, tmp_path / "home", yard=yard) as here:
        await here.deployed("echo", secrets={"KEY": "one", "OTHER": "two"})
        assert await rewrap(here.context) == 0
    async with world(database_url, tmp_path / "home", secret_keys=SecretStr(f"{NEW},{KEYS}"), yard=yard) as here:
        assert (await in_use(here.context))[old_id]["secrets"] == 2
        assert await rewrap(here.context) == 2
        assert await rewrap(here.context) == 0
        counted = await in_use(here.context)
        assert "secrets" not in counted.get(old_id, {})
        assert counted[new_id] == {"secrets": 2}
    async with world(database_url, tmp_path / "home", secret_keys=SecretStr(NEW), yard=yard) as here:
        answer = await here.http.patch("/v1/services/echo", json={"env": {"MORE": "1"}})
        assert answer.status_code == 202
        await here.jobs()
        release = (await here.http.get("/v1/services/echo")).json()["live_release"]
        unit = next(u for u in here.yard.units.values() if u.spec.env.get("MORE") == "1")
        assert unit.spec.secrets == {"KEY": "one", "OTHER": "two"}
        assert release["secrets"] == ["KEY", "OTHER"]
    await yard.close()


async def test_a_key_taken_away_too_early_is_named_and_loses_nothing(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path / "home") as here:
        await here.deployed("echo", secrets={"KEY": "one"})
    async with world(database_url, tmp_path / "home", secret_keys=SecretStr(f"{NEW},{KEYS}")) as here:
        pass  # the database knows both now
    async with world(database_url, tmp_path / "home", secret_keys=SecretStr(NEW)) as here:
        with pytest.raises(KeysError, match=KEYS.partition(":")[0]):
            await rewrap(here.context)
    async with world(database_url, tmp_path / "home", secret_keys=SecretStr(f"{NEW},{KEYS}")) as here:
        assert await rewrap(here.context) == 1


IN_USE = """
from app.cli import app
app(["secret-keys", "--in-use"])
"""


async def test_the_operator_sees_what_needs_a_key(database_url: str, tmp_path: Path) -> None:
    async with world(database_url, tmp_path / "home") as here:
        await here.deployed("echo", secrets={"KEY": "one"})
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLIPWAY_", "DATABASE_URL"))}
    env |= {
        "DATABASE_URL": database_url,
        "SLIPWAY_HOME": str(tmp_path / "home"),
        "SLIPWAY_SECRET_KEYS": f"{NEW},{KEYS}",
    }
    done = await asyncio.to_thread(
        subprocess.run, python(IN_USE), env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [f"{NEW.partition(':')[0]}  the first", f"{KEYS.partition(':')[0]}  1 secrets"]


PLANTED = {"s3cret-of-a-service", "s3cret-of-a-patch", "s3cret-of-a-wrong-request"}


async def test_planted_secrets_are_nowhere(database_url: str, tmp_path: Path) -> None:
    said: list[str] = []

    def listen(_: object, __: str, event: Any) -> Any:
        said.append(repr(event))
        return event

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.processors.format_exc_info, listen, *before[-1:]])
    try:
        async with world(database_url, tmp_path / "home") as here:
            shown = await _whole_run(here)
            shown += [json.dumps(here.app.openapi())]
            key = (await here.http.post("/v1/keys", json={"name": "x"}, headers={"Idempotency-Key": "k"})).json()["key"]
            async with alone(here.context.sessions) as session:
                raw = await session.connection()
                tables = (await raw.exec_driver_sql(
                    "select format('%I.%I', schemaname, tablename) from pg_tables "
                    "where schemaname not in ('pg_catalog', 'information_schema')"
                )).scalars().all()  # fmt: skip
                assert len(tables) > 15
                for table in tables:
                    rows = await raw.exec_driver_sql(f"select t::text from {table} t")
                    shown += [str(r) for r in rows.scalars()]
    finally:
        structlog.configure(processors=before)
    everything = "\n".join([*shown, *said])
    assert "crashed_at_start" in everything, "the failing release was not in what was searched"
    for secret in (*PLANTED, key[16:]):
        assert secret not in everything
        assert secret.encode().hex() not in everything, "in a column of bytes"


async def _whole_run(here: World) -> list[str]:
    """Build, deploy, change, fail, roll back; return all that the API said."""
    shown = []
    await here.deployed("echo", secrets={"A": "s3cret-of-a-service"})
    wrong = here.order("echo", secrets={"A": "s3cret-of-a-wrong-request", "1": "s3cret-of-a-wrong-request"})
    shown.append((await here.http.post("/v1/builds", json=wrong)).text)
    shown.append(
        (await here.http.post("/v1/builds", content=b'{"service": {"secrets": {"A": "s3cret-of-a-wrong-request"')).text
    )
    patch = await here.http.patch("/v1/services/echo", json={"secrets": {"A": "s3cret-of-a-patch"}})
    shown.append(patch.text)
    here.yard.misbehave("deploy", StartFailed(NAME, "deploy", "it ended with 1", reason="crashed_at_start"))
    await here.jobs()
    await here.http.patch("/v1/services/echo", json={"secrets": {"A": "s3cret-of-a-patch", "B": None}})
    await here.jobs()
    shown.append((await here.http.post("/v1/services/echo/rollback")).text)
    await here.jobs()
    for path in ("/v1/builds", "/v1/services", "/v1/services/echo/releases", "/v1/services/echo/logs", "/v1/platforms"):
        shown.append((await here.http.get(path)).text)
    for build in (await here.http.get("/v1/builds")).json()["items"]:
        for rest in ("", "/events", "/logs"):
            shown.append((await here.http.get(f"/v1/builds/{build['id']}{rest}")).text)
    return shown
