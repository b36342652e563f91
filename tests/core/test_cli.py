"""What the command line says when the operator has something to mend."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import python

CASES = [
    (["migrate"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "the database can't be reached"),
    (["api"], {}, "set DATABASE_URL"),
    (["serve"], {"SLIPWAY_PORT": "none"}, "SLIPWAY_PORT"),
    (["serve"], {"SLIPWAY_FAULT_POINT": "nowhere"}, "there is no point 'nowhere'"),
    (["serve"], {"SLIPWAY_PUBLIC_URL": "http://example.com"}, "must be https"),
    (["gateway"], {"DATABASE_URL": "mysql://x/y", "SLIPWAY_SECRET_KEYS": "k"}, "DATABASE_URL"),
    (["worker"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "can't be reached"),
    (["worker"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "SLIPWAY_IMITATE": "fly"}, "`slipway serve` alone"),
    (["serve", "--imitate", "fly,heroku"], {}, "there is no stand-in for 'heroku'"),
    (["serve", "--imitate", "fly"], {"SLIPWAY_FLY__TOKEN": "x"}, "unset SLIPWAY_FLY__"),
]
# One interpreter for all: to import everything takes it longer than all the commands.
RUN = """
import contextlib, ctypes, io, json, os
from app.cli import app

libc, GET_DUMPABLE, SET_DUMPABLE = ctypes.CDLL(None), 3, 4

clean, ends = dict(os.environ), []
for words, env, _ in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(clean | env)
    libc.prctl(SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            app(words)
        except SystemExit as end:
            ends.append((end.code, said.getvalue(), bool(libc.prctl(GET_DUMPABLE, 0, 0, 0, 0))))
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, bool]]:
    """Exit code and standard error of each case, and whether others of the account could have read its memory."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLIPWAY_", "DATABASE_URL"))}
    env |= {"SLIPWAY_HOME": str(tmp_path_factory.mktemp("home")), "SLIPWAY_GATEWAY_PORT": "0", "SLIPWAY_PORT": "0"}
    command = python(RUN, json.dumps(CASES))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    return [tuple(end) for end in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i][0][0]}-{i}")
def test_a_wrong_set_up_is_one_sentence(ends: list[tuple[int, str, bool]], case: int) -> None:
    code, said, open_to_others = ends[case]
    assert code in {1, 2}, said
    assert CASES[case][2] in said
    assert "Traceback" not in said
    assert not open_to_others
