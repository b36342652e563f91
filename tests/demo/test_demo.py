"""``slipway demo`` for real, as a program: it goes the whole way, and it fails when it does not see what it shows."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.demo.server import environment
from tests.support import contracts
from tests.support.agents import Toolbox
from tests.support.processes import REPOSITORY, Child, assert_gone, descendants, python, spawned

DEMO_SECONDS = 150.0
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def home(toolbox: Toolbox, tmp_path: Path) -> Path:
    return toolbox.home(tmp_path / "home", seeded=True)


def outside(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment that has a user's own set-up in it, which the demo must leave alone."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("SLIPWAY_")}
    temp = folder / "temp"
    temp.mkdir()
    trap = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "SLIPWAY_REGISTRY": "http://127.0.0.1:1"}
    return own | trap | {"TMPDIR": str(temp), "PORT": "1", "COLUMNS": "200"} | more


@contextmanager
def demo(env: Mapping[str, str], *words: str) -> Iterator[Child]:
    with spawned(sys.executable, "-m", "app.cli", "demo", *words, env=env, cwd=REPOSITORY) as child:
        yield child


@pytest.mark.timeout(240)
def test_it_goes_the_whole_way_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    with demo(outside(tmp_path, SLIPWAY_HOME=str(home)), "--keep") as child:
        curl = shlex.split(child.line("  try: ", DEMO_SECONDS).removeprefix("  try: "))
        live = child.line("live: ", DEMO_SECONDS).removeprefix("live: ")
        child.line("It stays up")
        processes = descendants(child.pid)
        told = "".join(child.output)
        if shutil.which("curl"):
            done = subprocess.run([*curl, "-sS"], capture_output=True, text=True, timeout=30, check=False)
            assert '"digest":"sha256:' in done.stdout, done
        child.signal(signal.SIGINT)
        assert child.wait(90) == 0, child.output
    assert processes
    assert_gone(processes)
    assert re.fullmatch(r"http://demo-echo\.localhost:\d+", live)
    assert curl[-1].startswith("http://127.0.0.1:")
    assert curl[2] == f"Host: {live.removeprefix('http://')}"
    for stage in (
        "queued",
        "promoting",
        "succeeded",
        "asleep after",
        "ms to the answer of",
        "rolled out",
        "rolled back",
    ):
        assert stage in told, told
    answers = re.findall(r"'digest': '(sha256:[0-9a-f]+)'", told)
    assert answers[0] == answers[-1] != answers[-2]
    assert len(set(answers)) == 3
    assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "platform",
    ["northflank", *(pytest.param(name, marks=pytest.mark.volume) for name in ("fly", "koyeb", "railway"))],
)
def test_it_goes_the_whole_way_on_an_imitated_platform(home: Path, tmp_path: Path, platform: str) -> None:
    folder = contracts.folder()
    given = {"SLIPWAY_CONTRACTS": str(folder)} if folder else {}
    with demo(outside(tmp_path, SLIPWAY_HOME=str(home), **given), "--platform", platform) as child:
        assert child.wait(DEMO_SECONDS) == 0, child.output
    told = "".join(child.output)
    for stage in ("asleep after", "ms to the answer of", "rolled out", "rolled back", f"no program runs on {platform}"):
        assert stage in told, told
    checked = re.search(r"(\d+) requests(?:, (\d+) of them checked)?", told)
    assert checked
    assert checked[2] == (checked[1] if folder else None)
    assert list((tmp_path / "temp").iterdir()) == []


FORGED = ('os.Getenv("SLIPWAY_DIGEST")', '"sha256:forged"')
SAME = ("hex.EncodeToString(id)", 'hex.EncodeToString(id[:0]) + "always the same"')


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("change", "expected"),
    [(FORGED, "an answer of the release with sha256:"), (SAME, "a new instance after the wake")],
    ids=["digest", "instance"],
)
def test_it_believes_only_what_it_sees(home: Path, tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "agents")
    main = tmp_path / "agents/echo-agent/main.go"
    assert change[0] in main.read_text()
    main.write_text(main.read_text().replace(*change))
    code = "from pathlib import Path\nfrom app.demo import demo\nsys.exit(demo(folder=Path(sys.argv[1])))"
    env = outside(tmp_path, SLIPWAY_HOME=str(home))
    with spawned(*python(code, tmp_path / "agents"), env=env) as child:
        assert child.wait(DEMO_SECONDS) == 1
    told = "".join(child.output)
    assert f"expected: {expected}" in told, told
    assert "The last lines of" in told
    assert "live:" not in told


def test_a_failure_is_told_with_the_log_and_a_fresh_home_is_removed(tmp_path: Path) -> None:
    with demo(outside(tmp_path, SLIPWAY_LOCAL__ENABLED="false")) as child:
        assert child.wait(DEMO_SECONDS) == 1
    told = "".join(child.output)
    assert "expected: POST /v1/builds to be accepted" in told
    assert "seen:     422" in told
    assert "slipway 0" in told.partition("The last lines of")[2], "the log's tail is missing"
    assert list((tmp_path / "temp").iterdir()) == []


def test_an_interrupt_ends_it_with_all_it_started(tmp_path: Path) -> None:
    with demo(outside(tmp_path)) as child:
        child.line("slipway serve is up", DEMO_SECONDS)
        processes = descendants(child.pid)
        child.signal(signal.SIGTERM)
        assert child.wait(120) == 130, child.output
    assert_gone(processes)
    assert list((tmp_path / "temp").iterdir()) == []


def test_killed_it_takes_the_server_with_it(tmp_path: Path) -> None:
    with demo(outside(tmp_path)) as child:
        child.line("slipway serve is up", DEMO_SECONDS)
        processes = descendants(child.pid)
        child.kill()
    assert processes
    assert_gone(processes, 60)


def test_nothing_of_the_callers_set_up_gets_in() -> None:
    given = {"DATABASE_URL": "d", "PORT": "1", "SLIPWAY_REGISTRY": "r", "SLIPWAY_SANDBOX": "none", "PATH": "p"}
    env = environment(Path("/home"), "key", given)
    assert {k for k in given if k in env} == {"SLIPWAY_SANDBOX", "PATH"}
    assert env["SLIPWAY_HOME"] == "/home"
