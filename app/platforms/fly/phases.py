"""From a machine's record to what it means (fly.md §3 States and Events, §6 Status mapping)."""

import re

from app.platforms.base import Address, Inspection, Phase
from app.platforms.fly.answers import Machine

_COMING = frozenset({"created", "creating", "starting", "restarting", "replacing", "updating"})
_DEAD = frozenset({"failed", "launch_failed"})
_DOWN = frozenset({"stopped", "suspended", "stopping", "suspending"})
CRASHES = 2
"""A program that crashed so often in a row is not coming up; once may be bad luck."""
_STATUS = re.compile(r"\b[1-5]\d\d\b")


def builder(machine: Machine) -> Inspection:
    """Look at a builder: it ends once. What was stopped by us is gone, as is a record that does not tell how it ended."""
    state, exit_ = machine.state, next(iter(machine.exits()), None)
    if exit_ is not None and not exit_.requested_stop and (machine.gone or state in _DOWN | _DEAD):
        failed = exit_.crashed
        return Inspection(
            phase=Phase.FAILED if failed else Phase.EXITED,
            handle=machine.id,
            region=machine.region,
            exit_code=exit_.exit_code,
            out_of_memory=bool(exit_.oom_killed),
            message="It was ended for using too much memory." if exit_.oom_killed else None,
        )
    if machine.gone:
        return Inspection(phase=Phase.GONE)
    if state in _DEAD:
        phase = Phase.FAILED
    elif state in {"stopped", "suspended"}:
        phase = Phase.EXITED
    else:
        phase = Phase.STARTING if state in _COMING else Phase.RUNNING
    return Inspection(phase=phase, handle=machine.id, region=machine.region)


def service(machine: Machine, url: str, *, after: str | None = None) -> Inspection:
    """Look at a release. ``after`` is the event from which on crashes count.

    ``address`` is there once the program listens: its check passes, or has an HTTP status to complain about.
    """
    if machine.gone:
        return Inspection(phase=Phase.GONE)
    exits = machine.exits(after)
    crashes = next((n for n, e in enumerate(exits) if not e.crashed), len(exits))
    seen = Inspection(phase=Phase.STARTING, handle=None, region=machine.region)
    if machine.state == "started":
        passing = all(c.status == "passing" for c in machine.checks)
        output = next((c.output for c in machine.checks if c.status != "passing" and c.output), None)
        listens = passing or (output is not None and _STATUS.search(output) is not None)
        address = Address(url=url, instance_id=machine.started) if listens else None
        if listens or crashes < CRASHES:
            phase = Phase.RUNNING if listens else Phase.STARTING
            return _with(seen, phase=phase, address=address, healthy=passing, message=output)
    elif machine.state in _DOWN:
        if not crashes:
            return _with(seen, phase=Phase.ASLEEP)
        if machine.state in {"stopping", "suspending"}:
            return _with(seen, phase=Phase.STARTING)
    elif machine.state not in _DEAD and crashes < CRASHES:
        return seen
    last = exits[0] if exits else None
    return _with(
        seen,
        phase=Phase.FAILED,
        exit_code=last.exit_code if last else None,
        out_of_memory=bool(last and last.oom_killed),
        message=f"The program ended with code {last.exit_code}." if last else f"The machine is {machine.state}.",
    )


def _with(seen: Inspection, **changes: object) -> Inspection:
    values = {"handle": seen.handle, "region": seen.region, **changes}
    return Inspection(**values)  # type: ignore[arg-type]
