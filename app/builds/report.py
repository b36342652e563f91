"""The builder's side: claim, logs, heartbeats, push grant, and the completion that ends a run.

A run token opens one run and nothing else. The first instance that claims a run holds it. Everything is safe to repeat: the
builder retries until it is told off.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app import faults, outbox, store
from app.builds import slots, sources
from app.builds.ending import ANOTHER_TRY, end_run, lock, requeue
from app.context import Context
from app.db import moment, reading
from app.errors import Refusal, conflict, forbidden, invalid, unauthorized, unavailable
from app.ids import is_id, new_id
from app.images.access import PushGrant
from app.images.errors import ImageInvalid, ImageNotFound, RegistryError
from app.images.inspect import ImageInfo, check_runnable
from app.lifecycle import BuildStatus, Reason, RunStatus, is_terminal
from app.models import Artifact, Build, Run, RunLog, Service
from app.services.release import create_release

log = structlog.get_logger()

HEARTBEAT_SECONDS = 10.0
SKEW_SECONDS = 300
LATE_LOG_SECONDS = 600
GRANT_TTL = timedelta(minutes=10)
INSPECT_SECONDS = 60
BUILDER_REASONS = frozenset(
    {
        Reason.SOURCE_FETCH,
        Reason.SOURCE_INVALID,
        Reason.SOURCE_REJECTED,
        Reason.NOT_A_PROGRAM,
        Reason.TOOLCHAIN_MISMATCH,
        Reason.COMPILE_ERROR,
        Reason.OUT_OF_MEMORY,
        Reason.PUSH_FAILED,
        Reason.REGISTRY_UNAVAILABLE,
        Reason.TIMEOUT,
        Reason.INTERNAL_ERROR,
    }
)


class Lenient(BaseModel):
    """From a builder: fields that we don't know yet are ignored, so that a newer builder can talk to us."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _without_nul(value: object) -> object:
    """What a compiler prints may hold NUL, which PostgreSQL takes neither as text nor in JSON."""
    return value.replace("\x00", "�") if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_without_nul)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class BuiltImage(Lenient):
    """Where the image was pushed."""

    repository: Text = Field(max_length=255)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: Count


class BuiltSource(Lenient):
    """What was really built."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")


class Diagnostic(Lenient):
    """One message of the compiler."""

    file: Text = Field("", max_length=1024)
    line: Count | None = None
    column: Count | None = None
    message: Text = Field(max_length=4096)


class Module(Lenient):
    """One module that was compiled in."""

    path: Text = Field(max_length=1024)
    version: Text = Field("", max_length=256)
    sum: Text | None = Field(None, max_length=256)


class Completion(Lenient):
    """A builder's last word."""

    instance: str = Field(min_length=1, max_length=128)
    status: Literal["succeeded", "failed"]
    reason: str | None = Field(None, max_length=64)
    message: Text | None = Field(None, max_length=16384)
    exit_code: int | None = Field(None, ge=-(2**31), lt=2**31)
    image: BuiltImage | None = None
    source: BuiltSource | None = None
    toolchain: dict[Text, Text] = Field(default_factory=dict)
    isolation: Literal["netns", "goproxy_off", "none"] | None = None
    modules: list[Module] = Field(default_factory=list, max_length=2000)
    diagnostics: list[Diagnostic] = Field(default_factory=list, max_length=200)
    timings: dict[Text, FiniteFloat] = Field(default_factory=dict)


# --------------------------------------------------------------------------------------------------- who is calling


async def authenticate(context: Context, session: AsyncSession, run_id: str, token: str) -> Run:
    """Return the run that the token opens. 401: no good token; 403: a good token of another run."""
    _, _, rest = token.partition("slr.")
    owner, _, _ = rest.partition(".")
    if not is_id(owner, "run"):
        raise unauthorized("Send the run's token as `Authorization: Bearer slr.…`.")
    run = await session.get(Run, owner)
    if run is None or run.key_id not in context.keyring.keys:
        raise unauthorized("This run token is not valid.")
    good = context.keyring.run_token(owner, run.key_id)
    if not hmac.compare_digest(good.encode(), token.encode()):
        raise unauthorized("This run token is not valid.")
    if owner != run_id:
        raise forbidden("This run token belongs to another run.", reason="foreign_run")
    return run


def over(run: Run) -> Refusal:
    """410: the run has ended, so there is nothing left for its builder to do."""
    return Refusal(410, "run_over", f"Run {run.id} is {run.status}; stop and exit.")


