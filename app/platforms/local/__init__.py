"""The platform that is this machine: builders and services as sandboxed processes.

It belongs to one process at a time, which holds ``<home>/local/lock``; what a killed owner leaves is adopted or ended
by the next. Memory is limited by a watch and by resource limits, processor time by hints. Sandboxes share the host's
network, so ``local`` is no boundary between tenants: it is for one person's machine, for development and for tests.
"""

import asyncio
import dataclasses
import logging
import platform
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from app.platforms.base import Platform, Progress, ServiceRef, Traits
from app.platforms.local import toolchain
from app.platforms.local.builders import PROGRAM, LocalBuilders
from app.platforms.local.limits import Watch, machine
from app.platforms.local.process import Process
from app.platforms.local.processes import Processes
from app.platforms.local.rootfs import Images
from app.platforms.local.seed import Seed
from app.platforms.local.services import START_SECONDS, STOP_GRACE, LocalServices
from app.platforms.local.spawner import Spawner
from app.platforms.local.state import NAME, Folder, Seal
from app.settings import Settings

log = logging.getLogger(__name__)

TIDY_SECONDS = 5.0
TRAITS = Traits(
    scale_to_zero="manual",
    idle_signal="requests",
    exit_codes=True,
    private_registry=True,
    own_registry=None,
    remote=False,
    host_bound=True,
    goarch=("amd64",),
    poll_seconds=0.02,
)


def traits(settings: Settings) -> Traits:
    """Return what holds on this machine: its architecture, and one builder per core unless set otherwise."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    asked = settings.local.max_builders if settings.local else 0
    return dataclasses.replace(TRAITS, max_builders=asked or max(1, int(machine().cpus)), goarch=(arch,))


class LocalPlatform:
    """The platform and its background work: ``start`` and ``aclose``, or ``async with``. Made by ``create``."""

    def __init__(
        self,
        settings: Settings,
        seal: Seal,
        *,
        program: Sequence[str],
        fault: Callable[[str], None],
        start_seconds: float,
        stop_grace: float,
    ) -> None:
        self.tools = toolchain.find(settings)
        self.folder = Folder(settings.home)
        self.spawner = Spawner([self.folder.root, *self.tools.keep])
        self.processes = Processes(self.folder.processes, self.folder.logs, self.spawner, fault)
        self.images = Images(self.folder.images, settings.max_unpacked_bytes)
        self.cache = Seed(self.folder.seed, self.tools, self.spawner)
        self.builders = LocalBuilders(
            runs=self.folder.runs,
            tools=self.tools,
            spawner=self.spawner,
            processes=self.processes,
            cache=self.cache,
            program=program,
        )
        self.services = LocalServices(
            folder=self.folder.releases,
            tools=self.tools,
            processes=self.processes,
            images=self.images,
            seal=seal,
            start_seconds=start_seconds,
            stop_grace=stop_grace,
        )
        self.watch = Watch(self.processes)
        self.platform = Platform(
            name=NAME,
            traits=traits(settings),
            builders=self.builders,
            services=self.services,
            ended=self.processes.ended,
            toolchain=self.tools.identity,
        )
        self._work: list[asyncio.Task[None]] = []
        self._stop_grace = stop_grace

    async def start(self) -> None:
        """Own the folder, try the sandbox, adopt or end what a predecessor left, watch. Misconfigured when owned."""
        await asyncio.to_thread(self.folder.open)
        try:
            await self.spawner.open()
            await self._probe()
            await asyncio.to_thread(self.processes.load_prefix)
            await asyncio.to_thread(self.images.clean)
            await self.processes.adopt()
            await self.services.open()
            await self.builders.open()
        except BaseException:
            self.processes.release()
            self.spawner.close()
            self.folder.close()
            raise
        self._work = [asyncio.create_task(self.watch.run()), asyncio.create_task(self._tidy())]

    async def _probe(self) -> None:
        if not self.tools.sandboxed:
            log.warning("SLIPWAY_SANDBOX=none: builds and services run on this machine UNPROTECTED")
            return
        bwrap = self.tools.bwrap
        if self.tools.trouble is None and bwrap is not None:
            seen = await self.spawner.run(lambda: toolchain.probe(bwrap, self.folder.seed, self.spawner.drop()))
            self.tools.trouble, self.builders.overlay = seen.trouble, seen.overlay
            if seen.trouble is None and not seen.overlay:
                log.warning(
                    "no overlay in user namespaces here: each build copies the seed, which costs a second or two"
                )
        if self.tools.trouble is not None:
            log.warning("local: %s", self.tools.trouble)

    async def _tidy(self) -> None:
        while True:
            try:
                await self.builders.tidy(time.time())
            except Exception:
                log.exception("local: tidying failed")
            await asyncio.sleep(TIDY_SECONDS)

    async def seed(self, progress: Progress | None = None) -> None:
        """Make the seed cache if it isn't there: ``slipway seed``."""
        await self.cache.ready(progress)

    async def aclose(self, *, leave: bool = False) -> None:
        """End the background work and every process of ours; with ``leave`` processes go on, for the next owner."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        self._work = []
        await self.cache.close()
        if not leave:
            alive = [p for p in self.processes.live.values() if p.alive]
            await asyncio.gather(*(self._end(p) for p in alive))
        self.processes.release()
        self.spawner.close()
        self.folder.close()

    async def _end(self, process: Process) -> None:
        if process.record.kind == "service":
            # Asleep, not crashed: the next start finds it as it would after an idle time.
            await self.services.sleep(ServiceRef(service="", release=process.record.name))
        else:
            await self.processes.stop(process, self._stop_grace)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def create(
    settings: Settings,
    *keys: bytes,
    program: Sequence[str] = PROGRAM,
    fault: Callable[[str], None] = lambda _: None,
    start_seconds: float = START_SECONDS,
    stop_grace: float = STOP_GRACE,
) -> LocalPlatform:
    """Return the platform, not yet started. ``keys`` are of the installation's secret keys, at least 32 bytes each; the first
    seals what lies on disk, all of them open it.

    ``program`` are the words after the Python interpreter that make a builder; ``fault`` is called at the points where
    a crash test may kill this process: local.intent, local.spawn, local.record, local.gate, local.running.
    """
    return LocalPlatform(
        settings,
        Seal(*keys),
        program=program,
        fault=fault,
        start_seconds=start_seconds,
        stop_grace=stop_grace,
    )
