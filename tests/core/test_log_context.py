"""Every line says what it is about, without each call repeating it; no line has a secret."""

import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
import structlog
from pgqueuer.models import Job as QueueJob
from structlog.testing import capture_logs

from app import jobs, traces
from app.models import Build
from app.platforms.base import Misconfigured, Transient
from tests.support.platform import NAME
from tests.support.world import World

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Lines = list[MutableMapping[str, Any]]


async def work(here: World, job: str, row_id: str) -> Lines:
    """Run a job as the worker does; returns the lines it logged."""
    await here.forget_jobs()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        fields: Any = {"payload": f"{row_id}:0".encode()}
        await jobs.runners(here.context)[job](QueueJob.model_construct(**fields))
    assert structlog.contextvars.get_contextvars() == {}
    return lines


async def test_lines_of_jobs_and_requests_say_what_they_are_about(here: World) -> None:
    project, trace = (await here.sql("select id from project"))[0].id, traces.trace_id(CALLER)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = await here.http.post("/v1/builds", json=here.order("echo"), headers={"traceparent": CALLER})
        await here.http.get("/healthz")
        await here.http.get("/v1/builds/bld_none", headers={"traceparent": "nonsense"})
    build = await here.one(Build, id=answer.json()["id"])
    assert build.traceparent == CALLER
    posted, got = lines
    key_id = posted["key_id"]
    assert key_id.startswith("key_")
    about = {"project_id": project, "build_id": build.id, "service_id": build.service_id, "trace_id": trace}
    ms = posted.pop("ms")
    assert 0 < ms < 60_000
    assert posted == about | {
        "event": "request", "log_level": "info", "method": "POST", "route": "/v1/builds", "status": 202, "key_id": key_id,
    }  # fmt: skip
    assert (got["status"], got["build_id"]) == (404, "bld_none")
    assert len(got["trace_id"]) == 32
    assert got["trace_id"] != trace

    here.yard.misbehave("launch", Transient(NAME, "launch", "no answer"))
    (line,) = await work(here, "dispatch", build.id)
    run = await here.run_of(build)
    assert line["event"] == "launch will be tried again"
    assert {k: line[k] for k in (*about, "run_id", "job")} == about | {"run_id": run.id, "job": "dispatch"}

    await here.ago(build, "next_check_at")
    await work(here, "dispatch", build.id)
    builder = await here.builder(build)
    assert here.machine(run).spec.env["TRACEPARENT"] == CALLER
    await builder.finish()
    build = await here.one(Build, id=build.id)
    assert build.release_id is not None
    here.yard.misbehave("deploy", Misconfigured(NAME, "deploy", "no such organization"))
    (line,) = await work(here, "promote", build.release_id)
    assert line["event"] == "platform misconfigured"
    assert {k: line[k] for k in (*about, "release_id")} == about | {"release_id": build.release_id}
    assert here.key not in json.dumps(lines, default=str)


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (CALLER, CALLER),
        (f"01{CALLER[2:]}-more", CALLER),
        (f"{CALLER}-more", None),
        (f"01{CALLER[2:]}more", None),
        (CALLER.upper(), None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{'a' * 32}-{'0' * 16}-01", None),
        (f"ff{CALLER[2:]}", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_traceparent_is_handed_on(header: str | None, kept: str | None) -> None:
    assert traces.parse(header) == kept
    assert traces.parse(traces.new()) is not None


async def test_a_request_s_lines_are_its_own(here: World) -> None:
    structlog.contextvars.bind_contextvars(outer="kept")
    try:
        response: httpx.Response = await here.http.get("/v1/builds")
        assert response.status_code == 200
        assert structlog.contextvars.get_contextvars() == {"outer": "kept"}
    finally:
        structlog.contextvars.clear_contextvars()
