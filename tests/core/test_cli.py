"""What the command line says when the operator has something to mend."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (["migrate"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "the database can't be reached"),
        (["api"], {}, "set DATABASE_URL"),
        (["serve"], {"SLIPWAY_PORT": "none"}, "SLIPWAY_PORT"),
        (["serve"], {"SLIPWAY_FAULT_POINT": "nowhere"}, "there is no point 'nowhere'"),
        (["serve"], {"SLIPWAY_PUBLIC_URL": "http://example.com"}, "must be https"),
        (["gateway"], {"DATABASE_URL": "mysql://x/y", "SLIPWAY_SECRET_KEYS": "k"}, "DATABASE_URL"),
        (["worker"], {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "can't be reached"),
    ],
)
def test_a_wrong_set_up_is_one_sentence(words: list[str], env: dict[str, str], says: str, tmp_path: object) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLIPWAY_", "DATABASE_URL", "COVERAGE_"))}
    env = {**clean, "SLIPWAY_HOME": str(tmp_path), "SLIPWAY_GATEWAY_PORT": "0", "SLIPWAY_PORT": "0", **env}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *words], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in {1, 2}, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
