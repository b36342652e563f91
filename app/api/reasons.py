"""Why the API refuses: every reason with its words, and how a route declares its own. None is renamed: programs go by them."""

from http import HTTPStatus
from typing import Any

from app.api.schemas import Problem
from app.lifecycle import REASONS as FAILURES
from app.lifecycle import Reason

MEDIA_TYPE = "application/problem+json"
DECLARED = "x-reasons"
"""Where a route's reasons are until the description is made."""

WORDS: dict[str, str] = {
    "already_live": "The release is live already.",
    "already_there": "The service lives on that platform already.",
    "artifact_gone": "The artifact is past its retention; build it again.",
    "artifact_not_found": "There is no such artifact.",
    "batch_not_found": "There is no such batch.",
    "batch_refused": "Builds of the batch can't be accepted; `errors` names their fields.",
    "build_ended": "The build has ended otherwise, so it can't be canceled any more.",
    "build_not_ended": "Only an ended build can be retried.",
    "build_not_found": "There is no such build.",
    "cannot_honour": "The platform can't do what a field asks for; `strict: false` makes it a warning.",
    "cut_short": "The body did not come whole.",
    "database_unavailable": "The database does not answer; try again.",
    "deleted": "The service was deleted meanwhile.",
    "delivery_not_found": "There is no such delivery.",
    "event_gone": "The event of the delivery is past its keeping.",
    "foreign_run": "The run token belongs to another run.",
    "idempotency_in_flight": "A request with this Idempotency-Key is under way; ask again.",
    "idempotency_key_reused": "The Idempotency-Key was used with another request before.",
    "insufficient_scope": "The key lacks the scope that this needs.",
    "internal_error": "Slipway itself failed; nothing of the request was kept. It is safe to try again.",
    "invalid_cursor": "The cursor or position is not one that this list or stream gave.",
    "invalid_request": "`errors` names each field that can't be accepted.",
    "kept_up": "The service has scale.min 1; change that first.",
    "key_ended": "The key has ended; make a new one.",
    "key_not_found": "There is no such key.",
    "logs_elsewhere": "The logs are kept by another process on its host.",
    "malformed_json": "The body is not JSON.",
    "migration_under_way": "The service is on its way to another platform already.",
    "no_live_release": "The service has no live release yet.",
    "not_awake": "The service is not up yet; try again.",
    "not_running": "Only a running service can be put to sleep.",
    "nothing_to_roll_back_to": "The service has no earlier release that was live.",
    "operators_only": "Only an admin key of the default project may do this.",
    "platform_decides": "The platform itself puts its services to sleep.",
    "platform_differs": "The service lives on another platform; a build can't move it.",
    "platform_unavailable": "The platform does not answer; try again.",
    "project_exists": "There is a project of this name already.",
    "project_not_found": "There is no such project.",
    "registry_unavailable": "The registry does not answer; try again.",
    "release_not_found": "There is no such release.",
    "route_not_found": "Nothing is at this address.",
    "run_claimed": "Another instance holds the run; exit without doing anything.",
    "run_not_yours": "Another instance holds the run.",
    "run_over": "The run has ended; stop and exit.",
    "schema_outdated": "The database's schema is not current; run `slipway migrate`.",
    "service_deleted": "The service of the build was deleted; send a new build.",
    "service_not_found": "There is no such service.",
    "source_gone": "The source of the build is past its retention; send it again.",
    "source_invalid": "The body is no gzipped tar with files in it.",
    "source_not_kept": "The source comes from git; fetch it there.",
    "source_rejected": "Unpacking the source is not safe, or it unpacks to too much.",
    "too_large": "The body is over a limit.",
    "too_many_builds": "The project has had its builds of the day.",
    "too_many_queued": "The project has as many queued builds as it may.",
    "too_many_services": "The project has as many services as it may.",
    "too_many_streams": "The process has as many streams as it may; try again.",
    "too_many_webhooks": "The project has as many webhooks as it may; remove one first.",
    "unauthorized": "No credential came, or one that is not good.",
    "unavailable": "Too much is under way at once; try again.",
    "webhook_disabled": "The webhook is disabled; enable it first.",
    "webhook_not_found": "There is no such webhook.",
}

NOT_STARTED = (
    Reason.CRASHED_AT_START, Reason.HEALTH_CHECK_FAILED, Reason.INTERNAL_ERROR, Reason.NO_CAPACITY, Reason.NOT_LISTENING,
    Reason.OUT_OF_MEMORY, Reason.PLATFORM_MISCONFIGURED, Reason.PLATFORM_REJECTED, Reason.REGISTRY_UNAVAILABLE,
)  # fmt: skip
"""Why a service does not wake."""


def words(reason: str) -> str:
    """Return what a reason means, in a sentence."""
    return WORDS.get(reason) or FAILURES[Reason(reason)].message


def responses(**reasons: int | tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """Declare a route's own problems by reason and status; ``description`` adds what comes with every route of its kind."""
    found: dict[int | str, dict[str, Any]] = {}
    for reason, given in ({"invalid_request": 422} | reasons).items():
        for status in given if isinstance(given, tuple) else (given,):
            fresh = {
                "model": Problem,
                "description": HTTPStatus(status).phrase,
                "content": {MEDIA_TYPE: {}},
                DECLARED: [],
            }
            found.setdefault(status, fresh)[DECLARED].append(reason)
    return found


RATE_HEADERS = {
    "RateLimit-Policy": {
        "description": "The project's limits that this counts against, and their windows in seconds.",
        "schema": {"type": "string"},
        "example": '"builds-per-day";q=100000;w=86400, "queued-builds";q=10000',
    },
    "RateLimit": {
        "description": "What is left of each, and in how many seconds all of it is there again.",
        "schema": {"type": "string"},
        "example": '"builds-per-day";r=99988;t=3600, "queued-builds";r=9990',
    },
}
RETRY_AFTER = {"Retry-After": {"description": "In how many seconds to try again.", "schema": {"type": "integer"}}}


def limited(**reasons: int | tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    """Declare the same on a route that makes builds, with 429 and the headers that tell what is left."""
    found = responses(too_many_builds=429, too_many_queued=429, unavailable=503, **reasons)
    found[429]["headers"] = RETRY_AFTER | RATE_HEADERS
    return found | {202: {"headers": RATE_HEADERS}}