def _holds(run: Run, instance: str) -> None:
    if is_terminal(run.status):
        raise over(run)
    if run.instance != instance:
        raise conflict("run_not_yours", f"Run {run.id} is held by another instance; exit without doing anything.")


# --------------------------------------------------------------------------------------------------- while it works


async def claim(context: Context, session: AsyncSession, run: Run, instance: str) -> dict[str, Any]:
    """Give the run to the first instance that asks and return its orders; the same instance may ask again."""
    if is_terminal(run.status):
        raise over(run)
    build, run = await lock(session, run.id)
    if is_terminal(run.status):
        raise over(run)
    if run.instance is None:
        # The caller's time-out begins now: pulling an image or making a seed is not the build's fault.
        until = func.least(Run.deadline_at, func.now() + timedelta(seconds=build.spec["builder"]["timeout_seconds"]))
        values: dict[str, Any] = {
            "instance": instance,
            "claimed_at": func.now(),
            "heartbeat_at": func.now(),
            "deadline_at": until,
        }
        await store.move(session, run, RunStatus.RUNNING, event={"instance": instance}, **values)
        outbox.mark(session, "claim.committed")
        if build.status == BuildStatus.DISPATCHING:
            await store.move(session, build, BuildStatus.BUILDING, next_check_at=None)
    elif run.instance != instance:
        raise conflict("run_claimed", f"Run {run.id} is held by another instance; exit without doing anything.")
    return orders(context, build, run)


def orders(context: Context, build: Build, run: Run) -> dict[str, Any]:
    """Return what the builder shall do; see ``docs/builder-protocol.md``."""
    settings = context.settings
    source = {k: v for k, v in build.source.items() if k != "files"}
    return {
        "run_id": run.id,
        "build_id": build.id,
        "kind": build.spec["build"]["kind"],
        "source": source,
        "build": {"package": build.spec["build"]["package"], "goarch": build.spec["build"]["goarch"]},
        "modules": {"goproxy": settings.goproxy, "gosumdb": settings.gosumdb},
        "image": {
            "repository": context.images.repository_for_run(run.id),
            "port": (build.config or {}).get("port", 8080),
            "created": 0,
            "labels": {},
        },
        "limits": {
            "source_bytes": settings.max_source_bytes,
            "unpacked_bytes": settings.max_unpacked_bytes,
            "files": settings.max_source_files,
            "image_bytes": settings.max_image_bytes,
            "log_bytes": settings.max_log_bytes,
            "log_line_bytes": settings.max_log_line_bytes,
            "completion_bytes": settings.max_completion_bytes,
            "diagnostics": 200,
        },
        "allow_hosts": list(settings.allow_hosts),
        "deadline": run.deadline_at.timestamp(),
        "heartbeat_seconds": HEARTBEAT_SECONDS,
    }


async def source(context: Context, session: AsyncSession, run: Run) -> AsyncIterator[bytes]:
    """Return the archive of the run's source, to be streamed after the session has ended."""
    if is_terminal(run.status):
        raise over(run)
    build = await session.get(Build, run.build_id)
    assert build is not None
    if build.source["kind"] != "archive":
        raise conflict("source_not_kept", "The source of this run comes from git; fetch it there.")
    return sources.read(context.sessions, build.project_id, build.source["digest"])


async def heartbeat(session: AsyncSession, run: Run, instance: str, stage: str | None) -> dict[str, Any]:
    """Note that the builder lives; tell it to stop when its build no longer wants it."""
    _holds(run, instance)
    values: dict[str, Any] = {"heartbeat_at": func.now()} | ({"stage": stage} if stage else {})
    await session.execute(update(Run).where(Run.id == run.id).values(**values))
    return {"cancel": False, "deadline": run.deadline_at.timestamp()}


async def add_logs(
    context: Context, session: AsyncSession, run: Run, instance: str, seq: int, lines: list[Any]
) -> None:
    """Keep a batch of lines; those already taken are dropped, and past the run's limit one mark is all that is added.

    After the end of the run the tail is still taken for ten minutes.
    """
    if run.finished_at is not None:
        closed = moment(run.finished_at) < func.now() - timedelta(seconds=LATE_LOG_SECONDS)
        if (await session.execute(select(closed))).scalar_one():
            raise over(run)
        if run.instance != instance:
            raise conflict("run_not_yours", f"Run {run.id} is held by another instance.")
    else:
        _holds(run, instance)
    await session.refresh(run, with_for_update=True)
    fresh = lines[max(0, run.log_next - seq) :]
    first = max(seq, run.log_next)
    kept: list[dict[str, Any]] = []
    size, limit = run.log_bytes, context.settings.max_log_bytes
    for line in fresh:
        text = _cut(line["m"], context.settings.max_log_line_bytes)
        if size > limit:
            break
        size += len(text.encode("utf-8", "replace"))
        if size > limit:
            kept.append({"t": line["t"], "s": "builder", "m": f"[the log is cut here: over {limit} bytes]"})
            break
        kept.append({"t": line["t"], "s": line["s"], "m": text})
    if kept:
        await session.execute(upsert(RunLog).values(run_id=run.id, number=first, lines=kept).on_conflict_do_nothing())
    run.log_bytes, run.log_next = size, max(run.log_next, seq + len(lines))
    run.heartbeat_at = func.now()


