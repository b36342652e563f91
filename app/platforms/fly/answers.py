"""What Fly answers, as far as we read it (fly.md §2, §3). Lists may be null, and unknown states stay words."""

from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

from app.platforms.http import Wire

T = TypeVar("T")
Rows = Annotated[list[T], BeforeValidator(lambda v: v or [])]
Words = Annotated[dict[str, str], BeforeValidator(lambda v: v or {})]


class Organization(Wire):
    """Who an app belongs to."""

    slug: str = ""


class App(Wire):
    """One app."""

    name: str
    organization: Organization | None = None
    machine_count: int = 0


class Apps(Wire):
    """A page of apps."""

    apps: Rows[App] = Field(default_factory=list)
    next_cursor: str | None = None


class Ip(Wire):
    """An address of an app; ``shared`` ones are v4."""

    ip: str
    shared: bool | None = None


class Ips(Wire):
    """All addresses of an app."""

    ips: Rows[Ip] = Field(default_factory=list)


class Secret(Wire):
    """A secret's name."""

    name: str


class Secrets(Wire):
    """All secrets of an app and, after a change, its version."""

    secrets: Rows[Secret] = Field(default_factory=list)
    version: int | None = None


class Exit(Wire):
    """How a program ended; a code that is left out is 0."""

    exit_code: Annotated[int, BeforeValidator(lambda v: v or 0)] = 0
    oom_killed: bool | None = False
    requested_stop: bool | None = False

    @property
    def crashed(self) -> bool:
        """Whether it ended by itself and not well."""
        return not self.requested_stop and (self.exit_code != 0 or bool(self.oom_killed))


class Event(Wire):
    """One event of a machine."""

    id: str = ""
    type: str = ""
    timestamp: int = 0
    request: dict[str, Any] | None = None

    @property
    def exit(self) -> Exit | None:
        """The exit in it, which is seen in two places."""
        request = self.request or {}
        found = (request.get("MonitorEvent") or {}).get("exit_event") or request.get("exit_event")
        return Exit.model_validate(found) if found is not None else None


class Check(Wire):
    """One health check's last word."""

    status: str = ""
    output: str | None = None


class ServiceBlock(Wire):
    """``autostop`` is a word in requests and may be a boolean in answers."""

    autostop: bool | str | None = None
    autostart: bool | None = None


class Config(Wire):
    """A machine's config; it can be missing when its host is not reached."""

    metadata: Words = Field(default_factory=dict)
    services: Rows[ServiceBlock] = Field(default_factory=list)


class Machine(Wire):
    """One machine; ``events`` newest first."""

    id: str
    name: str = ""
    state: str = ""
    region: str | None = None
    app_name: str = ""
    version: str | None = None
    created_at: datetime | None = None
    config: Config | None = None
    events: Rows[Event] = Field(default_factory=list)
    checks: Rows[Check] = Field(default_factory=list)
    cordoned: bool | None = None

    @property
    def gone(self) -> bool:
        """Whether it is a record of the past."""
        return self.state in {"destroying", "destroyed", "replaced", "migrated"}

    @property
    def started(self) -> str:
        """Names its last start: another one after every start."""
        last = next((e for e in self.events if e.type == "start"), None)
        return f"{self.id}.{last.id if last else self.version}"

    def exits(self, after: str | None = None) -> list[Exit]:
        """Return how its program ended, newest first, up to the event ``after``."""
        found = []
        for event in self.events:
            if after is not None and event.id == after:
                break
            if event.exit is not None:
                found.append(event.exit)
        return found


class OrgMachines(Wire):
    """A page of an organization's machines; with ``error_regions`` it proves nothing about what is missing."""

    machines: Rows[Machine] = Field(default_factory=list)
    next_cursor: str | None = None
    error_regions: Rows[str] = Field(default_factory=list)


class LogAttributes(Wire):
    """One line's content."""

    timestamp: datetime
    message: str = ""


class LogEntry(Wire):
    """One line."""

    attributes: LogAttributes


class Logs(Wire):
    """The newest lines."""

    data: Rows[LogEntry] = Field(default_factory=list)
