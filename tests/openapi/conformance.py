"""Schemathesis over the whole description: it makes requests out of it, good and bad ones, and looks at each answer.

Its checks are used as they are. What it is told besides the description is what no description has: which platform, source and
run there are here, and that a key of a request is used once.
"""

import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis import Case, GenerationMode, HookContext, hooks
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema

from tests.support.declared import undeclared
from tests.support.platform import NAME

CALL_SECONDS = 20
SEED = 7
SCHEMA = "/openapi.json"


@dataclass(frozen=True)
class There:
    """What is there to ask for."""

    url: str
    key: str
    key_id: str
    run_id: str
    run_token: str
    archive: bytes
    """A good source."""
    cursors: dict[str, str]
    """A cursor of each list, by its path."""


@dataclass
class Outcome:
    """What came of it: how often each check was made, and everything that was found, once each."""

    checks: Counter[str] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    found: dict[str, str] = field(default_factory=dict)


def conform(there: There, *phases: str, examples: int) -> Outcome:
    """Run the phases. Blocking: the server is in another thread."""
    schemathesis.openapi.media_type("application/gzip", strategies.just(there.archive))
    schema = schemathesis.openapi.from_url(there.url + SCHEMA, config=_config(there, phases, examples))

    @schemathesis.hook
    def before_call(context: HookContext, case: "Case[Any]", kwargs: dict[str, Any]) -> None:
        if (case.path_parameters or {}).get("key_id") == there.key_id:
            case.path_parameters["key_id"] = "own"  # it would cut off the branch it sits on
        if case.meta and case.meta.generation.mode == GenerationMode.POSITIVE:
            _fill(case, there)

    outcome = Outcome()
    try:
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _take(event, outcome)
            elif isinstance(event, (events.NonFatalError, events.FatalError)):
                outcome.found[repr(event)[:200]] = repr(getattr(event, "value", event))[:1000]
    finally:
        hooks.unregister(before_call)
    return outcome


def _config(there: There, phases: tuple[str, ...], examples: int) -> SchemathesisConfig:
    known = ("examples", "coverage", "fuzzing", "stateful")
    run = {"Authorization": f"Bearer {there.run_token}"}
    return SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "cache": {"enabled": False},
            "continue-on-failure": True,
            "request-timeout": CALL_SECONDS,
            "headers": {"Authorization": f"Bearer {there.key}"},
            "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True, "database": "none"},
            "phases": {name: {"enabled": name in phases} for name in known},
            "operations": [{"include-tag": "runs", "headers": run, "parameters": {"path.run_id": there.run_id}}],
        }
    )


def _fill(case: "Case[Any]", there: There) -> None:
    """Put what is there into a good request, where the description can only give its form."""
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    if "cursor" in (case.query or {}):
        case.query["cursor"] = there.cursors.get(case.path, "0-0")
    body: Any = case.body
    if not isinstance(body, dict):
        return
    if body.get("url"):
        body["url"] = "https://hooks.example.com/slipway"
    if body.get("expires_at"):
        body["expires_at"] = "2999-01-01T00:00:00Z"
    match case.operation.label:
        case "POST /v1/builds":
            body |= _order(body)
        case "POST /v1/batches":
            body["builds"] = [_order(order) for order in body["builds"]]
        case "PATCH /v1/services/{name}":
            body |= {"port": 8080, "strict": False}
        case "POST /v1/services/{name}/migrate":
            body |= {"platform": NAME}


def _order(order: dict[str, Any]) -> dict[str, Any]:
    return order | {
        "platform": NAME,
        "source": _source(order["source"]),
        "strict": False,
        "build": order.get("build", {}) | {"goarch": "amd64"},
        "builder": order.get("builder", {}) | {"platform": NAME, "fallback": []},
    }


def _source(source: dict[str, Any]) -> dict[str, Any]:
    match source["kind"]:
        case "git":
            return source | {"url": "https://git.example.com/agent.git", "subdir": "agent"}
        case _:
            return {"kind": "files", "files": {"main.go": "package main\n"}}


def _take(event: events.ScenarioFinished, outcome: Outcome) -> None:
    recorder = event.recorder
    for case_id, checks in recorder.checks.items():
        case, interaction = recorder.cases[case_id].value, recorder.interactions.get(case_id)
        outcome.operations.add(case.operation.label)
        if interaction and interaction.response and (wrong := _undeclared(case, interaction.response)):
            outcome.found.setdefault(wrong, wrong)
        for check in checks:
            outcome.checks[check.name] += 1
            if check.failure_info is None:
                continue
            failure = check.failure_info.failure
            lines = [f"{case.operation.label}: {type(failure).__name__}", failure.message]
            if interaction is not None:
                sent, answer = interaction.request, interaction.response
                lines.append(f"{case.method} {sent.uri} {(sent.body or b'')[:600]!r}")
                lines.append(f"{answer.status_code} {(answer.content or b'')[:600]!r}" if answer else "no answer")
            outcome.found.setdefault(lines[0], "\n".join(lines))


def _undeclared(case: "Case[Any]", answer: Response) -> str | None:
    """Return what is wrong with a refusal's reason: that it is declared is more than Schemathesis asks."""
    if answer.headers.get("content-type") != ["application/problem+json"]:
        return None
    path = case.operation.path
    return undeclared(case.method, path, answer.status_code, answer.json()["reason"])
