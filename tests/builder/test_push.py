"""The push: only what is missing, by digest, with a token that may expire, to a registry that may be ill."""

from dataclasses import replace

import pytest

from builder.outcome import Exit
from tests.builder.conftest import Bench


async def test_what_the_registry_has_is_not_sent_again(bench: Bench) -> None:
    assert await bench.run() == Exit.DONE
    bench.plane.instance = None
    bench.plane.asked.clear()
    assert await bench.run() == Exit.DONE
    assert bench.plane.asked.count("POST registry") == 0
    assert bench.plane.asked.count("PUT registry") == 1


async def test_the_grant_is_asked_for_once_the_image_is_there(bench: Bench) -> None:
    assert await bench.run() == Exit.DONE
    asked = bench.plane.asked
    assert asked.count("POST push-grant") == 1
    assert asked.index("POST push-grant") < asked.index("HEAD registry")


@pytest.mark.parametrize(
    ("verb", "misdeed"),
    [("HEAD", 500), ("HEAD", "reset"), ("POST", 429), ("POST", "lose"), ("PUT", 503), ("PUT", "lose"), ("PUT", "hang")],
)
async def test_transient_failures_are_tried_again(bench: Bench, verb: str, misdeed: int | str) -> None:
    bench.plane.plan[f"{verb} registry"].append(misdeed)
    assert await bench.run() == Exit.DONE


async def test_a_token_that_ran_out_is_replaced_once(bench: Bench) -> None:
    bench.plane.tokens = ["expired-token", "fresh-token-1"]
    bench.plane.good_tokens = {"fresh-token-1"}
    assert await bench.run() == Exit.DONE
    assert bench.plane.grants == 2


async def test_tokens_that_are_never_taken(bench: Bench) -> None:
    bench.plane.good_tokens = set()
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "push_failed"
    assert bench.plane.grants == 2


@pytest.mark.parametrize(("status", "verb"), [(403, "HEAD"), (403, "POST"), (400, "PUT"), (404, "POST")])
async def test_a_refusal_is_final(bench: Bench, status: int, verb: str) -> None:
    bench.plane.plan[f"{verb} registry"].extend([status] * 2)
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "push_failed"
    assert str(status) in bench.message()


async def test_a_blob_the_registry_finds_too_large(bench: Bench) -> None:
    bench.plane.most_blob = 10_000
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "push_failed"
    assert "larger than the registry takes" in bench.message()


async def test_a_registry_that_stays_away(bench: Bench) -> None:
    bench.pace = replace(bench.pace, registry_patience=0.3)
    bench.plane.plan["registry"].extend([503] * 10_000)
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "registry_unavailable"
