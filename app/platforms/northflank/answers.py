"""What Northflank answers, as far as we read it; every field that may be missing is optional, since its answers have drifted."""

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from app.platforms.http import Wire

T = TypeVar("T")

RUNNING, FAILED = "TASK_RUNNING", "TASK_FAILED"
COMING = frozenset({"TASK_STAGING", "TASK_STARTING"})


class _Answer(Wire):
    model_config = ConfigDict(alias_generator=to_camel)


class Pagination(_Answer):
    """How a listing goes on."""

    has_next_page: bool = False
    cursor: str | None = None


class Reply(_Answer, Generic[T]):
    """The envelope of every success."""

    data: T
    pagination: Pagination = Pagination()


class Named(_Answer):
    """A job, a secret group or a service in a listing; the id is the slug of the name."""

    id: str


class Jobs(_Answer):
    """A page of jobs."""

    jobs: list[Named] = Field(default_factory=list)


class Run(_Answer):
    """One run of a job. The counters that come with it are not to be trusted, so they are not read."""

    id: str
    status: str = ""
    concluded: bool = False


class Runs(_Answer):
    """A page of a job's runs."""

    runs: list[Run] = Field(default_factory=list)


class Container(_Answer):
    """One instance; times in Unix seconds."""

    name: str
    status: str
    created_at: float = 0
    updated_at: float = 0


class Containers(_Answer):
    """A page of instances."""

    containers: list[Container] = Field(default_factory=list)


class Rollout(_Answer):
    """How far a service's rollout is; with the time of the rollout before, it is the rollout before that it tells of."""

    status: str = ""
    last_transition_time: datetime | None = None


class Status(_Answer):
    """A service's status."""

    deployment: Rollout = Rollout()


class Deployment(_Answer):
    """What a service runs."""

    instances: int = 1


class Port(_Answer):
    """One port; ``dns`` is its public host name."""

    dns: str | None = None
    public: bool = False


class Ports(_Answer):
    """A service's ports."""

    ports: list[Port] = Field(default_factory=list)


class Service(_Answer):
    """One service. ``service_paused`` is missing in newer answers."""

    id: str
    deployment: Deployment = Deployment()
    status: Status = Status()
    ports: list[Port] = Field(default_factory=list)
    runtime_environment: dict[str, Any] = Field(default_factory=dict, repr=False)
    service_paused: bool | None = None

    @property
    def asleep(self) -> bool:
        """Whether it is at zero, and done with getting there."""
        return self.service_paused if self.service_paused is not None else self.deployment.instances == 0


class ListedService(_Answer):
    """A service in a listing."""

    id: str
    status: Status = Status()


class Services(_Answer):
    """A page of services."""

    services: list[ListedService] = Field(default_factory=list)


class Secrets(_Answer):
    """A page of secret groups."""

    secrets: list[Named] = Field(default_factory=list)
