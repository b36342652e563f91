"""Child processes of ours: whoever is canceled while one starts leaves nothing of it behind."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Any


async def start(*command: str | Path, stdin: int | None = DEVNULL, session: bool = True, **options: Any) -> Process:
    """Start a program, by default without stdin and in a session of its own; raises OSError when it can't be.

    When the caller is canceled meanwhile the program is killed with all that it started, and reaped.
    """
    words = [os.fspath(word) for word in command]
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*words, stdin=stdin, start_new_session=session, **options)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio alone would kill the one process, and what that has started by now would go on.
        with contextlib.suppress(OSError):
            await end(await asyncio.shield(starting), group=session)
        raise


async def end(process: Process, *, group: bool = True) -> None:
    """Kill a program, with the ``group`` that it leads, and wait until it has ended; fine if it has."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:  # which outlives its leader
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    await asyncio.shield(process.wait())
