"""Fly keeps the contract of all platforms, on an imitation that checks each request against Fly's own."""

from typing import ClassVar

from app.imitations.fly import FlyImitation
from app.platforms.base import Inspection
from tests.platforms import fly_support
from tests.platforms.cloud import Cloud, Support
from tests.platforms.contract import BuildersContract, ServicesContract


class Fly(Cloud):
    name = "fly"
    support: ClassVar[Support] = fly_support
    instance = "FLY_MACHINE_ID"

    def machines(self, imitation: FlyImitation, name: str) -> int:
        return sum(m.name == name for a in imitation.apps.values() for m in a.machines.values())

    async def ask(self, seen: Inspection) -> str:
        """Return the instance: a machine's program knows its machine and not which start of it this is."""
        assert seen.address is not None
        machine = await super().ask(seen)
        return seen.address.instance_id if seen.address.instance_id.startswith(f"{machine}.") else machine


class TestBuilders(Fly, BuildersContract):
    pass


class TestServices(Fly, ServicesContract):
    wakes_by_itself = True
    address_per_release = False
