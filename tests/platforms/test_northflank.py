"""Northflank keeps the contract of all platforms, on an imitation that checks each request against Northflank's own."""

import dataclasses
from typing import ClassVar

from app.imitations.northflank import NorthflankImitation
from app.platforms.base import ImageRef
from app.settings import Settings, is_loopback
from tests.platforms import northflank_support
from tests.platforms.cloud import Cloud, Support
from tests.platforms.contract import BuildersContract, ServicesContract


class Northflank(Cloud):
    name = "northflank"
    support: ClassVar[Support] = northflank_support
    instance = "HOSTNAME"

    def settings(self, imitation: NorthflankImitation, image: ImageRef, test: str) -> Settings:
        imitation.registries[northflank_support.REGISTRY] = image.registry
        return super().settings(imitation, image, test)

    def named(self, image: ImageRef) -> str:
        here = is_loopback(image.registry)
        return (dataclasses.replace(image, registry=northflank_support.REGISTRY) if here else image).reference

    def machines(self, imitation: NorthflankImitation, name: str) -> int:
        return sum(run.job.id == name for run in imitation.started)


class TestBuilders(Northflank, BuildersContract):
    pass


class TestServices(Northflank, ServicesContract):
    pass
