"""Statuses, the moves between them, and the reasons a build or release can fail for.

Pure data: everything else in Slipway reads this and nothing here imports anything of ours.
"""
# Over 250 lines: tables of words, the whole state of the system on one page.

from dataclasses import dataclass
from enum import StrEnum


class BuildStatus(StrEnum):
    """What a build is doing; the last three are terminal."""

    QUEUED = "queued"
    DISPATCHING = "dispatching"
    BUILDING = "building"
    PROMOTING = "promoting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class RunStatus(StrEnum):
    """One attempt of one builder."""

    LAUNCHING = "launching"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"


class ReleaseStatus(StrEnum):
    """A release never changes what it is, only how far it got."""

    PENDING = "pending"
    DEPLOYING = "deploying"
    LIVE = "live"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class ServiceStatus(StrEnum):
    """``pending`` has never had a live release; ``deleted`` is the tombstone that lets a sweep clean up."""

    PENDING = "pending"
    ASLEEP = "asleep"
    WAKING = "waking"
    RUNNING = "running"
    SLEEPING = "sleeping"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


Status = BuildStatus | RunStatus | ReleaseStatus | ServiceStatus

#: Per kind of row: status → the statuses that may follow. (Nested by kind, since equal words of two kinds are equal keys.)
TRANSITIONS: dict[type[Status], dict[Status, frozenset[Status]]] = {
    BuildStatus: {
        # Past the builder, when the project has the artifact already.
        BuildStatus.QUEUED: frozenset(
            {
                BuildStatus.DISPATCHING,
                BuildStatus.PROMOTING,
                BuildStatus.SUCCEEDED,
                BuildStatus.FAILED,
                BuildStatus.CANCELED,
            }
        ),
        # The completion can come before the launch call has returned, hence the moves past `building`.
        # Back to `queued`: the run was lost or refused and another may be tried.
        BuildStatus.DISPATCHING: frozenset(
            {
                BuildStatus.BUILDING,
                BuildStatus.PROMOTING,
                BuildStatus.SUCCEEDED,
                BuildStatus.FAILED,
                BuildStatus.CANCELED,
                BuildStatus.QUEUED,
            }
        ),
        BuildStatus.BUILDING: frozenset(
            {
                BuildStatus.PROMOTING,
                BuildStatus.SUCCEEDED,
                BuildStatus.FAILED,
                BuildStatus.CANCELED,
                BuildStatus.QUEUED,
            }
        ),
        BuildStatus.PROMOTING: frozenset({BuildStatus.SUCCEEDED, BuildStatus.FAILED, BuildStatus.CANCELED}),
        BuildStatus.SUCCEEDED: frozenset(),
        BuildStatus.FAILED: frozenset(),
        BuildStatus.CANCELED: frozenset(),
    },
    RunStatus: {
        RunStatus.LAUNCHING: frozenset(
            {RunStatus.RUNNING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELED, RunStatus.LOST}
        ),
        RunStatus.RUNNING: frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELED, RunStatus.LOST}),
        RunStatus.SUCCEEDED: frozenset(),
        RunStatus.FAILED: frozenset(),
        RunStatus.CANCELED: frozenset(),
        RunStatus.LOST: frozenset(),
    },
    ReleaseStatus: {
        ReleaseStatus.PENDING: frozenset({ReleaseStatus.DEPLOYING, ReleaseStatus.FAILED}),
        ReleaseStatus.DEPLOYING: frozenset({ReleaseStatus.LIVE, ReleaseStatus.FAILED}),
        ReleaseStatus.LIVE: frozenset({ReleaseStatus.SUPERSEDED}),
        ReleaseStatus.SUPERSEDED: frozenset(),
        ReleaseStatus.FAILED: frozenset(),
    },
    ServiceStatus: {
        ServiceStatus.PENDING: frozenset({ServiceStatus.RUNNING, ServiceStatus.DELETING}),
        ServiceStatus.ASLEEP: frozenset({ServiceStatus.WAKING, ServiceStatus.RUNNING, ServiceStatus.DELETING}),
        ServiceStatus.WAKING: frozenset(
            {ServiceStatus.RUNNING, ServiceStatus.ASLEEP, ServiceStatus.FAILED, ServiceStatus.DELETING}
        ),
        ServiceStatus.RUNNING: frozenset(
            {
                ServiceStatus.RUNNING,  # another release took over
                ServiceStatus.SLEEPING,
                ServiceStatus.ASLEEP,
                ServiceStatus.FAILED,
                ServiceStatus.DELETING,
            }
        ),
        ServiceStatus.SLEEPING: frozenset({ServiceStatus.ASLEEP, ServiceStatus.RUNNING, ServiceStatus.DELETING}),
        ServiceStatus.FAILED: frozenset({ServiceStatus.WAKING, ServiceStatus.RUNNING, ServiceStatus.DELETING}),
        ServiceStatus.DELETING: frozenset({ServiceStatus.DELETED}),
        ServiceStatus.DELETED: frozenset(),
    },
}

