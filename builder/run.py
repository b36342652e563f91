"""One run, from claim to report.

claim    whose run is it, and what is to be built
fetch    the source, unpacked under its limits, with the right digest
modules  what go.mod requires, from the proxy
compile  without network
image    one layer, reproducible
push     by digest, with a grant that is asked for only now
report   signed, until it was heard
"""

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from builder.compile import compile_program, used_modules
from builder.control import Control, Grant, Refused, Unreachable, trust
from builder.fetch import clear, fetch
from builder.guard import Ended, Guard, Why
from builder.image import assemble
from builder.logs import Log, Redactor, beat, flush, ship, why_refused
from builder.modules import fetch_modules, read_module
from builder.orders import Environment, Orders
from builder.outcome import EXITS, Exit, Failure, Reason
from builder.pace import Pace, seconds_until
from builder.push import push
from builder.report import Findings, exit_for, report
from builder.toolchain import find_toolchain


async def run(environment: Environment, terminated: asyncio.Event, pace: Pace | None = None) -> Exit:
    """Do the whole run and return its exit code; ``terminated`` ends it early, and ends the hold after it."""
    pace = pace or Pace()
    guard = Guard(environment.deadline)
    async with Control(environment, pace) as control:
        stopper = asyncio.create_task(_stop_when(terminated, guard))
        try:
            code = await _attend(environment, control, guard, terminated, pace)
        finally:
            guard.off()
            stopper.cancel()
    if environment.hold:
        await terminated.wait()
    return code


REPORTED = "reported"
"""The stage of a builder that holds, once its completion was taken."""


