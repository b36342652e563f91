"""One build is one tree of spans, as a collector gets them; without a collector there is nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from structlog.testing import capture_logs

from app import traces, tracing
from app.models import Build
from app.platforms.base import Misconfigured, Phase, Rejected
from app.platforms.http import JsonApi
from tests.support.platform import NAME
from tests.support.receiver import Receiver, receiver
from tests.support.world import world
from tests.webhooks.conftest import hooks_in

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "not-for-collectors"


def received(collector: Receiver) -> list[Span]:
    spans = []
    for request in collector.got:
        assert request.path == "/v1/traces"
        assert request.headers["content-type"] == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(request.body)
        for resource in sent.resource_spans:
            assert {"service.name": "slipway"}.items() <= told(resource.resource).items()
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    return spans


def told(of: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


async def far() -> None:
    """Ask a platform over HTTP, as its client does."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={}))
    api = JsonApi("far", "https://api.example", headers={"Authorization": SECRET}, transport=transport)
    await api.call("list things", "GET", "/things", params={"token": SECRET})
    await api.aclose()


async def test_one_build_is_one_tree(database_url: str, tmp_path: Path) -> None:
    async with receiver() as collector:
        collector.answer = lambda request: (200, {}, b"")
        endpoint = collector.url.removesuffix("hook")
        async with hooks_in(database_url, tmp_path, otlp_endpoint=endpoint) as hooks:
            here = hooks.here
            added = await here.http.post(
                "/v1/webhooks",
                json={"url": f"{hooks.receiver.url}?{SECRET}"},
                headers={"traceparent": f"{CALLER[:-2]}00"},
            )
            assert added.status_code == 201, added.text
            order = here.order("echo", secrets={"TOKEN": SECRET})
            answer = await here.http.post("/v1/builds", json=order, headers={"traceparent": CALLER})
            build = await here.one(Build, id=answer.json()["id"])
            assert build.traceparent is not None
            assert traces.trace_id(build.traceparent) == traces.trace_id(CALLER)
            await here.jobs()
            run = await here.run_of(build)
            builder = await here.builder(build)
            builder.http.headers["traceparent"] = here.machine(run).spec.env["TRACEPARENT"]
            await builder.finish()
            del builder.http.headers["traceparent"]
            await here.jobs()
            with tracing.span("platform", build):
                await far()
            await far()
            await hooks.ended()
            run, build = await here.run_of(build), await here.one(Build, id=build.id)
            assert build.status == "succeeded"
            await here.http.get("/healthz")
            await here.http.get(f"/v1/builds/{build.id}", headers={"traceparent": "nonsense"})
        assert not any(SECRET.encode() in request.body for request in collector.got)
        spans = received(collector)
    of_build = [r for r in hooks.receiver.got if r.kind.startswith("build.")]
    assert {r.headers["traceparent"] for r in of_build} == {build.traceparent}
    (alone,) = (s for s in spans if s.trace_id.hex() != traces.trace_id(CALLER))
    assert (alone.name, alone.parent_span_id) == ("GET /v1/builds/{build_id}", b"")
    spans.remove(alone)
    names = {s.span_id: s.name for s in spans}
    assert len(names) == len(spans)
    (root,) = (s for s in spans if s.parent_span_id.hex() == CALLER[36:52])
    assert (root.name, root.kind) == ("POST /v1/builds", Span.SPAN_KIND_SERVER)
    assert build.traceparent == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    below = {(names[s.parent_span_id], s.name) for s in spans if s is not root}
    assert below >= {
        (root.name, "dispatch"), ("dispatch", "launch"), (root.name, "POST /v1/runs/{run_id}/claim"),
        (root.name, "POST /v1/runs/{run_id}/complete"), (root.name, "run"), ("run", "builder compile"),
        (root.name, "promote"), ("promote", "bring-up"), ("bring-up", "deploy"), ("bring-up", "health gate"),
        ("promote", "activate"), ("promote", "switch"), (root.name, "webhook"), ("platform", "far list things"),
    }  # fmt: skip
    assert all(s.end_time_unix_nano >= s.start_time_unix_nano > 0 and s.status.code == 0 for s in spans)
    by = {s.name: s for s in spans}
    assert run.finished_at is not None
    assert by["run"].start_time_unix_nano == pytest.approx(run.created_at.timestamp() * 1e9, abs=1e4)
    assert by["run"].end_time_unix_nano == pytest.approx(run.finished_at.timestamp() * 1e9, abs=1e9)
    assert by["builder compile"].end_time_unix_nano <= by["run"].end_time_unix_nano
    about = {"slipway.build_id": build.id, "slipway.run_id": run.id, "slipway.platform": NAME}
    assert about.items() <= told(by["run"]).items()
    assert about.items() <= told(by["dispatch"]).items()
    assert told(by["promote"])["slipway.release_id"] == build.release_id
    assert told(by["webhook"])["http.response.status_code"] == 204


