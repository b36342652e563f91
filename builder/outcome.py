"""How a run can end: reasons, the failure that carries one, and the exit codes of the protocol page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypedDict


class Exit(IntEnum):
    """Exit codes of the builder; the platform sees nothing else."""

    DONE = 0
    SOURCE = 10
    NETWORK = 20
    BUILDER = 30
    CANCELED = 40
    DEADLINE = 50
    UNTOLD = 60


class Reason(StrEnum):
    """What a builder may give as the reason of a failure."""

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
    INTERNAL_ERROR = "internal_error"


EXITS: dict[Reason, Exit] = {
    Reason.SOURCE_FETCH: Exit.NETWORK,
    Reason.SOURCE_INVALID: Exit.SOURCE,
    Reason.SOURCE_REJECTED: Exit.SOURCE,
    Reason.NOT_A_PROGRAM: Exit.SOURCE,
    Reason.TOOLCHAIN_MISMATCH: Exit.SOURCE,
    Reason.COMPILE_ERROR: Exit.SOURCE,
    Reason.OUT_OF_MEMORY: Exit.SOURCE,
    Reason.PUSH_FAILED: Exit.NETWORK,
    Reason.REGISTRY_UNAVAILABLE: Exit.NETWORK,
    Reason.TIMEOUT: Exit.DEADLINE,
    Reason.INTERNAL_ERROR: Exit.BUILDER,
}


class Diagnostic(TypedDict):
    """One complaint of the toolchain; ``file`` is relative to the source, ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int | None
    message: str


@dataclass
class Failure(Exception):
    """The build can't go on; ``message`` is for the person who sent the source."""

    reason: Reason
    message: str
    diagnostics: Sequence[Diagnostic] = field(default=())

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Stopped(Exception):
    """The run was ended from outside; raised at checkpoints of work in threads."""