@dataclass(kw_only=True)
class _Run:
    """All that the stages share."""

    environment: Environment
    control: Control
    orders: Orders
    guard: Guard
    pace: Pace
    log: Log
    findings: Findings = field(default_factory=Findings)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage and say where we are; the time counts when it fails, too."""
        self.log.stage = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self.findings.timings[name] = time.perf_counter() - start


async def _build(run: _Run) -> None:
    """Go through the stages; each leaves what it found for the report."""
    environment, orders, findings = run.environment, run.orders, run.findings
    if orders.kind != "go":
        raise Failure(Reason.INTERNAL_ERROR, f"This builder does not build sources of kind {orders.kind!r}.")
    with run.stage("fetch"):
        await asyncio.to_thread(clear, environment.work)
        findings.toolchain = toolchain = await find_toolchain(environment)
        findings.fetched = fetched = await fetch(environment, run.control, orders, guard=run.guard, pace=run.pace)
    run.log.write(f"fetched {fetched.commit or fetched.digest}; {toolchain.version}, isolation {toolchain.isolation}")
    with run.stage("modules"):
        module = await read_module(environment, orders, toolchain, fetched.root)
        await fetch_modules(environment, orders, toolchain=toolchain, root=fetched.root, module=module, log=run.log)
    with run.stage("compile"):
        program = await compile_program(
            environment, orders, toolchain=toolchain, root=fetched.root, module=module, log=run.log
        )
        findings.modules = await used_modules(environment, toolchain, program)
    run.log.write(f"compiled {orders.package} for linux/{orders.goarch}: {program.stat().st_size} bytes")
    with run.stage("image"):
        image = await asyncio.to_thread(
            assemble,
            program,
            environment.work / "layer.tar.gz",
            goarch=orders.goarch,
            port=orders.port,
            created=orders.created,
            labels=orders.labels,
            most_bytes=orders.limits.image_bytes,
            check=run.guard.check,
        )
    with run.stage("push"):
        grant = await _grant(run)
        verify = trust(environment, grant.registry)
        async with httpx.AsyncClient(timeout=run.pace.timeout, verify=verify, trust_env=False) as client:
            await push(client, image, grant, lambda: _grant(run), run.pace)
    findings.image, findings.repository = image, grant.repository
    run.log.write(f"pushed {image.manifest.digest}: {image.size} bytes")


async def _grant(run: _Run) -> Grant:
    grant = await run.control.grant()
    run.log.redactor.add(grant.token)
    return grant


async def _attend(
    environment: Environment, control: Control, guard: Guard, terminated: asyncio.Event, pace: Pace
) -> Exit:
    """Claim, build, report; returns early when there is nothing to do or nobody to report to."""
    redactor = Redactor([environment.token, environment.token.rpartition(".")[2]])
    try:
        orders = await guard.over(control.claim())
    except (Refused, Unreachable, Ended) as error:
        sys.stderr.write(redactor.clean(f"slipway builder: no claim: {error}\n"))
        return exit_for(_why(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        sys.stderr.write(redactor.clean(f"slipway builder: the orders can't be read: {error!r}\n"))
        return Exit.BUILDER
    redactor.add(*orders.secrets)
    control.deadline = orders.deadline
    guard.move_deadline(orders.deadline)
    log = Log(redactor, line_bytes=orders.limits.log_line_bytes, most_bytes=orders.limits.log_bytes)
    run = _Run(environment=environment, control=control, orders=orders, guard=guard, pace=pace, log=log)
    try:
        failure = await _outcome(run)
    except (Refused, Ended) as error:
        return exit_for(_why(error))
    telling = asyncio.create_task(_tell(run, failure))
    return await _in_time(telling, terminated, control, EXITS[failure.reason] if failure else Exit.DONE)


async def _outcome(run: _Run) -> Failure | None:
    """Build, with logs and heartbeats on the side; returns the failure to report, None for success.

    Refused and Ended come through when there is nothing to report, or nobody to report it to.
    """
    senders = [
        asyncio.create_task(ship(run.log, run.control, run.guard)),
        asyncio.create_task(beat(run.log, run.control, run.guard, run.orders.heartbeat_seconds)),
    ]
    try:
        await run.guard.over(_build(run))
    except Failure as failure:
        return failure
    except (Ended, Unreachable) as error:
        if _why(error) is not Why.DEADLINE:
            raise
        return Failure(Reason.TIMEOUT, f"The build did not end in time; it was in its stage {run.log.stage!r}.")
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be reported
        for line in traceback.format_exc().splitlines():
            run.log.write(line)
        return Failure(Reason.INTERNAL_ERROR, f"The builder failed: {type(error).__name__}.")
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    return None


async def _tell(run: _Run, failure: Failure | None) -> Exit:
    if failure:
        run.log.write(f"failed: {failure}")
    await flush(run.log, run.control, run.pace)
    code = await report(
        run.control, run.environment, run.orders, findings=run.findings, failure=failure, redactor=run.log.redactor
    )
    if run.environment.hold and code is not Exit.UNTOLD:
        with contextlib.suppress(Refused, Unreachable, Ended):  # 410 as a rule: the report has ended the run
            await run.control.heartbeat(REPORTED)
    return code


async def _in_time(telling: asyncio.Task[Exit], terminated: asyncio.Event, control: Control, code: Exit) -> Exit:
    """Wait for the report until the deadline, or until we are told to go."""
    gone = asyncio.create_task(terminated.wait())
    try:
        await asyncio.wait(
            {telling, gone}, timeout=seconds_until(control.deadline), return_when=asyncio.FIRST_COMPLETED
        )
        if telling.done():
            return telling.result()
        return Exit.DEADLINE if code is Exit.DEADLINE else Exit.UNTOLD
    finally:
        for task in (telling, gone):
            task.cancel()
        await asyncio.gather(telling, gone, return_exceptions=True)


async def _stop_when(terminated: asyncio.Event, guard: Guard) -> None:
    await terminated.wait()
    guard.stop(Why.TERMINATED)


def _why(error: Refused | Unreachable | Ended) -> Why:
    if isinstance(error, Refused):
        return why_refused(error)
    return error.why if isinstance(error, Ended) else Why.DEADLINE