#: For every open status, by kind: the code that moves it on, and the code that rescues it when that code died.
#: A test imports each of them and checks that no open status is missing.
OWNERS: dict[type[Status], dict[Status, tuple[str, str]]] = {
    BuildStatus: {
        BuildStatus.QUEUED: ("app.builds.dispatch:dispatch", "app.builds.reconcile:reconcile"),
        BuildStatus.DISPATCHING: ("app.builds.dispatch:dispatch", "app.builds.reconcile:reconcile"),
        BuildStatus.BUILDING: ("app.builds.complete:complete", "app.builds.reconcile:reconcile"),
        BuildStatus.PROMOTING: ("app.services.promote:promote", "app.services.sweep:reconcile"),
    },
    RunStatus: {
        RunStatus.LAUNCHING: ("app.builds.dispatch:dispatch", "app.builds.reconcile:reconcile"),
        RunStatus.RUNNING: ("app.builds.complete:complete", "app.builds.reconcile:reconcile"),
    },
    ReleaseStatus: {
        ReleaseStatus.PENDING: ("app.services.promote:promote", "app.services.sweep:reconcile"),
        ReleaseStatus.DEPLOYING: ("app.services.promote:promote", "app.services.sweep:reconcile"),
    },
    ServiceStatus: {
        ServiceStatus.WAKING: ("app.services.sleep_wake:wake", "app.services.sweep:reconcile"),
        ServiceStatus.SLEEPING: ("app.services.sleep_wake:sleep", "app.services.sweep:reconcile"),
        ServiceStatus.DELETING: ("app.services.delete:delete", "app.services.sweep:reconcile"),
    },
}

#: Not terminal, yet nothing is owed: the row waits for somebody outside.
AT_REST: dict[type[Status], frozenset[Status]] = {
    BuildStatus: frozenset(),
    RunStatus: frozenset(),
    ReleaseStatus: frozenset({ReleaseStatus.LIVE}),
    ServiceStatus: frozenset(
        {ServiceStatus.PENDING, ServiceStatus.ASLEEP, ServiceStatus.RUNNING, ServiceStatus.FAILED}
    ),
}


def may_follow(status: Status) -> frozenset[Status]:
    """Return the statuses that may follow this one."""
    return TRANSITIONS[type(status)][status]


def is_terminal(status: Status) -> bool:
    """Tell whether nothing can follow this status."""
    return not may_follow(status)


OPEN_BUILD = tuple(s for s in BuildStatus if not is_terminal(s))
OPEN_RUN = tuple(s for s in RunStatus if not is_terminal(s))


class Owner(StrEnum):
    """Whose move it is after a failure."""

    CALLER = "caller"
    OPERATOR = "operator"
    PLATFORM = "platform"
    US = "us"


class Reason(StrEnum):
    """Why a build or a release failed; a closed list that clients may switch on."""

    SOURCE_FETCH = "source_fetch"
    SOURCE_INVALID = "source_invalid"
    SOURCE_REJECTED = "source_rejected"
    NOT_A_PROGRAM = "not_a_program"
    TOOLCHAIN_MISMATCH = "toolchain_mismatch"
    COMPILE_ERROR = "compile_error"
    OUT_OF_MEMORY = "out_of_memory"
    PUSH_FAILED = "push_failed"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    TIMEOUT = "timeout"
    EXPIRED = "expired"
    BUILDER_LOST = "builder_lost"
    NO_CAPACITY = "no_capacity"
    PLATFORM_REJECTED = "platform_rejected"
    PLATFORM_MISCONFIGURED = "platform_misconfigured"
    NOT_LISTENING = "not_listening"
    CRASHED_AT_START = "crashed_at_start"
    HEALTH_CHECK_FAILED = "health_check_failed"
    CANCELED_BY_USER = "canceled_by_user"
    SUPERSEDED = "superseded"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True)
