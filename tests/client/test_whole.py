"""The command as a process against a whole ``slipway serve``: a real compiler, a terminal, Ctrl-C."""

import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client.failed import Code
from tests.client.support import COMMAND, environment
from tests.client.test_pack import plant
from tests.e2e.place import KEY, Place, place
from tests.e2e.programs import program, tiny
from tests.support.agents import Toolbox
from tests.support.processes import REPOSITORY, python, spawned

BROKEN = program("package main\n\nfunc main() {\n\tx := y\n}\n")


@pytest.fixture(scope="module")
def here(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = toolbox.home(tmp_path_factory.mktemp("client") / "home", seeded=True)
    with place(home, SLIPWAY_DRAIN_SECONDS="0.1") as it:
        it.start()
        yield it


def env(here: Place) -> dict[str, str]:
    return environment(f"http://127.0.0.1:{here.port}", KEY, here.home / "nothing")


def slipway(here: Place, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, env=env(here), capture_output=True, text=True, timeout=90, check=False, cwd="/")


def on_a_terminal(here: Place, *words: str | Path) -> tuple[int, str]:
    """Run a command whose every stream is a terminal; returns its exit code and what the terminal was sent."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env=env(here) | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd="/",
    )
    os.close(theirs)
    said = bytearray()

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                said.extend(piece)
        except OSError:  # how the end of a terminal is told
            pass

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(90)
    reader.join(10)
    os.close(ours)
    return code, said.decode(errors="replace")


def test_a_folder_becomes_a_service_and_goes_back(here: Place, tmp_path: Path) -> None:
    folder = plant(tmp_path / "one", tiny())
    code, screen = on_a_terminal(here, "deploy", folder, "--name", "tiny", "--env", "WORD=one")
    assert code == Code.OK, screen
    assert re.search(r"building\S* \d\.\d s", screen), "the stage, and for how long"
    assert "\x1b[2K" in screen, "drawn again in place"
    assert screen.rstrip().endswith(f"http://{here.host('tiny')}")
    assert here.ask("tiny")["word"] == "one"

    second = slipway(here, "deploy", folder, "--name", "tiny", "--env", "WORD=two")
    assert second.returncode == Code.OK, second.stderr
    assert second.stdout == f"http://{here.host('tiny')}\n"
    assert "\x1b" not in second.stderr
    assert here.ask("tiny")["word"] == "two"

    back = slipway(here, "rollback", "tiny")
    assert back.returncode == Code.OK, back.stderr
    assert here.ask("tiny")["word"] == "one"


def test_the_compiler_s_messages_can_be_opened_from_here(here: Place, tmp_path: Path) -> None:
    folder = plant(tmp_path / "broken", BROKEN)
    done = slipway(here, "build", folder)
    assert done.returncode == Code.CALLER
    line = next(n for n, text in enumerate(BROKEN["main.go"].splitlines(), 1) if "y" in text)
    assert f"{folder}/main.go:{line}:7: undefined: y\n" in done.stderr


@pytest.mark.parametrize("words", [(), ("--cancel-on-interrupt",)])
def test_after_ctrl_c_the_build_goes_on_unless_it_was_said_otherwise(
    here: Place, tmp_path: Path, words: tuple[str, ...]
) -> None:
    folder = plant(tmp_path / "echo", tiny("canceled") if words else BROKEN)
    with spawned(*COMMAND, "build", folder, "--no-cache", *words, env=env(here)) as child:
        build = child.line("bld_")
        child.signal(signal.SIGINT)
        assert child.wait() == Code.INTERRUPTED
    said = "".join(child.output)
    assert "Traceback" not in said
    if words:
        here.ended(build, "canceled")
    else:
        assert f"slipway logs -f {build}" in said
        here.ended(build, "failed")


def test_a_client_loads_nothing_of_the_server() -> None:
    code = "import app.cli; print(*sys.modules)"
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY)
    loaded = set(done.stdout.split())
    theirs = {"sqlalchemy", "fastapi", "pydantic", "asyncpg", "pathspec", "uvicorn", "app.operate", "app.settings"}
    assert not loaded & theirs
    assert "httpx" in loaded
