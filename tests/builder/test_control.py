"""How a builder gets along with its control plane: claims, repetitions, refusals, deadlines, the end."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from builder.orders import BadEnvironment, read_environment
from builder.outcome import Exit
from tests.builder.conftest import Bench
from tests.builder.standin import TOKEN
from tests.support.processes import running
from tests.support.waiting import eventually, eventually_sync

#: A compiler that says its name and then takes longer than any test.
STUCK = '#!/bin/sh\nif [ "$1" = build ]; then echo compiling; sleep 600 & echo $! > {pids}; wait; fi\nexec {go} "$@"\n'


def stuck(bench: Bench) -> tuple[str, Path]:
    path, pids = bench.folder / "go", bench.folder / "pids"
    path.write_text(STUCK.format(pids=pids, go=bench.go))
    path.chmod(0o755)
    return str(path), pids


def compiling(pids: Path) -> bool:
    """Tell whether the stuck compiler is at it, which is sooner than its word is in the log."""
    return pids.exists() and pids.read_text().endswith("\n")


def gone(pids: Path) -> bool:
    try:
        return not running(psutil.Process(int(pids.read_text())))
    except psutil.NoSuchProcess:
        return True


def connected(bench: Bench) -> list[int]:
    """Return the ports from which somebody holds a connection to the plane: a builder's own sockets are not for us to see."""
    port = httpx.URL(bench.plane.url).port
    ours = psutil.Process().net_connections("tcp")
    return [c.raddr.port for c in ours if c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED]


async def test_a_second_instance_does_nothing(bench: Bench) -> None:
    bench.plane.instance = "another"
    assert await bench.run() == Exit.DONE
    assert bench.plane.asked == ["POST claim"]


async def test_a_run_that_is_over_is_left_alone(bench: Bench) -> None:
    bench.plane.over = True
    assert await bench.run() == Exit.CANCELED
    assert bench.plane.asked == ["POST claim"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_is_not_taken(bench: Bench, status: int) -> None:
    bench.plane.plan["claim"].append(status)
    assert await bench.run(TRACEPARENT="00-a-b-01") == Exit.UNTOLD
    assert bench.plane.traces == {"00-a-b-01"}
    assert bench.plane.asked == ["POST claim"]


async def test_orders_that_cannot_be_read(bench: Bench) -> None:
    bench.plane.orders["image"] = None
    assert await bench.run() == Exit.BUILDER


async def test_no_control_plane_until_the_deadline(bench: Bench) -> None:
    bench.plane.plan["claim"].extend([500] * 1000)
    assert await bench.run(SLIPWAY_RUN_DEADLINE=str(time.time() + 0.8)) == Exit.DEADLINE


@pytest.mark.parametrize("call", ["claim", "push-grant", "complete", "logs"])
async def test_calls_are_repeated_until_answered(bench: Bench, call: str) -> None:
    bench.plane.plan[call].extend([500, "reset", "garbage", 503, 404] if call != "logs" else [500, "reset", 503])
    assert await bench.run() == Exit.DONE
    assert bench.reason() is None


async def test_an_answer_that_does_not_come_in_time_is_asked_for_again(bench: Bench) -> None:
    bench.plane.plan["complete"].append("hang")
    assert await bench.run() == Exit.DONE


async def test_a_repeated_completion_keeps_its_id_and_is_heard_once_more(bench: Bench) -> None:
    bench.plane.plan["complete"].extend(["lose", 500])
    assert await bench.run() == Exit.DONE
    assert len(bench.plane.webhook_ids) == 2
    assert len(set(bench.plane.webhook_ids)) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 60), (401, 60), (403, 60), (413, 60), (422, 60), (409, 0), (410, 40)],
)
async def test_a_completion_refused_for_good_is_not_repeated(bench: Bench, status: int, code: int) -> None:
    bench.plane.plan["complete"].append(status)
    assert await bench.run() == code
    assert bench.plane.asked.count("POST complete") == 1


async def test_a_log_that_nobody_takes_does_not_hold_up_the_report(bench: Bench) -> None:
    bench.plane.plan["logs"].extend([500] * 10_000)
    assert await bench.run() == Exit.DONE


async def test_a_source_refused_because_another_has_the_run(bench: Bench) -> None:
    bench.plane.plan["source"].append(409)
    assert await bench.run() == Exit.DONE
    assert bench.plane.completion is None


async def test_the_deadline_of_the_orders_is_reported_in_time(bench: Bench) -> None:
    bench.plane.plan["source"].append("hang")
    bench.plane.deadline = time.time() + 1.5
    assert await bench.run(SLIPWAY_RUN_DEADLINE=str(time.time() + 100)) == Exit.DEADLINE
    assert time.time() < bench.plane.deadline + 1
    assert bench.reason() == "timeout"
    assert "'fetch'" in bench.message()


async def test_a_deadline_moved_nearer_by_a_heartbeat_ends_the_compiler(bench: Bench) -> None:
    go, pids = stuck(bench)
    bench.plane.orders |= {"heartbeat_seconds": 0.1, "deadline": time.time() + 100}
    begun = asyncio.create_task(bench.run(SLIPWAY_GO=go, SLIPWAY_RUN_DEADLINE=str(time.time() + 100)))
    await eventually(lambda: compiling(pids))
    bench.plane.deadline = time.time() + 1
    assert await begun == Exit.DEADLINE
    assert bench.reason() == "timeout"
    assert "'compile'" in bench.message()
    await eventually(lambda: gone(pids))


