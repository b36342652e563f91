"""Tables that list what the code has: statuses, owners, reasons, fault points, routes, platforms."""

import json
import re

import pytest
from fastapi.routing import APIRoute

from app import capabilities, faults, manual, metrics
from app.api import runs
from app.api.schemas import BuildDetail, Diagnostic, Failure, Problem
from app.api.webhook_schemas import WebhookMessage
from app.lifecycle import (
    OWNERS,
    REASONS,
    TRANSITIONS,
    BuildStatus,
    Reason,
    ReleaseStatus,
    RunStatus,
    ServiceStatus,
    Status,
)
from app.main import ROUTERS
from app.platforms import catalog
from app.requests import BuildRequest
from app.settings import Settings
from tests.docs import pages

KINDS: dict[str, type[Status]] = {
    "Builds": BuildStatus,
    "Runs": RunStatus,
    "Releases": ReleaseStatus,
    "Services": ServiceStatus,
}
BLOCKS = [(p.name, body) for p in pages.pages() for body in pages.blocks(p.read_text(), "json")]


@pytest.mark.parametrize("heading", KINDS)
def test_statuses_moves_and_owners_are_the_code_s(heading: str) -> None:
    kind = KINDS[heading]
    found = {}
    for status, moves, owner, rescue in pages.rows(pages.section(pages.read("docs/architecture.md"), heading)):
        found[pages.words(status)[0]] = (set(pages.words(moves)), pages.words(owner) + pages.words(rescue))
    expected = {
        str(s): ({str(m) for m in TRANSITIONS[kind][s]}, list(OWNERS[kind].get(s, ()))) for s in TRANSITIONS[kind]
    }
    assert found == expected


def test_commands_and_exit_codes_are_the_code_s() -> None:
    text = pages.read("docs/cli.md")
    assert text == manual.page(text), "make it anew: python -m app.manual docs/cli.md"
    assert "| `slipway services wake NAME` |" in text


def test_every_kind_of_status_has_its_table() -> None:
    assert set(KINDS.values()) == set(TRANSITIONS)


def test_reasons_are_the_code_s() -> None:
    found = {}
    for reason, owner, again, message in pages.rows(pages.section(pages.read("docs/operations.md"), "Reasons")):
        found[pages.words(reason)[0]] = (owner, again, message)
    assert found == {
        str(r): (str(info.owner), "yes" if info.retryable else "no", info.message) for r, info in REASONS.items()
    }


def test_fault_points_are_the_code_s() -> None:
    table = pages.section(pages.read("docs/architecture.md"), "What survives a kill -9")
    found = [point for cells in pages.rows(table) for point in pages.words(cells[0])]
    assert sorted(found) == sorted(faults.POINTS)


def test_routes_are_the_code_s() -> None:
    table = pages.section(pages.read("docs/api.md"), "Routes")
    found = [pages.words(cells[0])[0] for cells in pages.rows(table)]
    routers = [router for router in ROUTERS if router is not runs.router]  # the builder's side has a page of its own
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert sorted(found) == sorted(f"{method} {route.path}" for route in routes for method in route.methods or ())


def test_platforms_are_the_code_s() -> None:
    table = pages.section(pages.read("README.md"), "Platforms")
    found = {pages.words(cells[0])[0] for cells in pages.rows(table)}
    assert found == set(catalog.entries(Settings(_env_file=None)))


def test_what_platforms_can_do_is_made_from_the_code() -> None:
    readme = pages.read("README.md")
    assert capabilities.page(readme) == readme, "run python -m app.capabilities README.md"
    stale = readme.replace("| yes |", "| no |", 1)
    assert capabilities.page(stale) == readme


def test_the_metrics_are_the_code_s() -> None:
    text = pages.read("docs/observability.md")
    assert metrics.page(text) == text, "run python -m app.metrics docs/observability.md"
    alerts = "".join(pages.blocks(text, "yaml"))
    known = {name for name, _ in metrics.names()}
    asked = set(re.findall(r"slipway_[a-z_]+", alerts))
    assert asked
    assert {name.removesuffix("_count") if name not in known else name for name in asked} <= known


def test_every_json_block_is_json() -> None:
    assert BLOCKS
    for _, body in BLOCKS:
        json.loads(body)


def test_the_build_of_the_api_page_is_one_and_names_every_field() -> None:
    body = next(json.loads(b) for name, b in BLOCKS if name == "api.md" and '"source"' in b)
    BuildRequest.model_validate(body)
    assert set(body) == set(BuildRequest.model_fields)


def test_the_message_of_the_webhooks_page_is_one() -> None:
    body = next(json.loads(b) for name, b in BLOCKS if name == "webhooks.md")
    assert WebhookMessage.model_validate(body).model_dump(mode="json") == body


def test_the_problem_of_the_api_page_is_one() -> None:
    body = next(json.loads(b) for name, b in BLOCKS if name == "api.md" and '"errors"' in b)
    assert set(body) == set(Problem.model_fields)
    Problem.model_validate(body)


def test_the_failed_build_of_the_readme_is_what_the_api_answers() -> None:
    body = next(json.loads(b) for name, b in BLOCKS if name == "README.md" and '"failure"' in b)
    assert set(body) <= set(BuildDetail.model_fields)
    failure = Failure.model_validate(body["failure"])
    info = REASONS[Reason(body["reason"])]
    assert (failure.owner, failure.retryable, failure.advice) == (info.owner, info.retryable, info.message)
    assert (failure.reason, failure.message) == (body["reason"], body["message"])
    for diagnostic in body["diagnostics"]:
        Diagnostic.model_validate(diagnostic)
        assert set(diagnostic) == set(Diagnostic.model_fields)
