"""Child processes: an environment built up from nothing, a process group of their own, output read line by line."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.logs import Log

#: What is kept of a child's output for reading afterwards, in bytes for each stream.
KEPT = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended; ``code`` is negative for a signal. ``stdout`` and ``stderr`` hold at most KEPT bytes."""

    code: int
    stdout: str
    stderr: str


@asynccontextmanager
async def spawned(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, stderr: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a child without stdin; on the way out its whole process group is killed and the child reaped."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    )
    try:
        await asyncio.wait([starting])
        yield starting.result()
    finally:
        # Whoever is canceled in the midst of the start has a child to end all the same.
        process = await asyncio.shield(starting)
        # The group outlives its leader: a compiler may still run when `go` is gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


async def run_child(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Log | None = None,
    shown: Sequence[str] = ("stdout", "stderr"),
    scrub: Callable[[str], str] = str,
) -> Ended:
    """Run a child to its end; its lines go through ``scrub`` to the log, for the streams in ``shown``.

    Raises OSError when it can't be started. When the caller is canceled the child and all it started are killed.
    """
    async with spawned(command, env=env, cwd=cwd) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out, err, code = await asyncio.gather(
            _pump(process.stdout, "stdout", log if "stdout" in shown else None, scrub),
            _pump(process.stderr, "stderr", log if "stderr" in shown else None, scrub),
            process.wait(),
        )
    return Ended(code=code, stdout=scrub(out), stderr=scrub(err))


async def _pump(reader: asyncio.StreamReader, stream: str, log: Log | None, scrub: Callable[[str], str]) -> str:
    """Read a pipe to its end, whatever the length of its lines; returns the first KEPT bytes."""
    kept = bytearray()
    line = bytearray()
    skipping = False
    while chunk := await reader.read(1 << 16):
        kept += chunk[: max(0, KEPT - len(kept))]
        if log is None:
            continue
        # A secret may reach past the place of the cut: keep enough to see it whole.
        most = log.line_bytes + log.redactor.longest
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            line += piece
            if not skipping:
                _write(log, line, stream, most, scrub)
            skipping = False
            line.clear()
        line += rest
        if skipping:
            line.clear()
        elif len(line) > most:
            _write(log, line, stream, most, scrub)
            line.clear()
            skipping = True
    if log is not None and line and not skipping:
        _write(log, line, stream, most, scrub)
    return kept.decode("utf-8", "replace")


def _write(log: Log, line: bytearray, stream: str, most: int, scrub: Callable[[str], str]) -> None:
    text = bytes(line[:most]).decode("utf-8", "replace")
    log.write(scrub(text), stream, partial=len(line) > most)
