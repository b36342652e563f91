"""What Fly's refusals mean (fly.md §1 Errors; the order is that of https://github.com/superfly/fly-go/pull/306)."""

from dataclasses import dataclass
from typing import Any

from app.platforms.base import Misconfigured, NoCapacity, PlatformError, Transient
from app.platforms.failures import Conflict, Failure, by_status, short


@dataclass
class HostFull(NoCapacity):
    """One host has no room: a new machine in the same region lands elsewhere."""


@dataclass
class NotYet(Transient):
    """What was just made is not known everywhere: a pushed image, a secret's version. It took no effect."""


@dataclass
class Leased(Transient):
    """Somebody else works on this machine."""


@dataclass
class NameTaken(Conflict):
    """The app's name is in use somewhere on Fly."""


@dataclass
class Forbidden(Misconfigured):
    """403: it belongs to somebody else, or the token is not good for it."""


@dataclass
class RanOut(Transient):
    """408: a wait was over before the state was reached; of any other call the outcome is unknown."""


def classify(failure: Failure) -> PlatformError:
    """Return the error that a refusal stands for."""
    text, status = _said(failure.body)
    low = text.lower()
    if room := _no_room(failure, low, status):
        return failure.error(room, text)
    if status == "name_taken":
        kind: type[PlatformError] = NameTaken
    elif "manifest_unknown" in low or "failed to get manifest" in low or (failure.status == 412 and "secret" in low):
        kind = NotYet
    elif failure.status == 409 and "lease" in low:
        kind = Leased
    elif "already_exists" in low or "unique machine name" in low:
        kind = Conflict
    elif failure.status in {403, 408}:
        kind = Forbidden if failure.status == 403 else RanOut
    else:
        return by_status(failure, text)
    return failure.error(kind, text)


def _no_room(failure: Failure, text: str, status: str) -> type[NoCapacity] | None:
    code = failure.status
    if status == "insufficient_capacity":
        return NoCapacity
    full = (
        status == "volume_placement_capacity"
        or (code == 409 and "could not reserve resource" in text)
        or (code == 412 and "insufficient resources" in text)
        or "deploys to this host are temporarily disabled" in text
    )
    if full and not (code == 409 and text.endswith("no capacity")):
        return HostFull
    if full or (code in {400, 409} and "no capacity" in text) or (code == 403 and "quota" in text):
        return NoCapacity
    return None


def _said(body: Any) -> tuple[str, str]:
    """Return text and status enum of an error; older paths answer ``message``, or plain text."""
    if not isinstance(body, dict):
        return short(body), ""
    return short(body.get("error") or body.get("message") or body), str(body.get("status") or "")
