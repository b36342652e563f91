"""What builders and services on Koyeb share: plans, statuses, names, and waiting for an end."""

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import structlog

from app.platforms.base import LogLine, Phase, Rejected, Size, Transient, Unsupported
from app.platforms.failures import Conflict, Missing
from app.platforms.koyeb.answers import App, Entry, Instance
from app.platforms.koyeb.client import NAME, Client, Json
from app.settings import KoyebSettings

log = structlog.get_logger()

#: Standard CPU types, the only ones that may scale to zero (https://www.koyeb.com/docs/reference/instances).
PLANS = (
    Size(cpus=0.25, memory_mb=256, plan="nano"),
    Size(cpus=0.5, memory_mb=512, plan="micro"),
    Size(cpus=1, memory_mb=1024, plan="small"),
    Size(cpus=2, memory_mb=2048, plan="medium"),
    Size(cpus=4, memory_mb=4096, plan="large"),
    Size(cpus=8, memory_mb=8192, plan="xlarge"),
)
MESH = "DEPLOYMENT_MESH_DISABLED"
"""Services of one organisation see each other on its private network otherwise, whoever they belong to."""

COMING = frozenset({"PENDING", "PROVISIONING", "SCHEDULED", "ALLOCATING", "STARTING"})
FAILED = frozenset({"UNHEALTHY", "ERRORING", "ERROR"})
STOPPED = frozenset({"CANCELING", "CANCELED", "STOPPING", "STOPPED"})
GONE = frozenset({"DELETED"})
LEAVING = frozenset({"DELETING", "DELETED"})

STREAMS: Mapping[str, Literal["stderr", "platform"]] = {"stderr": "stderr", "koyeb": "platform"}
END_SECONDS = 45.0
POLL_SECONDS = 1.0


@dataclass(kw_only=True)
class Account:
    """One account with its settings; ``unknown`` counts statuses that we had never heard of."""

    client: Client
    settings: KoyebSettings
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    poll_seconds: float = POLL_SECONDS
    unknown: dict[str, int] = field(default_factory=dict)

    def strange(self, status: str | None) -> str:
        """Note a status that we don't know, and return what to say of it; the platform may invent one any day."""
        word = status or "none"
        self.unknown[word] = self.unknown.get(word, 0) + 1
        log.warning("unknown status", platform=NAME, status=word)
        return f"Koyeb says {word}, which we don't know"

    async def find_app(self, name: str) -> App | None:
        """Return the app of this very name, unless it is being deleted."""
        return next((a for a in await self.client.apps(name) if a.status not in LEAVING), None)

    async def need_app(self, name: str, *, delete_when_empty: bool) -> App:
        """Return the app, made now if need be; whoever was faster made it for us, too."""
        if found := await self.find_app(name):
            return found
        try:
            return await self.client.create_app(name, delete_when_empty=delete_when_empty)
        except (Conflict, Transient):
            if found := await self.find_app(name):
                return found
            raise Transient(NAME, "create app", "it was not made, or an old one of its name is still going") from None

    async def end_service(self, service_id: str) -> None:
        """Delete a service and wait until it is gone; Transient when that takes too long."""
        try:
            await self.client.delete_service(service_id)
        except Missing:
            return
        await self.until(service_id, GONE, END_SECONDS, "delete service", "deleted")

    async def until(
        self, service_id: str, there: Container[str | None], seconds: float, operation: str, word: str
    ) -> None:
        """Wait until a service's status is one of these, or it is gone; Transient after so many seconds."""
        waited = 0.0
        while waited < seconds:
            try:
                if (await self.client.service(service_id, kind="stop")).status in there:
                    return
            except Missing:
                return
            await self.sleep(self.poll_seconds)
            waited += max(self.poll_seconds, 0.01)
        raise Transient(NAME, operation, f"it is still being {word}", retry_after=10)


def fit(size: Size) -> Size:
    """Return the smallest plan that is at least ``size``; Unsupported when there is none."""
    for plan in PLANS:
        if plan.cpus >= size.cpus and plan.memory_mb >= size.memory_mb:
            return plan
    most = PLANS[-1]
    raise Unsupported(NAME, "fit", f"the largest plan has {most.cpus:g} cores and {most.memory_mb} MB")


def variables(plain: Mapping[str, str]) -> list[Json]:
    """Return plain variables of a definition.

    Koyeb expands ``{{ … }}`` in them, ``{{ secret.NAME }}`` too, and secrets belong to the whole organisation: such a value
    would read somebody else's secret, so it is refused. Raises Rejected.
    """
    for name, value in plain.items():
        if "{{" in value or "{{" in name:
            raise Rejected(
                NAME, "check environment", f"{name} holds '{{{{', which Koyeb would expand; make it a secret"
            )
    return [{"key": k, "value": v} for k, v in plain.items()]


def phase_of(status: str | None) -> Phase | None:
    """Return what a deployment's status means, None when it is new to us."""
    if status in COMING:
        return Phase.STARTING
    if status in {"HEALTHY", "DEGRADED"}:
        return Phase.RUNNING
    if status == "SLEEPING":
        return Phase.ASLEEP
    if status in FAILED or status == "STASHED":
        return Phase.FAILED
    return Phase.EXITED if status in STOPPED else None


def reasons(*messages: Sequence[str], instances: Sequence[Instance] = ()) -> str:
    """Return all that the platform said, once each, in one line."""
    words = [w for group in (*messages, *(i.messages for i in instances)) for w in group if w]
    return "; ".join(dict.fromkeys(words))[:1000]


def lines(entries: Sequence[Entry]) -> list[LogLine]:
    """Return log lines as our callers know them."""
    found = []
    for entry in entries:
        stream = str(entry.labels.get("stream") or "stdout").lower()
        found.append(LogLine(at=entry.created_at, text=entry.msg.rstrip("\n"), stream=STREAMS.get(stream, "stdout")))
    return found