async def test_a_failure_is_told_by_its_reason(database_url: str, tmp_path: Path) -> None:
    async with receiver() as collector:
        collector.answer = lambda request: (200, {}, b"")
        async with world(database_url, tmp_path, otlp_endpoint=collector.url.removesuffix("/hook")) as here:
            await here.built("echo")
            here.yard.misbehave("deploy", Misconfigured(NAME, "deploy", SECRET))
            await here.jobs()
        by = {s.name: s for s in received(collector)}
        assert not any(SECRET.encode() in request.body for request in collector.got)
    assert by["deploy"].status.code == Status.STATUS_CODE_ERROR
    assert told(by["deploy"])["error.type"] == "Misconfigured"
    assert told(by["promote"])["slipway.reason"] == "platform_misconfigured"


async def test_a_run_that_nobody_reported_is_told_too(database_url: str, tmp_path: Path) -> None:
    async with receiver() as collector:
        collector.answer = lambda request: (200, {}, b"")
        async with world(database_url, tmp_path, otlp_endpoint=collector.url.removesuffix("/hook")) as here:
            canceled, lost = await here.submit(), await here.submit()
            await here.jobs()
            await here.http.post(f"/v1/builds/{canceled.id}/cancel")
            await (await here.builder(lost)).claim()
            run = await here.run_of(lost)
            here.machine(run).phase = Phase.EXITED
            for column in ("heartbeat_at", "launched_at", "claimed_at", "next_check_at"):
                await here.ago(run, column, 3600)
            await here.reconcile()
            here.yard.misbehave("launch", Rejected(NAME, "launch", SECRET))
            refused = await here.submit()
            await here.jobs()
        assert not any(SECRET.encode() in request.body for request in collector.got)
        spans = received(collector)
    ids = {s.span_id: s for s in spans}
    found = {told(s)["slipway.build_id"]: s for s in spans if s.name == "run"}
    for build, status, reason in (
        (canceled, "canceled", "canceled_by_user"),
        (lost, "lost", "builder_lost"),
        (refused, "failed", "platform_rejected"),
    ):
        span = found[build.id]
        assert {"slipway.status": status, "slipway.reason": reason}.items() <= told(span).items()
        assert ids[span.parent_span_id].name == "POST /v1/builds"
        assert span.end_time_unix_nano > span.start_time_unix_nano > 0


async def test_a_release_that_no_build_made_is_in_the_trace_of_its_request(database_url: str, tmp_path: Path) -> None:
    async with receiver() as collector:
        collector.answer = lambda request: (200, {}, b"")
        endpoint = collector.url.removesuffix("/hook")
        async with hooks_in(database_url, tmp_path, otlp_endpoint=endpoint) as hooks:
            here = hooks.here
            build, _, _ = await here.deployed("echo")
            await hooks.add(events=["release.live"])
            for method, path, body in (
                ("PATCH", "", {"env": {"A": "1"}}),
                ("POST", "/releases", {"artifact_id": build.artifact_id}),
                ("POST", "/rollback", {}),
            ):
                answer = await here.http.request(method, f"/v1/services/echo{path}", json=body)
                assert answer.status_code == 202, answer.text
                await here.jobs()
            await hooks.ended()
        spans = received(collector)
    names = {s.span_id: s.name for s in spans}
    promoted = [names[s.parent_span_id] for s in spans if s.name == "promote"]
    assert promoted == [
        "POST /v1/builds", "PATCH /v1/services/{name}", "POST /v1/services/{name}/releases",
        "POST /v1/services/{name}/rollback",
    ]  # fmt: skip
    traced = {s.trace_id.hex() for s in spans if s.name == "promote"}
    assert len(traced) == 4
    assert {traces.trace_id(r.headers["traceparent"]) for r in hooks.receiver.got} < traced


async def test_a_trace_that_its_caller_does_not_record_has_no_spans(database_url: str, tmp_path: Path) -> None:
    async with receiver() as collector:
        collector.answer = lambda request: (200, {}, b"")
        async with world(database_url, tmp_path, otlp_endpoint=collector.url.removesuffix("hook")) as here:
            headers = {"traceparent": f"{CALLER[:-2]}00"}
            assert (await here.http.get("/v1/builds", headers=headers)).status_code == 200
    assert collector.got == []


async def test_a_collector_that_is_away_costs_nothing_but_spans(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    async with receiver() as gone:
        endpoint = gone.url.removesuffix("/hook")
    async with world(database_url, tmp_path, otlp_endpoint=endpoint) as here:
        build, _, _ = await here.deployed("echo")
        assert build.status == "succeeded"
    assert "Failed to export" in caplog.text


async def test_without_the_extra_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with capture_logs() as lines:
        async with tracing.exporting("http://127.0.0.1:9"):
            assert tracing.span("a", CALLER) is tracing.span("b", None)
    assert [(line["log_level"], "slipway[otel]" in line["event"]) for line in lines] == [("warning", True)]


def test_without_a_collector_nothing_is_loaded() -> None:
    code = "import sys, app.tracing, app.platforms.http; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert tracing.span("a", CALLER) is tracing.span("b", None)
