"""What the API does is what its description says, whatever comes."""

import asyncio

import pytest

from app.api.deps import encode_cursor
from app.builds import archives
from app.imitations.server import serving
from tests.openapi.conformance import There, conform
from tests.support.world import FILES, World

TEXTS = ("/v1/builds", "/v1/services", "/v1/keys", "/v1/projects", "/v1/webhooks", "/v1/batches")
NUMBERS = ("/v1/services/{name}/releases", "/v1/webhooks/{webhook_id}/deliveries", "/v1/batches/{batch_id}")
CURSORS = dict.fromkeys(TEXTS, encode_cursor("x")) | dict.fromkeys(NUMBERS, encode_cursor(2**40))
CHECKS = {
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "missing_required_header",
    "unsupported_method", "allow_header_conformance", "use_after_free", "ensure_resource_availability", "ignored_auth",
    "object_level_authorization",
}  # fmt: skip


async def check(here: World, *phases: str, examples: int) -> None:
    """Run the phases on a server that has something to find; fails for whatever is wrong, in Schemathesis' words."""
    await here.deployed("echo")
    _, other = await here.project("acme")
    async with other:  # nobody else can end its run
        sent = await other.post("/v1/builds", json=here.order())
    await here.jobs()
    (run,) = await here.sql("select id, name from run where build_id = :id", id=sent.json()["id"])
    token = here.yard.machines[run.name].spec.env["SLIPWAY_RUN_TOKEN"]
    (own,) = (await here.http.get("/v1/keys")).json()["items"]
    _, archive = archives.pack_files(FILES, here.context.settings)
    async with serving(here.app) as url:
        there = There(url, here.key, own["id"], run.id, token, archive, CURSORS)
        outcome = await asyncio.to_thread(conform, there, *phases, examples=examples)
    assert set(outcome.checks) == CHECKS
    described = here.app.openapi()["paths"]
    assert outcome.operations == {f"{m.upper()} {path}" for path, operations in described.items() for m in operations}
    if outcome.found:
        pytest.fail("\n\n".join(outcome.found.values()), pytrace=False)


async def test_the_api_does_what_its_description_says(here: World) -> None:
    await check(here, "examples", "coverage", examples=1)


@pytest.mark.volume
async def test_it_does_so_many_times(here: World) -> None:
    await check(here, "examples", "coverage", "fuzzing", "stateful", examples=50)