def _cut(text: str, limit: int) -> str:
    text = text.replace("\x00", "�").encode("utf-8", "replace").decode("utf-8")
    if len(text.encode()) <= limit:
        return text
    mark = " …[cut]"
    return text.encode()[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark


async def push_grant(context: Context, run: Run, instance: str) -> PushGrant:
    """Return pull and push on the run's own repository, for minutes."""
    _holds(run, instance)
    remote = context.catalog.entries[run.platform].traits.remote
    repository = context.images.repository_for_run(run.id)
    try:
        return await context.images.push_grant(repository, remote=remote, ttl=GRANT_TTL)
    except RegistryError as e:
        log.warning("no push grant", run_id=run.id, error=str(e))
        raise unavailable("The registry does not answer; try again.", reason="registry_unavailable") from e


# --------------------------------------------------------------------------------------------------- the end


def verify_signature(token: str, message_id: str, timestamp: str, signature: str, body: bytes) -> None:
    """Check a completion's Standard Webhooks signature; 401 when it isn't good or its time is off.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    try:
        skew = abs(time.time() - int(timestamp))
    except ValueError:
        raise unauthorized("webhook-timestamp must be Unix seconds.") from None
    if skew > SKEW_SECONDS:
        raise unauthorized(f"webhook-timestamp is {skew:.0f} seconds off; at most {SKEW_SECONDS} are taken.")
    signed = f"{message_id}.{timestamp}.".encode() + body
    good = "v1," + base64.b64encode(hmac.digest(token.encode(), signed, hashlib.sha256)).decode()
    if not any(hmac.compare_digest(good.encode(), s.encode()) for s in signature.split()):
        raise unauthorized("webhook-signature does not match.")


async def complete(context: Context, run_id: str, message_id: str, completion: Completion) -> dict[str, Any]:
    """End a run as its builder reports it; returns the recorded answer to a repeated report.

    On success the image is checked in the registry first, outside any transaction; the artifact, both moves, the release
    and the next job are then one transaction. Raises 503 while the registry does not answer: the builder tries again.
    """
    async with reading(context.sessions) as session:
        pair = select(Build, Run).join(Run, Run.build_id == Build.id).where(Run.id == run_id)
        build, run = (await session.execute(pair)).one()
        if (answer := _known_answer(run, message_id)) is not None:
            return answer
        if run.instance != completion.instance:
            raise conflict("run_not_yours", f"Run {run.id} is held by another instance.")
    reason, message, info = _verdict(completion), completion.message, None
    if completion.status == "succeeded":
        info, problem = await _inspect(context, build, run, completion)
        if problem:
            reason, message = Reason.PUSH_FAILED, problem
    faults.at("report.inspected")
    async with context.sessions.begin() as session:
        service = await session.get(Service, build.service_id, with_for_update=True) if build.service_id else None
        build, run = await lock(session, run_id)
        if (answer := _known_answer(run, message_id)) is not None:
            return answer
        if info is not None:
            await _succeed(context, session, service, build, run, completion, info)
        else:
            await _failed(context, session, build, run, completion, reason or Reason.INTERNAL_ERROR, message)
        answer = {"accepted": True, "build_id": build.id, "build_status": str(build.status)}
        run.completion_id, run.completion_answer = message_id, answer
    faults.at("report.committed")
    return answer


def _known_answer(run: Run, message_id: str) -> dict[str, Any] | None:
    if run.completion_id == message_id and run.completion_answer is not None:
        return run.completion_answer
    if is_terminal(run.status):
        return {"accepted": False, "build_id": run.build_id, "build_status": None}
    return None


def _verdict(completion: Completion) -> Reason | None:
    if completion.status == "succeeded":
        if completion.image is None or completion.source is None:
            raise invalid("image", "a successful completion names image and source")
        return None
    try:
        reason = Reason(completion.reason or "")
    except ValueError:
        return Reason.INTERNAL_ERROR
    return reason if reason in BUILDER_REASONS else Reason.INTERNAL_ERROR


async def _inspect(
    context: Context, build: Build, run: Run, completion: Completion
) -> tuple[ImageInfo | None, str | None]:
    """Read the image from the run's own repository; return it, or what is wrong with it."""
    assert completion.image is not None
    assert completion.source is not None
    repository = context.images.repository_for_run(run.id)
    if completion.image.repository != repository:
        return None, f"The image was reported in {completion.image.repository!r}, not in the run's own repository."
    expected = build.source.get("digest")
    if expected and completion.source.digest != expected:
        return None, f"The builder built source {completion.source.digest}, but {expected} was ordered."
    commit = build.source.get("commit")
    if commit and completion.source.commit != commit:
        return None, f"The builder built commit {completion.source.commit}, but {commit} was fixed by the first run."
    try:
        async with asyncio.timeout(INSPECT_SECONDS):
            await context.images.land(repository, completion.image.digest)
            info = await context.images.inspect(repository, completion.image.digest)
            check_runnable(info, goarch=build.spec["build"]["goarch"], max_bytes=context.settings.max_image_bytes)
    except (ImageInvalid, ImageNotFound) as e:
        return None, f"The image is not what was reported: {e}"
    except (RegistryError, OSError) as e:  # OSError: a time-out, or the embedded registry's disk
        log.warning("image can't be inspected", run_id=run.id, error=str(e) or type(e).__name__)
        raise unavailable("The registry does not answer; try again.", reason="registry_unavailable") from e
    return info, None


async def _succeed(
    context: Context,
    session: AsyncSession,
    service: Service | None,
    build: Build,
    run: Run,
    completion: Completion,
    info: ImageInfo,
) -> None:
    assert completion.source is not None
    await end_run(
        context, session, run, RunStatus.SUCCEEDED,
        timings=completion.timings, isolation=completion.isolation, exit_code=completion.exit_code,
    )  # fmt: skip
    artifact = Artifact(
        id=new_id("art"),
        project_id=build.project_id,
        repository=context.images.repository_for_run(run.id),
        digest=info.digest,
        size_bytes=info.size,
        source_digest=completion.source.digest,
        source_commit=completion.source.commit,
        goarch=build.spec["build"]["goarch"],
        toolchain=completion.toolchain,
        isolation=completion.isolation,
        sbom=sbom(completion),
        run_id=run.id,
    )
    session.add(artifact)
    await session.flush()
    values: dict[str, Any] = {"artifact_id": artifact.id, "message": None, "source_digest": completion.source.digest}
    if build.source["kind"] == "git":
        found = {"commit": completion.source.commit, "digest": completion.source.digest}
        values["source"] = build.source | found
    if service is None:
        await store.move(session, build, BuildStatus.SUCCEEDED, **values)
    else:
        release_id = new_id("rel")
        if await store.move(session, build, BuildStatus.PROMOTING, next_check_at=None, release_id=release_id, **values):
            await create_release(
                context, session, service, kind="build", artifact=artifact, build=build, release_id=release_id
            )
    await slots.freed(context, session, run.platform)


async def _failed(
    context: Context,
    session: AsyncSession,
    build: Build,
    run: Run,
    completion: Completion,
    reason: Reason,
    message: str | None,
) -> None:
    text = store.explain(reason, message)
    await end_run(
        context, session, run, RunStatus.FAILED, message=text, reason=reason,
        timings=completion.timings, isolation=completion.isolation, exit_code=completion.exit_code,
        out_of_memory=reason is Reason.OUT_OF_MEMORY,
    )  # fmt: skip
    diagnostics = [d.model_dump() for d in completion.diagnostics]
    if reason in ANOTHER_TRY:
        await requeue(context, session, build, reason, text, delay=2)
    else:
        await store.fail(session, build, reason, text, diagnostics=diagnostics)
    await slots.freed(context, session, run.platform)


def sbom(completion: Completion) -> dict[str, Any]:
    """Return the modules compiled in as CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/)."""
    components = [
        {
            "type": "library",
            "name": m.path,
            "version": m.version,
            "purl": f"pkg:golang/{m.path}@{m.version}",
        }
        for m in completion.modules
    ]
    toolchain = completion.toolchain.get("go", "")
    components.append(
        {
            "type": "library",
            "name": "std",
            "version": toolchain,
            "purl": f"pkg:golang/std@{toolchain.removeprefix('go')}",
        }
    )
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}