class ReasonInfo:
    """What a reason means to a person: whose move it is, whether to try again, and the next step."""

    owner: Owner
    retryable: bool
    message: str


REASONS: dict[Reason, ReasonInfo] = {
    Reason.SOURCE_FETCH: ReasonInfo(
        Owner.CALLER, True, "The source or one of its modules could not be fetched. Check the address and try again."
    ),
    Reason.SOURCE_INVALID: ReasonInfo(
        Owner.CALLER, False, "The source can't be built as it is. Correct it and send a new build."
    ),
    Reason.SOURCE_REJECTED: ReasonInfo(
        Owner.CALLER, False, "The source was refused because unpacking it is not safe. Send a plain archive."
    ),
    Reason.NOT_A_PROGRAM: ReasonInfo(
        Owner.CALLER, False, "The package is not a program. Point build.package at a `package main`."
    ),
    Reason.TOOLCHAIN_MISMATCH: ReasonInfo(
        Owner.CALLER, False, "The source asks for a Go version that the builder does not have. Lower it in go.mod."
    ),
    Reason.COMPILE_ERROR: ReasonInfo(
        Owner.CALLER, False, "The source does not compile. The diagnostics name file and line."
    ),
    Reason.OUT_OF_MEMORY: ReasonInfo(
        Owner.CALLER, True, "The builder ran out of memory. Raise builder.memory_mb and try again."
    ),
    Reason.PUSH_FAILED: ReasonInfo(
        Owner.OPERATOR, True, "The image could not be pushed. Check the registry's space, size limit and credentials."
    ),
    Reason.REGISTRY_UNAVAILABLE: ReasonInfo(
        Owner.OPERATOR, True, "The registry did not answer. Bring it back, then retry the build."
    ),
    Reason.TIMEOUT: ReasonInfo(
        Owner.CALLER, True, "The build took longer than builder.timeout_seconds. Raise it or make the build smaller."
    ),
    Reason.EXPIRED: ReasonInfo(
        Owner.OPERATOR, True, "The build waited too long for a free builder. Add capacity, then retry the build."
    ),
    Reason.BUILDER_LOST: ReasonInfo(
        Owner.PLATFORM, True, "The builder vanished without a report. Retry the build; if it repeats, see the logs."
    ),
    Reason.NO_CAPACITY: ReasonInfo(
        Owner.PLATFORM, True, "The platform had no room for the machine. Retry later or choose another platform."
    ),
    Reason.PLATFORM_REJECTED: ReasonInfo(
        Owner.CALLER, False, "The platform refused the request. The message says what it did not like."
    ),
    Reason.PLATFORM_MISCONFIGURED: ReasonInfo(
        Owner.OPERATOR, True, "The platform refused our credentials or set-up. Correct the settings, then retry."
    ),
    Reason.NOT_LISTENING: ReasonInfo(
        Owner.CALLER, False, "The program started but did not listen on service.port. Listen on 0.0.0.0:$PORT."
    ),
    Reason.CRASHED_AT_START: ReasonInfo(
        Owner.CALLER, False, "The program ended right after its start. The build's log ends with its last words."
    ),
    Reason.HEALTH_CHECK_FAILED: ReasonInfo(
        Owner.CALLER, False, "The program answered, but service.health_path did not return a 2xx in time."
    ),
    Reason.CANCELED_BY_USER: ReasonInfo(Owner.CALLER, True, "The build was canceled on request."),
    Reason.SUPERSEDED: ReasonInfo(
        Owner.CALLER, False, "A newer release of the service is live already. The artifact was kept."
    ),
    Reason.INTERNAL_ERROR: ReasonInfo(
        Owner.US, True, "Slipway itself failed. Retry the build; the log has the error under the build's id."
    ),
}
