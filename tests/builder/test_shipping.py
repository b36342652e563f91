"""What ships the builder: the Dockerfile's commands, the seed, the examples, what it imports."""

import ast
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from builder.git import OLDEST
from builder.orders import Environment
from builder.outcome import Exit
from builder.toolchain import go_env
from tests.builder.conftest import Bench
from tests.support.processes import REPOSITORY

DOCKERFILE = (REPOSITORY / "builder" / "Dockerfile").read_text()
SEEDS = 'echo "$@" >> "$GOCACHE/asked"; echo "$GOARCH $CGO_ENABLED $GOTOOLCHAIN" >> "$GOCACHE/asked"'


def test_it_needs_nothing_but_what_its_image_has() -> None:
    allowed = {"builder", "httpx", "certifi", *sys.stdlib_module_names}
    for path in (REPOSITORY / "builder").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_the_dockerfile_names_files_that_are_there_and_runs_as_nobody() -> None:
    for line in re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE):
        assert (REPOSITORY / line).exists(), line
    assert DOCKERFILE.index("USER 65532:65532") < DOCKERFILE.index("builder.seed") < DOCKERFILE.index("ENTRYPOINT")
    assert 'ENTRYPOINT ["python", "-m", "builder"]' in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE
    assert OLDEST == (2, 37)


def test_the_dockerfiles_toolchain_is_the_wheels(go: str) -> None:
    said = subprocess.run([go, "version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"ARG GO_VERSION=(\S+)", DOCKERFILE)
    assert version is not None
    assert f"go{version[1]} " in said


def test_the_seed_is_made_as_builds_will_ask_for_it(tmp_path: Path) -> None:
    fake = tmp_path / "go"
    fake.write_text(f"#!/bin/sh\n{SEEDS}\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "builder.seed", str(tmp_path / "cache"), "amd64", "arm64"]
    subprocess.run(command, env={"SLIPWAY_GO": str(fake), "PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path, check=True)
    asked = (tmp_path / "cache" / "asked").read_text().splitlines()
    assert asked == ["build -trimpath std", "amd64 0 local", "build -trimpath std", "arm64 0 local"]


def test_a_seed_fits_a_build(bench: Bench) -> None:
    """Not one package of the standard library is compiled again in a build that starts from the seed."""
    environ = bench.environ()
    environment = Environment(
        url="", run_id="", token="", deadline=0, instance="", hold=False, go=bench.go, goroot=None,
        gocache=bench.gocache, work=Path(environ["SLIPWAY_WORK"]), ca_file=None,
    )  # fmt: skip
    (environment.work / "go.mod").write_text("module m\n\ngo 1.25\n")
    (environment.work / "main.go").write_text('package main\n\nimport _ "net/http"\n\nfunc main() {}\n')
    env = go_env(environment, go=bench.go)
    command = [bench.go, "list", "-deps", "-trimpath", "-f", "{{if and .Standard .Stale}}{{.ImportPath}}{{end}}", "."]
    stale = subprocess.run(command, env=env, cwd=environment.work, check=True, capture_output=True, text=True)
    assert stale.stdout.split() == []


@pytest.mark.parametrize("name", ["echo-agent", "vendored-agent"])
async def test_the_examples_build(bench: Bench, name: str) -> None:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(REPOSITORY / "examples" / name, arcname=".")
    bench.plane.source = out.getvalue()
    assert await bench.run() == Exit.DONE
    assert bench.plane.completion is not None
    modules = [module["path"] for module in bench.plane.completion["modules"]]
    assert modules == ([] if name == "echo-agent" else ["github.com/oklog/ulid/v2"])
