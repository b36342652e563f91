"""Services: each release a sandboxed process on a loopback port of its own.

On ``local`` a program must listen on ``$PORT``: two releases of a service run side by side on one loopback, so each start
gets a free port, and ``ServiceSpec.port`` is what other platforms use. A program that insists on that one is taken too,
as long as the port is free. What listens is believed only when the socket is an open file of the release's own process.

All services share the host's loopback with each other and with everything else on this machine: no tenant boundary.
"""
# Over 250 lines: one verb of the Protocol after the other, over one table of releases.

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from app.platforms.base import (
    Address,
    Found,
    Inspection,
    Launched,
    Listing,
    LogLine,
    Phase,
    Ref,
    Rejected,
    ServiceRef,
    ServiceSpec,
    Size,
    StartFailed,
)
from app.platforms.local import limits, ports, procfs, sandbox
from app.platforms.local.builders import is_ours, look, read_log
from app.platforms.local.process import Command, Process, tail
from app.platforms.local.processes import Processes
from app.platforms.local.rootfs import Image, Images
from app.platforms.local.state import Seal, read_all, write_json
from app.platforms.local.toolchain import Toolchain
from app.platforms.locks import Locks
from app.settings import MIB

START_SECONDS = 10.0
STOP_GRACE = 5.0
POLL_SECONDS = 0.001
LAST_LINES = 5


@dataclass
class Release:
    """What is on disk of a release. ``sealed`` holds its environment and secrets, encrypted."""

    service: str
    release: str
    digest: str
    port: int
    cpus: float
    memory_mb: int
    created: float
    awake: bool
    sealed: str


