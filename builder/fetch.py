"""Get the source into a folder, whatever its kind, and make sure that it is the one that was asked for."""

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from builder.control import FINAL, Control, Refused
from builder.git import fetch_git
from builder.guard import Guard
from builder.orders import Environment, Orders
from builder.outcome import Failure, Reason
from builder.pace import TRANSIENT, Pace
from builder.tree import Content, rejected, tree_digest
from builder.unpack import unpack


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A source on disk; ``commit`` is of git only."""

    root: Path
    digest: str
    commit: str | None


async def fetch(environment: Environment, control: Control, orders: Orders, *, guard: Guard, pace: Pace) -> Fetched:
    """Fetch and unpack the source under ``<work>/source``; raises Failure when it can't be had or isn't right."""
    root = environment.work / "source"
    commit = None
    if orders.source.kind == "git":
        commit, files = await fetch_git(environment, orders, root=root, guard=guard, pace=pace)
    else:
        files = await _fetch_archive(environment, control, orders, root=root, guard=guard, pace=pace)
    digest = tree_digest(files)
    if orders.source.digest and orders.source.digest != digest:
        raise rejected(f"The source is not the one that was asked for: its digest is {digest}.")
    return Fetched(root=root, digest=digest, commit=commit)


async def _fetch_archive(
    environment: Environment, control: Control, orders: Orders, *, root: Path, guard: Guard, pace: Pace
) -> dict[str, Content]:
    archive = environment.work / "source.tar.gz"
    attempt = 0
    while True:
        try:
            await _download(control, archive, orders.limits.source_bytes)
            break
        except httpx.TransportError as error:
            if time.time() >= control.deadline:
                raise Failure(Reason.SOURCE_FETCH, f"The source could not be fetched: {error!r}.") from error
        await pace.wait(attempt)
        attempt += 1
    try:
        return await asyncio.to_thread(
            unpack, archive, root, environment.work / "source.tar", orders.limits, guard.check
        )
    finally:
        archive.unlink()


async def _download(control: Control, archive: Path, most: int) -> None:
    """One attempt; TransportError means another may help."""
    async with control.source() as response:
        status = response.status_code
        if status in TRANSIENT:
            raise httpx.RemoteProtocolError(f"status {status}")
        if status in FINAL - {400, 413, 422}:
            raise Refused(status, "source")
        if status != 200:
            raise Failure(Reason.SOURCE_FETCH, f"The source could not be fetched: status {status}.")
        size = 0
        with archive.open("wb") as file:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > most:
                    raise rejected(f"The source is larger than {most} bytes.")
                await asyncio.to_thread(file.write, chunk)


def clear(work: Path) -> None:
    """Empty the work folder: what a predecessor left must not get into this build."""
    for entry in work.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
