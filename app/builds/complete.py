"""The builder's last word: a signed completion, checked against the registry, that ends its run and moves its build on."""

import asyncio
from typing import Any

import structlog

from app import faults, logs, metrics, sql, store
from app.builds import cache, reuse, slots
from app.builds.caller import Caller
from app.builds.completion import Completion, sbom, verdict
from app.builds.ending import ANOTHER_TRY, end_run, go_on, lock_all, look, requeue
from app.context import Context
from app.db import transaction
from app.errors import conflict, unavailable
from app.ids import new_id
from app.images.errors import ImageInvalid, ImageNotFound, RegistryError
from app.images.inspect import ImageInfo, check_runnable
from app.lifecycle import BuildStatus, Reason, RunStatus, is_terminal
from app.models import Artifact, Build, Run, Service
from app.sql import Session

log = structlog.get_logger()

INSPECT_SECONDS = 60


async def complete(context: Context, caller: Caller, message_id: str, completion: Completion) -> dict[str, Any]:
    """End a run as its builder reports it; returns the recorded answer to a repeated report.

    On success the image is checked in the registry first, outside any transaction; the artifact, both moves, the release
    and the next job are then one transaction. Raises 503 while the registry does not answer: the builder tries again.
    """
    build, run, _ = await look(context.pool, caller.run_id) or (None, None, None)
    run = caller.is_of(run)
    assert build is not None
    logs.about(build, run)
    if (answer := _known_answer(run, message_id)) is not None:
        return answer
    if run.instance != completion.instance:
        raise conflict("run_not_yours", f"Run {run.id} is held by another instance.")
    reason, message, info = verdict(completion), completion.message, None
    if completion.status == "succeeded":
        info, problem = await _inspect(context, build, run, completion)
        if problem:
            reason, message = Reason.PUSH_FAILED, problem
    faults.at("report.inspected")
    async with transaction(context.pool) as session:
        locked = await lock_all(session, run.id)
        assert locked is not None  # a run with its machine at work is not removed
        service, build, run = locked
        if (answer := _known_answer(run, message_id)) is not None:
            return answer
        if info is not None:
            answer = _accepted(build, BuildStatus.PROMOTING if service else BuildStatus.SUCCEEDED)
            kept = {"completion_id": message_id, "completion_answer": answer}
            await _succeed(context, session, service, build, run, completion, info, kept)
        else:
            await _failed(context, session, build, run, completion, reason or Reason.INTERNAL_ERROR, message)
            answer = _accepted(build, build.status)
            await sql.update(session, Run, {"id": run.id}, completion_id=message_id, completion_answer=answer)
    metrics.builder_stages(completion.timings)
    faults.at("report.committed")
    return answer


def _accepted(build: Build, status: BuildStatus) -> dict[str, Any]:
    return {"accepted": True, "build_id": build.id, "build_status": str(status)}


def _known_answer(run: Run, message_id: str) -> dict[str, Any] | None:
    if run.completion_id == message_id and run.completion_answer is not None:
        return run.completion_answer
    if is_terminal(run.status):
        return {"accepted": False, "build_id": run.build_id, "build_status": None}
    return None


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
        log.warning("image can't be inspected", error=str(e) or type(e).__name__)
        raise unavailable("The registry does not answer; try again.", reason="registry_unavailable") from e
    return info, None


async def _succeed(
    context: Context,
    session: Session,
    service: Service | None,
    build: Build,
    run: Run,
    completion: Completion,
    info: ImageInfo,
    kept: dict[str, Any],
) -> None:
    assert completion.source is not None
    await end_run(
        context, session, build, run, RunStatus.SUCCEEDED,
        timings=completion.timings, isolation=completion.isolation, exit_code=completion.exit_code, along=True, **kept,
    )  # fmt: skip
    artifact = await sql.insert(
        session,
        Artifact,
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
        cache_key=run.toolchain and cache.key(build.spec, build.config, completion.source.digest, run.toolchain),
    )
    values: dict[str, Any] = {"source_digest": completion.source.digest}
    if build.source["kind"] == "git":
        found = {"commit": completion.source.commit, "digest": completion.source.digest}
        values["source"] = build.source | found
    await go_on(context, session, service, build, artifact, **values)
    await reuse.left(session, build)
    await slots.freed(context, session, run.platform, run.project_id)


async def _failed(
    context: Context,
    session: Session,
    build: Build,
    run: Run,
    completion: Completion,
    reason: Reason,
    message: str | None,
) -> None:
    text = store.explain(reason, message)
    await end_run(
        context, session, build, run, RunStatus.FAILED, message=text, reason=reason,
        timings=completion.timings, isolation=completion.isolation, exit_code=completion.exit_code,
        out_of_memory=reason is Reason.OUT_OF_MEMORY,
    )  # fmt: skip
    diagnostics = [d.model_dump() for d in completion.diagnostics]
    if reason in ANOTHER_TRY:
        await requeue(context, session, build, reason, text, delay=2)
    else:
        await store.fail(session, build, reason, text, diagnostics=diagnostics)
    await reuse.left(session, build)
    await slots.freed(context, session, run.platform, run.project_id)
