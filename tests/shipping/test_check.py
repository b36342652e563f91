"""``python -m app.check``: what containers ask to learn whether a process is well."""

import http.server
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import check
from tests.builder.servers import listening
from tests.support.processes import REPOSITORY
from tests.support.waiting import free_port


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path[1:] or 404))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with listening(Answer) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("status", ["200", "404"])
def test_below_500_is_well(url: str, status: str) -> None:
    assert check.main([f"{url}/{status}"]) == 0


def test_from_500_on_is_not(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([f"{url}/200", f"{url}/503"]) == 1
    assert capsys.readouterr().err == "/503 answers 503\n"


def test_nobody_there_is_not_well() -> None:
    assert check.main([f"http://127.0.0.1:{free_port()}/readyz"]) == 1


def test_a_sign_of_life_has_to_be_fresh(tmp_path: Path) -> None:
    sign = tmp_path / "worker.alive"
    assert check.main([str(sign)]) == 1
    sign.touch()
    assert check.main([str(sign)]) == 0
    old = time.time() - check.STALE_SECONDS - 1
    os.utime(sign, (old, old))
    assert check.main([str(sign)]) == 1


def test_nothing_to_check_is_a_mistake() -> None:
    assert check.main([]) == 2


def test_it_stays_light() -> None:
    code = "import sys, app.check; print(len([m for m in sys.modules if m.split('.')[0] in {'fastapi', 'sqlalchemy'}]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
