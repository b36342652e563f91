"""Koyeb keeps the contract of all platforms, on an imitation that checks each request against Koyeb's own."""

from typing import ClassVar

from app.imitations.koyeb import KoyebImitation
from app.platforms.base import ImageRef
from app.settings import Settings
from tests.platforms import koyeb_support
from tests.platforms.cloud import Cloud, Support
from tests.platforms.contract import BuildersContract, ServicesContract


class Koyeb(Cloud):
    name = "koyeb"
    support: ClassVar[Support] = koyeb_support
    instance = "KOYEB_INSTANCE_ID"
    size = koyeb_support.SIZE

    def settings(self, imitation: KoyebImitation, image: ImageRef, test: str) -> Settings:
        # What never listens is waited for to the end.
        return koyeb_support.settings(imitation, start_seconds=1.0 if "does_not_listen" in test else 20.0)

    def machines(self, imitation: KoyebImitation, name: str) -> int:
        return sum(s.name == name for s in imitation.services)


class TestBuilders(Koyeb, BuildersContract):
    pass


class TestServices(Koyeb, ServicesContract):
    wakes_by_itself = True
    address_per_release = False