@pytest.mark.parametrize("how", ["cancel", "over"])
def test_a_cancel_ends_everything_and_is_not_reported(bench: Bench, how: str) -> None:
    go, pids = stuck(bench)
    bench.plane.orders["heartbeat_seconds"] = 0.1
    with bench.start(SLIPWAY_GO=go) as builder:
        eventually_sync(lambda: compiling(pids))
        setattr(bench.plane, how, True)
        assert builder.wait(20) == Exit.CANCELED
    assert bench.plane.completion is None
    eventually_sync(lambda: gone(pids))


def test_a_builder_told_to_go_takes_its_children_with_it(bench: Bench) -> None:
    go, pids = stuck(bench)
    with bench.start(SLIPWAY_GO=go) as builder:
        eventually_sync(lambda: compiling(pids))
        builder.send_signal(signal.SIGTERM)
        assert builder.wait(20) == Exit.CANCELED
    assert bench.plane.completion is None
    eventually_sync(lambda: gone(pids))


def test_heartbeats_name_the_stage_while_nothing_is_said(bench: Bench) -> None:
    go, _ = stuck(bench)
    bench.plane.orders["heartbeat_seconds"] = 0.1
    with bench.start(SLIPWAY_GO=go) as builder:
        bench.plane.wait_for(lambda: bench.plane.heartbeats.count("compile") >= 3)
        builder.send_signal(signal.SIGTERM)
        assert builder.wait(20) == Exit.CANCELED


def test_a_builder_that_holds_stays_until_it_is_told(bench: Bench) -> None:
    with bench.start(SLIPWAY_HOLD_AFTER_CALLBACK="1") as builder:
        bench.plane.wait_for(lambda: bench.plane.completion)
        # The connection is closed once the run is over; only the hold is left then.
        eventually_sync(lambda: not connected(bench))
        assert bench.plane.heartbeats[-1:] == ["reported"]
        assert builder.poll() is None
        builder.send_signal(signal.SIGTERM)
        assert builder.wait(20) == Exit.DONE


def test_a_builder_that_lost_the_claim_holds_too(bench: Bench) -> None:
    bench.plane.instance = "another"
    with bench.start(SLIPWAY_HOLD_AFTER_CALLBACK="1") as builder:
        bench.plane.wait_for(lambda: "POST claim" in bench.plane.asked)
        eventually_sync(lambda: not connected(bench))
        assert builder.poll() is None
        builder.send_signal(signal.SIGTERM)
        assert builder.wait(20) == Exit.DONE


def test_no_child_gets_the_token_or_any_variable_of_ours(bench: Bench) -> None:
    path, seen = bench.folder / "go", bench.folder / "seen"
    path.write_text(f'#!/bin/sh\nenv >> {seen}\ncat /proc/$PPID/environ >> {seen} 2>&1\nexec {bench.go} "$@"\n')
    path.chmod(0o755)
    with bench.start(SLIPWAY_GO=str(path), SLIPWAY_SOMETHING="inherited") as builder:
        assert builder.wait(60) == Exit.DONE
        said = builder.stdout.read() if builder.stdout else ""
    found = seen.read_text()
    assert "GOFLAGS=" in found
    assert "SLIPWAY_SOMETHING" not in found or os.geteuid() == 0
    own = "".join(line for line in found.splitlines(keepends=True) if "\0" not in line)
    assert "SLIPWAY" not in own
    assert TOKEN not in own
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLIPWAY_URL", ""),
        ("SLIPWAY_URL", "http://control.example.com"),
        ("SLIPWAY_URL", "https://user:word@control.example.com"),
        ("SLIPWAY_URL", "ftp://127.0.0.1"),
        ("SLIPWAY_RUN_DEADLINE", "soon"),
        ("SLIPWAY_RUN_TOKEN", ""),
        ("SLIPWAY_WORK", "/nowhere"),
    ],
)
def test_an_environment_at_fault_is_named(bench: Bench, name: str, value: str) -> None:
    with pytest.raises(BadEnvironment, match=name):
        read_environment(bench.environ(**{name: value}))


def test_a_process_with_a_bad_environment_says_so(bench: Bench) -> None:
    with bench.start(SLIPWAY_URL="http://control.example.com") as builder:
        assert builder.wait(20) == Exit.BUILDER
        assert builder.stdout is not None
        assert "SLIPWAY_URL must be https" in builder.stdout.read()


def test_the_completion_is_what_the_protocol_page_shows(bench: Bench) -> None:
    page = (Path(__file__).parents[2] / "docs" / "builder-protocol.md").read_text()
    start = page.index("```json", page.index("### `POST /complete`")) + len("```json")
    shown = json.loads(page[start : page.index("```", start)])
    with bench.start() as builder:
        assert builder.wait(60) == Exit.DONE
    assert bench.plane.completion is not None
    assert set(bench.plane.completion) == set(shown)
    assert set(bench.plane.completion["image"]) == set(shown["image"])
