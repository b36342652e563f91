"""What the tests of the local platform share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from app.platforms import local
from app.platforms.base import BuilderSpec, ImageRef, ServiceSpec, Size
from app.settings import Settings
from tests.platforms.contract import name, soon
from tests.support.agents import KEY

#: Stands in for the builder program: runs the Python that its orders hold.
PROGRAM = ("-B", "-u", "-c", "import os; exec(os.environ['SCRIPT'])")
STAYS = "print('hello', flush=True)\nimport time\ntime.sleep(600)"


class Machine:
    """A home on disk and the platform that owns it now."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.keys: tuple[bytes, ...] = (KEY,)
        self.options = {"program": PROGRAM, "start_seconds": 1.0, "stop_grace": 1.0, **options}
        self.platform = local.create(settings, *self.keys, **self.options)

    async def start(self) -> None:
        await self.platform.start()

    async def restart(self) -> local.LocalPlatform:
        """Drop the platform as a crash would, leaving its processes, and start another in its place."""
        await self.platform.aclose(leave=True)
        self.platform = local.create(self.settings, *self.keys, **self.options)
        await self.platform.start()
        return self.platform

    async def close(self) -> None:
        await self.platform.aclose()


def builder_spec(
    script: str = STAYS, *, memory_mb: int = 256, seconds: float = 120.0, env: Mapping[str, str] = MappingProxyType({})
) -> BuilderSpec:
    return BuilderSpec(
        name=name("run"),
        env={"SCRIPT": script, "SLIPWAY_RUN_TOKEN": "slr.token", **env},
        image=None,
        size=Size(cpus=1, memory_mb=memory_mb),
        deadline=soon(seconds),
    )


def service_spec(image: ImageRef, **changes: Any) -> ServiceSpec:
    values: dict[str, Any] = {
        "service": name("svc"),
        "release": name("rel"),
        "image": image,
        "port": 8080,
        "health_path": "/",
        "env": {},
        "secrets": {},
        "size": Size(cpus=1, memory_mb=128),
        **changes,
    }
    return ServiceSpec(**values)
