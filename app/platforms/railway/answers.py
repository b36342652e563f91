"""What listings answer: Relay's edges and pages around what ``client`` knows."""

from pydantic import Field

from app.platforms.http import Wire
from app.platforms.railway.client import Deployment, Event, Page, Service


class ServiceEdge(Wire):
    """One service."""

    node: Service


class Services(Wire):
    """A page of services."""

    edges: tuple[ServiceEdge, ...]
    page: Page = Field(alias="pageInfo")


class InstanceNode(Wire):
    """A service in one environment, with its newest deployment."""

    service: str = Field(alias="serviceId")
    latest: Deployment | None = Field(None, alias="latestDeployment")


class InstanceEdge(Wire):
    """One of them."""

    node: InstanceNode


class Instances(Wire):
    """A page of them."""

    edges: tuple[InstanceEdge, ...]
    page: Page = Field(alias="pageInfo")


class Project(Wire):
    """What is asked of a project."""

    services: Services


class Environment(Wire):
    """What is asked of an environment."""

    instances: Instances = Field(alias="serviceInstances")


class Everything(Wire):
    """One page of both listings, which are read side by side."""

    project: Project
    environment: Environment


class EventEdge(Wire):
    """One event."""

    node: Event


class Events(Wire):
    """The events of a deployment."""

    edges: tuple[EventEdge, ...]
