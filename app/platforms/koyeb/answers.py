"""What Koyeb answers, as far as we read it: unknown fields are ignored and statuses are any word."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field, model_validator

from app.platforms.http import Wire as PlainWire


class Wire(PlainWire):
    """Base of all answers: null is what a field is that isn't there."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class Domain(Wire):
    """A host name of an app; ``type`` AUTOASSIGNED for the one that Koyeb gives."""

    name: str
    type: str | None = None
    status: str | None = None


class App(Wire):
    """A group of services behind one host name."""

    id: str
    name: str
    status: str | None = None
    created_at: datetime | None = None
    domains: tuple[Domain, ...] = ()


class Service(Wire):
    """A service. Its status tells of what serves, never of the rollout that was asked for last."""

    id: str
    name: str
    app_id: str | None = None
    status: str | None = None
    created_at: datetime | None = None
    messages: tuple[str, ...] = ()
    active_deployment_id: str | None = None
    latest_deployment_id: str | None = None


class Variable(Wire):
    """A variable of a definition: plain or by the name of a secret."""

    key: str | None = None
    value: str | None = None
    secret: str | None = None


class Definition(Wire):
    """The part of a deployment's definition that we read."""

    env: tuple[Variable, ...] = ()
    regions: tuple[str, ...] = ()


class Deployment(Wire):
    """One rollout of a service."""

    id: str
    service_id: str | None = None
    status: str | None = None
    messages: tuple[str, ...] = ()
    definition: Definition = Definition()


class Instance(Wire):
    """One machine of a deployment; a restart makes another one."""

    id: str
    status: str | None = None
    region: str | None = None
    created_at: datetime | None = None
    messages: tuple[str, ...] = ()


class Secret(Wire):
    """A secret without its value."""

    id: str
    name: str


class Entry(Wire):
    """A log line; ``labels.stream`` is stdout, stderr or koyeb."""

    msg: str = ""
    created_at: datetime
    labels: Mapping[str, Any] = Field(default_factory=dict)


class Pagination(Wire):
    """Where a log query goes on."""

    has_more: bool = False
    next_start: str | None = None
    next_end: str | None = None


class Logs(Wire):
    """One page of log lines."""

    data: tuple[Entry, ...] = ()
    pagination: Pagination = Pagination()


class Lifecycle(Wire):
    """How long an account's services may be told to live, in seconds."""

    delete_after_create_min: int | None = None
    delete_after_create_max: int | None = None


class Quotas(Wire):
    """The part of an organisation's quotas that we keep to."""

    lifecycle: Lifecycle = Lifecycle()


class Organization(Wire):
    """Whose token it is."""

    id: str


class AppReply(Wire):
    """The wrapper of one app."""

    app: App


class ServiceReply(Wire):
    """The wrapper of one service."""

    service: Service


class DeploymentReply(Wire):
    """The wrapper of one deployment."""

    deployment: Deployment


class OrganizationReply(Wire):
    """The wrapper of one organization."""

    organization: Organization


class QuotasReply(Wire):
    """The wrapper of quotas."""

    quotas: Quotas = Quotas()


class SecretReply(Wire):
    """The wrapper of one secret."""

    secret: Secret


class Page(Wire):
    """A page of a list."""

    count: int | None = None
    has_next: bool | None = None


class AppsPage(Page):
    """A page of apps."""

    apps: tuple[App, ...] = ()


class ServicesPage(Page):
    """A page of services."""

    services: tuple[Service, ...] = ()


class InstancesPage(Page):
    """A page of instances."""

    instances: tuple[Instance, ...] = ()


class SecretsPage(Page):
    """A page of secrets."""

    secrets: tuple[Secret, ...] = ()
