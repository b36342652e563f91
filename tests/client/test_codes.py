"""What programs rely on: exit codes, JSON and nothing else on standard output, and a client that starts fast."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from app.cli import CLIENT, app
from app.client.failed import MEANINGS, Code
from app.platforms.catalog import Entry
from tests.client.support import COMMAND, Said, Shell, beside, environment, problem, scripted
from tests.client.test_pack import plant
from tests.support.platform import NAME, TRAITS, Yard
from tests.support.processes import REPOSITORY, python, spawned
from tests.support.world import FILES, World

NOTHING = Said(200, b'{"items": [], "next_cursor": null}')


def ended(status: str, owner: str | None = None) -> Said:
    """Answer with a build that has ended, and whose move is next."""
    failure = {"reason": "r", "owner": owner, "retryable": False, "message": "m", "advice": "a"} if owner else None
    return Said(200, json.dumps({"id": "bld_x", "status": status, "diagnostics": [], "failure": failure}).encode())


RETRY = ["builds", "retry", "bld_x", "--no-wait"]
CASES: dict[Code, list[tuple[list[str], Said]]] = {
    Code.OK: [(["builds"], NOTHING)],
    Code.CALLER: [(RETRY, ended("failed", "caller")), (RETRY, ended("canceled"))],
    Code.USAGE: [(["builds", "--limit", "0"], NOTHING), (["builds", "show", ""], NOTHING), (["logs"], NOTHING)],
    Code.REFUSED: [(["builds"], problem(status, "no")) for status in (401, 403, 404, 409, 422)],
    Code.ELSEWHERE: [
        *((RETRY, ended("failed", owner)) for owner in ("platform", "operator", "us")),
        (["builds"], problem(500, "internal_error")),
        (["builds"], problem(503, "unavailable")),
        (["builds"], Said(200, b"{}")),  # what we did not foresee is none of the caller's doing either
    ],
    Code.UNREACHABLE: [(["builds"], Said(200, b"<html>")), (["builds"], Said(200, b"{", cut=True))],
}


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_each_class_of_failure_has_an_exit_code(code: Code, tmp_path: Path) -> None:
    assert code in MEANINGS, "it is on the page"
    if code in {Code.INTERRUPTED, Code.BROKEN_PIPE}:
        return  # below, and where commands follow something
    for words, said in CASES[code]:
        with scripted(said) as it:
            done = Shell(it.url, "slp_x", tmp_path).run(*words, "--patience", "0")
        assert done.exit_code == code, f"{words}: {done.exit_code}\n{done.output}"
        assert code is Code.OK or done.stderr, "and a reason"


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        done = Shell(f"http://127.0.0.1:{nobody.getsockname()[1]}", "slp_x", tmp_path).run("builds", "--patience", "0")
    assert done.exit_code == Code.UNREACHABLE
    assert "can't be reached" in done.stderr


@pytest.mark.parametrize("words", [("events",), ("events", "--json")])
def test_a_reader_that_has_gone_is_no_failure_of_the_build(words: tuple[str, ...], tmp_path: Path) -> None:
    event = {"at": "2026-01-02T03:04:05Z", "kind": "build.queued", "build_id": "bld_x", "data": {}}
    page = Said(200, json.dumps({"items": [event] * 3, "next_cursor": None}).encode())
    ours, theirs = os.pipe()
    os.close(ours)
    with scripted(page) as it, os.fdopen(theirs, "wb") as out:
        env = environment(it.url, "slp_x", tmp_path)
        done = subprocess.run([*COMMAND, *words], env=env, stdout=out, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (Code.BROKEN_PIPE, b"")


def leaves(command: Any = None, *path: str) -> Iterator[str]:
    """Yield every command of the client."""
    command = command or typer.main.get_command(app)
    for name, inner in command.commands.items():
        if path or inner.rich_help_panel == CLIENT:
            if hasattr(inner, "commands"):
                yield from leaves(inner, *path, name)
            else:
                yield " ".join((*path, name))


async def test_with_json_each_command_prints_json_and_nothing_else(here: World, shell: Shell, tmp_path: Path) -> None:
    folder = plant(tmp_path / "echo", FILES)
    build, *_ = await here.deployed("echo")
    await here.deployed("echo", env={"MORE": "1"})
    queued, barn = await here.submit(), Yard(traits=replace(TRAITS, min_idle_seconds=60))
    cast("dict[str, Entry]", here.context.catalog.entries)["barn"] = barn.entry("barn")
    here.context.catalog.held["barn"] = barn.platform("barn")
    login = Shell(shell.url, shell.key, tmp_path / "another")
    key = (await shell.json("keys", "create", "one"))["id"]
    hook = (await shell.json("webhooks", "create", "https://1.1.1.1/hook"))["id"]
    sent = (await shell.json("webhooks", "test", hook))["id"]
    said: dict[str, list[str | Path]] = {
        "deploy": [folder, "--platform", NAME, "--no-wait"],
        "build": [folder, "--builder", NAME, "--no-wait"],
        "logs": [build.id],
        "events": [],
        "rollback": ["echo"],
        "builds list": [],
        "builds show": [build.id],
        "builds cancel": [queued.id],
        "builds retry": [build.id, "--no-wait"],
        "services list": [],
        "services show": ["echo"],
        "services releases": ["echo"],
        "services sleep": ["echo"],
        "services wake": ["echo"],
        "migrate": ["echo", "--to", "barn"],
        "services delete": ["echo", "--yes"],
        "platforms": [],
        "login": [],
        "keys list": [],
        "keys create": ["two"],
        "keys rotate": [key],
        "keys revoke": [key],
        "projects list": [],
        "projects create": ["acme"],
        "projects show": ["acme"],
        "projects set": ["acme", "--max-builds", "2"],
        "webhooks list": [],
        "webhooks create": ["https://1.1.1.1/other"],
        "webhooks update": [hook, "--enable"],
        "webhooks rotate": [hook],
        "webhooks test": [hook],
        "webhooks deliveries": [hook],
        "webhooks redeliver": [hook, sent],
        "webhooks delete": [hook],
        "logout": [],
    }
    assert said.keys() == set(leaves())
    try:
        for name, words in said.items():
            of = login if name.startswith("log") and name != "logs" else shell
            given = shell.key if name == "login" else None
            done = await beside(here, of(*name.split(), *words, "--json", stdin=given))
            documents = done.stdout.splitlines() if name in {"logs", "events"} else [done.stdout]
            assert all(isinstance(json.loads(one), dict) for one in documents), name
            assert done.stderr == "", name
            if name == "logout":
                continue
            refused = await of(*name.split(), *words, "--json", "--key", "slp_wrong", code=Code.REFUSED)
            assert (refused.stdout, json.loads(refused.stderr)["reason"]) == ("", "unauthorized"), name
    finally:
        await barn.close()


#: A command, and what was loaded by its end.
LOADED = "import atexit; atexit.register(lambda: print('loaded', *sys.modules)); from app.cli import main; main()"
HEAVY = {
    "sqlalchemy",
    "fastapi",
    "starlette",
    "asyncpg",
    "uvicorn",
    "uvloop",
    "alembic",
    "pgqueuer",
    "pydantic_settings",
}


@pytest.mark.parametrize(
    ("words", "needs"), [(["--help"], set()), (["builds"], {"httpx"}), (["deploy", "."], {"httpx", "pathspec"})]
)
def test_a_client_loads_nothing_of_the_server(words: list[str], needs: set[str], tmp_path: Path) -> None:
    plant(tmp_path, FILES)
    with scripted(*[Said(200, b"{}")] * 2) as it:
        env = environment(it.url, "slp_x", tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
        with spawned(*python(LOADED, *words), env=env, cwd=tmp_path) as child:
            loaded = set(child.line("loaded").split())
    ours = {name for name in loaded if name.startswith(("app.", "builder"))}
    assert {name for name in ours if not name.startswith(("app.client", "app.cli"))} == set()
    assert loaded & HEAVY == set()
    assert loaded & {"httpx", "pathspec"} == needs
