"""Tell the control plane what came of the run, and turn it into an exit code."""

import json
from dataclasses import asdict, dataclass, field

from builder import __version__
from builder.compile import UsedModule
from builder.control import Control, Refused, Unreachable
from builder.fetch import Fetched
from builder.guard import Why
from builder.image import Image
from builder.logs import Redactor, why_refused
from builder.orders import Environment, Orders
from builder.outcome import EXITS, Diagnostic, Exit, Failure
from builder.toolchain import Toolchain

LONGEST_MESSAGE = 4000


@dataclass(kw_only=True)
class Findings:
    """What is known of the run so far; whatever goes wrong, this much can be reported."""

    fetched: Fetched | None = None
    toolchain: Toolchain | None = None
    modules: list[UsedModule] = field(default_factory=list)
    image: Image | None = None
    repository: str | None = None
    timings: dict[str, float] = field(default_factory=dict)


async def report(
    control: Control,
    environment: Environment,
    orders: Orders,
    *,
    findings: Findings,
    failure: Failure | None,
    redactor: Redactor,
) -> Exit:
    """Send the completion and return the exit code of what it says, or of why it could not be said."""
    code = EXITS[failure.reason] if failure else Exit.DONE
    body = completion(environment, orders, findings=findings, failure=failure, redactor=redactor)
    try:
        await control.complete(body)
    except Refused as error:
        return exit_for(why_refused(error))
    except Unreachable:
        return Exit.DEADLINE if code == Exit.DEADLINE else Exit.UNTOLD
    return code


def exit_for(why: Why) -> Exit:
    """Return the exit code of a run that was ended from outside."""
    return {
        Why.CANCELED: Exit.CANCELED,
        Why.TERMINATED: Exit.CANCELED,
        Why.DEADLINE: Exit.DEADLINE,
        Why.TAKEN: Exit.DONE,
        Why.REFUSED: Exit.UNTOLD,
    }[why]


def completion(
    environment: Environment, orders: Orders, *, findings: Findings, failure: Failure | None, redactor: Redactor
) -> bytes:
    """Return the body of the completion, cut down until it is within ``limits.completion_bytes``."""
    image, toolchain, fetched = findings.image, findings.toolchain, findings.fetched
    body: dict[str, object] = {
        "instance": environment.instance,
        "status": "failed" if failure else "succeeded",
        "reason": failure.reason.value if failure else None,
        "message": redactor.clean(failure.message)[:LONGEST_MESSAGE] if failure else None,
        "exit_code": int(EXITS[failure.reason] if failure else Exit.DONE),
        "image": None,
        "source": {"digest": fetched.digest, "commit": fetched.commit} if fetched else None,
        "toolchain": {
            "go": toolchain.version if toolchain else None,
            "goarch": orders.goarch,
            "builder": __version__,
        },
        "isolation": toolchain.isolation if toolchain else "none",
        "timings": {stage: round(seconds, 4) for stage, seconds in findings.timings.items()},
    }
    if image and not failure:
        body["image"] = {"repository": findings.repository, "digest": image.manifest.digest, "size": image.size}
    modules = [asdict(module) for module in findings.modules]
    diagnostics = [_clean(diagnostic, redactor) for diagnostic in (failure.diagnostics if failure else ())]
    diagnostics = diagnostics[: orders.limits.diagnostics]
    while True:
        raw = json.dumps({**body, "modules": modules, "diagnostics": diagnostics}, ensure_ascii=False).encode()
        if len(raw) <= orders.limits.completion_bytes or not (modules or diagnostics):
            return raw
        # The first diagnostics are the ones worth reading; modules can be read from the program again.
        modules, diagnostics = modules[: len(modules) // 2], diagnostics[: len(diagnostics) // 2]


def _clean(diagnostic: Diagnostic, redactor: Redactor) -> Diagnostic:
    return {
        "file": redactor.clean(diagnostic["file"]),
        "line": diagnostic["line"],
        "column": diagnostic["column"],
        "message": redactor.clean(diagnostic["message"]),
    }
