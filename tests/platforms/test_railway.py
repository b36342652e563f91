"""Railway keeps the contract of all platforms, on an imitation that checks each document against Railway's own schema."""

from typing import ClassVar

from app.imitations.railway import RailwayImitation
from tests.platforms import railway_support
from tests.platforms.cloud import Cloud, Support
from tests.platforms.contract import BuildersContract, ServicesContract


class Railway(Cloud):
    name = "railway"
    support: ClassVar[Support] = railway_support
    instance = "RAILWAY_REPLICA_ID"

    def machines(self, imitation: RailwayImitation, name: str) -> int:
        return len(imitation.deployments)


class TestBuilders(Railway, BuildersContract):
    pass


class TestServices(Railway, ServicesContract):
    address_per_release = False
