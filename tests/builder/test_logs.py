"""The log on its way out: nothing secret, nothing endless, nothing twice."""

import asyncio
import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.children import run_child
from builder.logs import CUT, HIDDEN, Log, Redactor, cut
from builder.orders import find_secrets
from builder.outcome import Exit
from tests.builder.conftest import Bench
from tests.builder.standin import GRANT, TOKEN
from tests.support.processes import running
from tests.support.waiting import eventually

SECRET = "p@ss/word-1"


def saying(bench: Bench, script: str) -> str:
    """Return a go command that says something before it builds."""
    path = bench.folder / "go"
    path.write_text(f'#!/bin/sh\nif [ "$1" = build ]; then {script}; fi\nexec {bench.go} "$@"\n')
    path.chmod(0o755)
    return str(path)


async def test_secrets_are_taken_out_everywhere(bench: Bench) -> None:
    bench.plane.orders["modules"] = {"goproxy": "http://user:s3cretword@127.0.0.1:1,direct", "gosumdb": None}
    bench.plane.orders["image"] = {
        "repository": "r/x", "port": 1, "created": 0, "labels": {"API_KEY": "label-value-9"},
    }  # fmt: skip
    said = f"echo 'x {TOKEN} y'; echo 'main.go:1:1: s3cretword user:s3cretword label-value-9' >&2; exit 1"
    assert await bench.run(SLIPWAY_GO=saying(bench, said)) == Exit.SOURCE
    assert f"x {HIDDEN} y" in bench.plane.text
    for secret in (TOKEN, TOKEN.rpartition(".")[2], "s3cretword", "label-value-9"):
        assert secret not in bench.plane.everything
    assert bench.plane.completion is not None
    assert bench.plane.completion["diagnostics"][0]["message"].startswith(HIDDEN)


async def test_the_grant_is_taken_out_too(bench: Bench) -> None:
    bench.plane.plan["PUT registry"].append(400)
    bench.plane.good_tokens = set()
    assert await bench.run() == Exit.NETWORK
    assert GRANT not in bench.plane.everything


async def test_long_lines_are_cut_and_marked(bench: Bench) -> None:
    bench.plane.orders["limits"] = {"log_line_bytes": 100}
    assert await bench.run(SLIPWAY_GO=saying(bench, "head -c 300000 /dev/zero | tr '\\0' a; echo; echo next")) == 0
    long = next(line["m"] for line in bench.plane.lines if line["m"].startswith("aaa"))
    assert len(long.encode()) == 100
    assert long.endswith(CUT)
    assert "next" in [line["m"] for line in bench.plane.lines]


async def test_the_log_stops_at_its_limit_and_says_so(bench: Bench) -> None:
    bench.plane.orders["limits"] = {"log_bytes": 2000}
    assert await bench.run(SLIPWAY_GO=saying(bench, "seq 1 5000")) == Exit.DONE
    assert sum(len(line["m"]) for line in bench.plane.lines) < 2100
    assert bench.plane.lines[-1]["m"] == "The log is full; what follows is not kept."


async def test_a_batch_whose_answer_was_lost_is_not_doubled(bench: Bench) -> None:
    bench.plane.plan["logs"].extend(["lose", "lose"])
    assert await bench.run(SLIPWAY_GO=saying(bench, "seq 1000 1999; sleep 1; echo 'later on'")) == Exit.DONE
    numbers = [line["m"] for line in bench.plane.lines if line["m"].isdigit()]
    assert numbers == [str(n) for n in range(1000, 2000)]
    assert [b["seq"] for b in bench.plane.batches[:3]] == [0, 0, 0]
    assert bench.plane.text.count("later on") == 1


async def test_a_batch_that_is_refused_is_dropped_alone(bench: Bench) -> None:
    bench.plane.plan["logs"].append(413)
    assert await bench.run() == Exit.DONE


def test_lines_say_where_they_come_from(bench: Bench) -> None:
    with bench.start(SLIPWAY_GO=saying(bench, "echo out; echo err >&2")) as builder:
        assert builder.wait(60) == Exit.DONE
    streams = {line["m"]: line["s"] for line in bench.plane.lines}
    assert (streams["out"], streams["err"]) == ("stdout", "stderr")
    assert any(stream == "builder" for stream in streams.values())


@settings(max_examples=60, deadline=None)
@given(
    before=st.text(max_size=40),
    after=st.text(max_size=40),
    most=st.integers(min_value=20, max_value=60),
)
def test_a_secret_across_the_cut_does_not_show(before: str, after: str, most: int) -> None:
    clean = cut(Redactor([SECRET]).clean(f"{before}{SECRET}{after}"), most)
    assert SECRET not in clean
    assert len(clean.encode()) <= most


@pytest.mark.parametrize("limit", range(20, 44))
async def test_no_part_of_a_secret_outlives_a_line_that_was_thrown_away(tmp_path: Path, limit: int) -> None:
    log = Log(Redactor([SECRET]), line_bytes=limit, most_bytes=10_000)
    line = f"{'a' * 24}{SECRET}{'b' * 200_000}"
    (tmp_path / "line").write_text(line)
    await run_child(["/bin/cat", str(tmp_path / "line")], env={}, cwd=tmp_path, log=log)
    said = str(log.batch()[1][0]["m"])
    assert SECRET[:4] not in said
    assert said.endswith(CUT)


def test_secrets_hide_in_urls_as_they_are_and_quoted() -> None:
    redactor = Redactor([SECRET])
    assert redactor.clean("https://u:p%40ss%2Fword-1@h/") == f"https://u:{HIDDEN}@h/"
    assert Redactor(["abc"]).clean("abcdef") == "abcdef"


def test_what_looks_secret_in_the_orders() -> None:
    orders = {"labels": {"db_password": "hunter22"}, "x": ["https://me:word@h/p|direct"], "n": 1, "token": None}
    assert find_secrets(orders) == {"hunter22", "me:word", "word"}


@pytest.mark.parametrize("turns", [2, 100], ids=["while it starts", "later"])
async def test_a_child_that_is_canceled_is_killed_with_its_children(tmp_path: Path, turns: int) -> None:
    os.mkfifo(tmp_path / "started")
    script = f"sleep 600 & echo $! > {tmp_path}/started; wait"
    child = asyncio.create_task(run_child(["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path))
    for _ in range(turns):
        await asyncio.sleep(0)
    sleeping = psutil.Process(int((tmp_path / "started").read_text()))
    child.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(30):
            await child
    await eventually(lambda: not running(sleeping), 30)
