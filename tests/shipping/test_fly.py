"""fly.toml as processes from the installed wheel: release command first, then each group with its environment and checks."""

import contextlib
import functools
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.secrets import make_keys
from tests.shipping import files
from tests.shipping.installed import Installed
from tests.shipping.parts import Part, Stand, part, resolve
from tests.support.waiting import eventually_sync

KEY = "slp_of_the_test_and_long_enough"


def secrets(database_url: str) -> dict[str, str]:
    """Return a value for each secret that the head of fly.toml tells to set."""
    values = {
        "DATABASE_URL": database_url,
        "SLIPWAY_SECRET_KEYS": make_keys(),
        "SLIPWAY_API_KEY": KEY,
        "SLIPWAY_REGISTRY": "https://registry.example.com",
        "SLIPWAY_REGISTRY_USERNAME": "slipway",
        "SLIPWAY_REGISTRY_PASSWORD": "of the registry",
        "SLIPWAY_BUILDER_IMAGE": "registry.example.com/slipway-builder@sha256:" + "0" * 64,
    }
    return {name: values[name] for name in files.fly_secrets()}


@pytest.mark.timeout(300)
def test_a_deployment_goes_up_in_order_and_stops(installed: Installed, empty_database_url: str, tmp_path: Path) -> None:
    fly, stand = files.fly(), Stand(tmp_path, {})
    stage = files.lineage(files.dockerfile(fly["build"]["dockerfile"]), fly["build"]["build-target"])
    given = files.image_environment(stage) | fly["env"] | secrets(empty_database_url)
    venv = installed.target(fly["build"]["build-target"])
    env = {group: stand.environment(given, group, venv) for group in ["release", *fly["processes"]]}
    entry = stage.words("ENTRYPOINT")
    release = resolve([*entry, *fly["deploy"]["release_command"].split()], env["release"])
    subprocess.run(release, env=env["release"], cwd="/", timeout=120, check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        parts = {
            group: stack.enter_context(
                part(group, [*entry, *command.split()], env[group], [], files.seconds(fly["kill_timeout"]))
            )
            for group, command in fly["processes"].items()
        }
        parts["worker"].child.line("slipway worker is up", 90)
        for service in fly["services"]:
            group = service["processes"][0]
            eventually_sync(functools.partial(_passes, service, stand, parts[group]), 60)
        _refuses_local(stand)
        for one in parts.values():
            one.end()


def _passes(service: dict[str, Any], stand: Stand, one: Part) -> bool:
    """Do what Fly's proxy does for a service's checks, on the port that stands for its internal one."""
    assert one.child.process.poll() is None, one.child.output
    port = {8080: stand.port, 8081: stand.gateway_port}[service["internal_port"]]
    try:
        for _ in service.get("tcp_checks", ()):
            socket.create_connection(("127.0.0.1", port), 5).close()
        for check in service.get("http_checks", ()):
            answer = httpx.request(check["method"].upper(), f"http://127.0.0.1:{port}{check['path']}", trust_env=False)
            assert answer.is_success
    except (OSError, httpx.TransportError):
        return False
    return True


def _refuses_local(stand: Stand) -> None:
    body = {"source": {"kind": "files", "files": {"go.mod": "module a\n"}}, "platform": "local"}
    url, headers = f"http://127.0.0.1:{stand.port}/v1/builds", {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 422
    assert "SLIPWAY_LOCAL__ENABLED" in answer.text
