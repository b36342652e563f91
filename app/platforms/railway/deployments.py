"""One deployment: how it stands, its last words, its end."""

from datetime import datetime
from typing import Literal

from app.platforms.base import LogLine, Rejected
from app.platforms.failures import Missing
from app.platforms.railway import documents
from app.platforms.railway.answers import EventEdge, Events
from app.platforms.railway.client import Deployment, Line, RailwayApi

LAST_LINES = 5

PENDING = frozenset({"QUEUED", "WAITING", "NEEDS_APPROVAL", "INITIALIZING", "BUILDING"})
STARTING = frozenset({"QUEUED", "WAITING", "INITIALIZING", "BUILDING", "DEPLOYING"})
REMOVED = frozenset({"REMOVING", "REMOVED"})
ENDED = REMOVED | {"CRASHED", "FAILED", "SKIPPED"}


_FIELDS = {
    documents.CANCEL.name: "deploymentCancel",
    documents.STOP.name: "deploymentStop",
    documents.REMOVE.name: "deploymentRemove",
}


class Deployments:
    """The deployments of one account; an id is enough to find one."""

    def __init__(self, api: RailwayApi) -> None:
        self._api = api

    async def end(self, deployment: Deployment) -> None:
        """Cancel or stop a deployment, whichever its state takes; done when it is over already."""
        if deployment.stopped or deployment.status in ENDED:
            return
        document = documents.CANCEL if deployment.status in PENDING else documents.STOP
        try:
            await self._api.ask(document, bool, _FIELDS[document.name], id=deployment.id)
        except Missing:
            return
        except Rejected:
            # It has moved on meanwhile: left the queue, or ended by itself.
            now = await self.one(deployment.id)
            if now is not None and now.status == deployment.status and not now.stopped:
                raise
            if now is not None:
                await self.end(now)

    async def one(self, deployment: str) -> Deployment | None:
        """Return a deployment's state, None when it isn't there."""
        try:
            return await self._api.ask(documents.DEPLOYMENT, Deployment, "deployment", id=deployment)
        except Missing:
            return None

    async def drop(self, deployment: Deployment) -> None:
        """End a deployment and remove it."""
        await self.end(deployment)
        if deployment.status not in REMOVED:
            try:
                await self._api.ask(documents.REMOVE, bool, _FIELDS[documents.REMOVE.name], id=deployment.id)
            except Missing:
                return

    async def lines(self, deployment: str, limit: int) -> list[LogLine]:
        """Return a deployment's last lines, oldest first."""
        try:
            found = await self._api.ask(
                documents.LOGS, list[Line], "deploymentLogs", deployment=deployment, limit=min(max(limit, 1), 5000)
            )
        except Missing:
            return []
        lines = [LogLine(at=datetime.fromisoformat(x.timestamp), text=x.message, stream=_stream(x)) for x in found]
        return sorted(lines, key=lambda line: line.at)[-limit:]

    async def last_words(self, deployment: Deployment) -> tuple[str, bool]:
        """Say why a deployment failed, and whether it was its health check.

        A deployment that never ran has no log: what is known of it is in its events.
        """
        said = "; ".join(line.text for line in await self.lines(deployment.id, LAST_LINES))[-500:]
        what = "The program ended" if deployment.status == "CRASHED" else f"The deployment is {deployment.status}"
        events: tuple[EventEdge, ...] = ()
        if deployment.status != "CRASHED":
            try:
                events = (
                    await self._api.ask(documents.EVENTS, Events, "deploymentEvents", deployment=deployment.id)
                ).edges
            except Missing:
                events = ()
        wrong = [(e.node.step, p.error or p.reason or p.detail) for e in events if (p := e.node.payload)]
        causes = "; ".join(f"{step}: {text}" for step, text in wrong if text)[-500:]
        message = ": ".join(t for t in (what, causes, said) if t)
        return message, any(step == "HEALTHCHECK" and text for step, text in wrong)


def _stream(line: Line) -> Literal["stdout", "stderr"]:
    return "stderr" if (line.severity or "").lower() in {"error", "err"} else "stdout"
