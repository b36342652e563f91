"""The command as a process against a whole ``slipway serve``: a real compiler, a terminal."""

import os
import pty
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client.failed import Code
from tests.client.support import COMMAND, environment
from tests.client.test_pack import plant
from tests.e2e.place import KEY, Place, place
from tests.e2e.programs import tiny
from tests.support.agents import Toolbox


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


def test_a_folder_becomes_a_service(here: Place, tmp_path: Path) -> None:
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