class LocalServices:
    """Fulfils ``Services``; the release is the unit that ``list_ours`` lists."""

    def __init__(
        self,
        *,
        folder: Path,
        tools: Toolchain,
        processes: Processes,
        images: Images,
        seal: Seal,
        start_seconds: float = START_SECONDS,
        stop_grace: float = STOP_GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._tools = tools
        self._processes = processes
        self._images = images
        self._seal = seal
        self._start_seconds = start_seconds
        self._stop_grace = stop_grace
        self._clock = clock
        self._locks = Locks()
        self._releases: dict[str, Release] = {}
        self._deploying: set[str] = set()

    async def open(self) -> None:
        """Read what is on disk and bring it in line with the processes that were adopted."""
        for value in await asyncio.to_thread(read_all, self._folder):
            known = Release(**value)
            self._releases[known.release] = known
            if renewed := self._seal.renew(known.sealed, name=known.release):
                await self._write(replace(known, sealed=renewed))
        for process in [p for p in self._processes.live.values() if p.record.kind == "service"]:
            release = self._releases.get(process.record.name)
            if release is None or not release.awake:
                await self._processes.stop(process, 0)
                await self._processes.forget(process.record.name)

    def _process(self, name: str) -> Process | None:
        process = self._processes.live.get(name)
        return process if process is not None and process.record.kind == "service" else None

    def fit(self, size: Size) -> Size:
        """As asked, up to what the machine has."""
        return limits.fit(size)

    # ------------------------------------------------------------------------------------------------ deploy

    async def deploy(self, spec: ServiceSpec) -> Launched:
        """Pull the image, write the release down and start it; a second call finds the first."""
        size = self.fit(spec.size)
        self._tools.need_sandbox("deploy")
        async with self._locks.of(spec.release):
            launched = Launched(handle=spec.release, region=None, effective=size)
            release = self._releases.get(spec.release)
            if release is not None and (not release.awake or self._process(spec.release) is not None):
                return launched
            self._deploying.add(spec.image.digest)
            try:
                image = await self._images.ensure(spec.image)
                release = self._release(spec, size)
                await self._write(release)
            finally:
                self._deploying.discard(spec.image.digest)
            await self._start(release, image)
        return launched

    def _release(self, spec: ServiceSpec, size: Size) -> Release:
        secret = json.dumps({"env": {**spec.env, **spec.secrets}})
        return Release(
            service=spec.service,
            release=spec.release,
            digest=spec.image.digest,
            port=spec.port,
            cpus=size.cpus,
            memory_mb=size.memory_mb,
            created=time.time(),
            awake=True,
            sealed=self._seal.close(secret, name=spec.release),
        )

    async def _write(self, release: Release) -> None:
        await asyncio.to_thread(write_json, self._folder / f"{release.release}.json", asdict(release))
        self._releases[release.release] = release

    async def _start(self, release: Release, image: Image) -> Process:
        bwrap = self._tools.need_sandbox("start")
        marker = self._processes.marker()
        port = ports.free(exclude={int(p.record.extra.get("port", 0)) for p in self._processes.live.values()})
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", **image.env}  # noqa: S108 - inside
        size = Size(cpus=release.cpus, memory_mb=release.memory_mb)
        env |= limits.hints(size)
        env |= json.loads(self._seal.open(release.sealed, name=release.release))["env"]
        env |= {"PORT": str(port), "SLIPWAY_SERVICE": release.service, "SLIPWAY_RELEASE": release.release}
        env |= {"SLIPWAY_DIGEST": release.digest, "SLIPWAY_INSTANCE": marker}
        if bwrap:
            words, argv = sandbox.service(bwrap, marker, image.rootfs, image.folder), image.argv
        else:
            words, argv = [], (str(image.rootfs / image.argv[0].lstrip("/")), *image.argv[1:])
        return await self._processes.start(
            Command(
                name=release.release,
                kind="service",
                marker=marker,
                sandbox=tuple(words),
                argv=tuple(argv),
                env=env,
                memory_bytes=size.memory_mb * MIB,
                limits=limits.of(size.memory_mb, slack_mb=192, file_mb=512, processes=512, sandboxed=bool(bwrap)),
                cores=limits.cores(size.cpus),
                tmpfs=("/tmp",) if bwrap else (),  # noqa: S108 - inside
                cwd=None if bwrap else str(image.rootfs),
                extra={"port": port, "asked": release.port},
            )
        )

    # ------------------------------------------------------------------------------------------------ look

    def _address(self, process: Process, tree: list[int]) -> Address | None:
        extra = process.record.extra
        found = procfs.listening(tree, (extra["port"], extra["asked"]))
        if found is None:
            return None
        return Address(url=f"http://{found[0]}:{found[1]}", instance_id=process.record.marker)

    async def inspect(self, ref: ServiceRef) -> Inspection:
        """Look at one release; one that ended by itself is FAILED, or EXITED with code 0, until it is woken."""
        release, process = self._releases.get(ref.release), self._process(ref.release)
        if release is None:
            return Inspection(phase=Phase.GONE)
        if process is None or (not process.alive and not release.awake):
            return Inspection(phase=Phase.ASLEEP, handle=ref.release)
        if not process.alive:
            seen = look(process)
            return Inspection(**{**_fields(seen), "message": self._last_words(process)})
        address = await asyncio.to_thread(lambda: self._address(process, process.tree()))
        if address is None:
            return Inspection(phase=Phase.STARTING, handle=ref.release, message="nothing listens on $PORT yet")
        return Inspection(phase=Phase.RUNNING, handle=ref.release, address=address)

    def _last_words(self, process: Process) -> str:
        record = process.record
        said = "; ".join(line.strip() for line in tail(self._processes.log_path(record.name), LAST_LINES) if line)[
            -500:
        ]
        code = (
            f"The program ended with code {record.exit_code}" if record.exit_code is not None else "The program ended"
        )
        return f"{record.message or code}: {said}" if said else f"{record.message or code}."

    # ------------------------------------------------------------------------------------------------ sleep, wake

    async def activate(self, ref: ServiceRef) -> None:
        """Nothing to do: the gateway routes."""

    async def sleep(self, ref: ServiceRef) -> None:
        """SIGTERM, five seconds, SIGKILL; the process is gone when this returns."""
        async with self._locks.of(ref.release):
            release, process = self._releases.get(ref.release), self._process(ref.release)
            if release is None:
                return
            if release.awake:
                release.awake = False
                await self._write(release)
            if process is not None:
                await self._processes.stop(process, self._stop_grace)

    async def wake(self, ref: ServiceRef) -> Address:
        """Start it and return once it listens, some milliseconds later; many at once cause one start."""
        async with self._locks.of(ref.release):
            release, process = self._releases.get(ref.release), self._process(ref.release)
            if release is None:
                raise Rejected("local", "wake", f"there is no release {ref.release}")
            image = await asyncio.to_thread(self._images.find, release.digest)
            if image is None:
                raise Rejected("local", "wake", f"the image of {ref.release} is not here any more")
            if not release.awake:
                release.awake = True
                await self._write(release)
            if process is None or not process.alive:
                process = await self._start(release, image)
            return await self._until_listening(process)

    async def _until_listening(self, process: Process) -> Address:
        end, looks = self._clock() + self._start_seconds, 0
        tree: list[int] = []
        while process.alive:
            # The tree of a plain program is one process, younger than its sandbox: look at all of them only seldom.
            if not tree or looks % 50 == 49:
                since = 0 if looks % 50 == 49 else process.record.inner or 0
                tree = process.tree(procfs.snapshot(since))
            address = self._address(process, tree)
            if address is not None:
                return address
            if self._clock() > end:
                process.record.message = "The program did not listen on $PORT"
                await self._processes.kill(process)
                raise self._failed("not_listening", process)
            looks += 1
            await asyncio.sleep(POLL_SECONDS)
        reason: Literal["out_of_memory", "crashed_at_start"] = "crashed_at_start"
        if process.record.out_of_memory:
            reason = "out_of_memory"
        raise self._failed(reason, process)

    def _failed(
        self, reason: Literal["not_listening", "crashed_at_start", "out_of_memory"], process: Process
    ) -> StartFailed:
        return StartFailed("local", "wake", self._last_words(process), reason=reason)

    # ------------------------------------------------------------------------------------------------ end

    async def retire(self, ref: ServiceRef) -> None:
        """Remove one release, its log, and its image when no other release has it."""
        async with self._locks.of(ref.release):
            process = self._process(ref.release)
            if process is not None:
                await self._processes.stop(process, self._stop_grace)
            await self._processes.forget(ref.release)
            await asyncio.to_thread((self._folder / f"{ref.release}.json").unlink, missing_ok=True)
            self._releases.pop(ref.release, None)
        await self._images.collect(self._used)

    def _used(self) -> set[str]:
        return {release.digest for release in self._releases.values()} | self._deploying

    async def delete(self, ref: ServiceRef) -> None:
        """Retire every release of the service."""
        for name in [r.release for r in self._releases.values() if r.service == ref.service]:
            await self.retire(ServiceRef(service=ref.service, release=name))

    async def list_ours(self, installation: str) -> Listing:
        """List releases, the sleeping too."""
        items = []
        for release in [r for r in self._releases.values() if is_ours(r.release, installation)]:
            seen = await self.inspect(ServiceRef(service=release.service, release=release.release))
            created = datetime.fromtimestamp(release.created, UTC)
            name = Ref(name=release.release, handle=release.release)
            items.append(Found(ref=name, created_at=created, phase=seen.phase))
        return Listing(items=tuple(items), complete=True)

    async def logs(self, ref: ServiceRef, *, limit: int = 200) -> list[LogLine]:
        """Return the last lines of its standard output and error, over all its starts."""
        return await asyncio.to_thread(read_log, self._processes.log_path(ref.release), limit)


def _fields(seen: Inspection) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in seen.__dataclass_fields__}
