"""What can be told of the shipping files without running them. The rest is in test_split and test_fly, as processes."""

import re
from typing import Any

import pytest
import typer.main
from pydantic import AliasChoices

from app.cli import app
from app.settings import Settings
from tests.shipping import files
from tests.shipping.installed import locked
from tests.support.processes import REPOSITORY

VALUES = dict.fromkeys(files.compose_variables(), "x")
COMPOSE = files.compose(VALUES)
OURS = {n: s for n, s in COMPOSE["services"].items() if s["image"].startswith("slipway")}
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def known_variables() -> set[str]:
    """Return every variable that some setting is read from."""
    names: set[str] = set()
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        names |= {str(c) for c in alias.choices} if isinstance(alias, AliasChoices) else {f"SLIPWAY_{name.upper()}"}
        default = info.default
        if hasattr(type(default), "model_fields"):
            names |= {f"SLIPWAY_{name.upper()}__{inner.upper()}" for inner in type(default).model_fields}
    return names


def test_a_variable_that_is_no_setting_is_noticed() -> None:
    assert {"DATABASE_URL", "SLIPWAY_HOME", "SLIPWAY_LOCAL__ENABLED", "PORT"} <= known_variables()
    assert "SLIPWAY_SOMETHING" not in known_variables()


@pytest.mark.parametrize("name", OURS)
def test_compose_sets_only_what_is_a_setting(name: str) -> None:
    assert set(OURS[name]["environment"]) <= known_variables()


def test_dockerfile_sets_only_what_is_a_setting() -> None:
    stages = files.dockerfile("Dockerfile")
    for target in ("control", "local"):
        ours = {n for n in files.image_environment(files.lineage(stages, target)) if n.startswith("SLIPWAY_")}
        assert ours
        assert ours <= known_variables()


def test_fly_sets_only_what_is_a_setting() -> None:
    assert files.fly_secrets() >= {"DATABASE_URL", "SLIPWAY_SECRET_KEYS", "SLIPWAY_API_KEY"}
    assert set(files.fly()["env"]) | files.fly_secrets() <= known_variables()


def test_every_command_is_one() -> None:
    fly = files.fly()
    lines = [s["command"] for s in OURS.values()]
    lines += [fly["deploy"]["release_command"].split(), *(c.split() for c in fly["processes"].values())]
    lines += [files.lineage(files.dockerfile("Dockerfile"), "control").words("CMD")]
    assert {line[0] for line in lines} == {"migrate", "api", "worker", "gateway"}
    assert {line[0] for line in lines} <= COMMANDS


def test_the_default_image_is_the_control_plane_and_not_root() -> None:
    stages = files.dockerfile("Dockerfile")
    assert list(stages)[-1] == "control"
    for target in ("control", "local"):
        stage = files.lineage(stages, target)
        assert [text for kind, text in stage.lines if kind == "USER"][-1] == "10001:10001"
        assert stage.words("ENTRYPOINT") == ["slipway"]
        assert files.health_command(stage)[:3] == ["python", "-m", "app.check"]


def test_whatever_the_images_copy_is_there_and_sent() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in ("Dockerfile", "builder/Dockerfile"):
        for stage in files.dockerfile(path).values():
            for text in (t for kind, t in stage.lines if kind == "COPY" and "--from" not in t):
                for source in text.split()[:-1]:
                    assert files.exists(source), f"{path}: {source}"
                    assert source in kept or source.split("/")[0] in kept, f"{path}: {source} is not sent"


def test_libraries_are_locked_by_hash() -> None:
    for path in ("Dockerfile", "builder/Dockerfile"):
        for stage in files.dockerfile(path).values():
            for kind, text in stage.lines:
                for command in re.findall(r"pip install [^&]*", text) if kind == "RUN" else ():
                    assert "--require-hashes" in command or "--no-deps /dist/" in command, command


def test_images_go_by_a_tag_that_says_something() -> None:
    images = [s["image"] for s in COMPOSE["services"].values()]
    assert all(re.search(r":[0-9]", image) for image in images), images
    for path in ("Dockerfile", "builder/Dockerfile"):
        parents = [s.parent for s in files.dockerfile(path).values()]
        assert all(":" in p or p in files.dockerfile(path) for p in parents), parents


def test_secrets_are_asked_for_and_never_written() -> None:
    assert {"SLIPWAY_SECRET_KEYS", "SLIPWAY_API_KEY", "POSTGRES_PASSWORD", "SLIPWAY_REGISTRY_PASSWORD"} == set(VALUES)
    text = (REPOSITORY / "docker-compose.yml").read_text()
    assert re.findall(r"\$\{[A-Z_]+\}", text) == []
    assert not {n for n in files.fly()["env"] if re.search("KEY|PASSWORD|TOKEN|DATABASE", n)}


def test_only_those_who_talk_to_cloud_platforms_see_their_tokens() -> None:
    assert {n for n, s in OURS.items() if "env_file" in s} == {"api", "worker", "gateway"}


def test_each_part_waits_until_what_it_needs_is_well() -> None:
    def after(name: str) -> dict[str, Any]:
        return {n: d["condition"] for n, d in COMPOSE["services"][name].get("depends_on", {}).items()}

    assert after("migrate") == {"postgres": "service_healthy"}
    assert after("api") == {"migrate": "service_completed_successfully", "registry": "service_healthy"}
    for name in ("worker", "gateway", "worker-local"):
        assert after(name)["api"] == "service_healthy"
    for name in COMPOSE["services"]:
        for other, condition in after(name).items():
            checked = "test" in COMPOSE["services"][other].get("healthcheck", {})
            assert checked is (condition == "service_healthy"), f"{name} waits for {other}"


def test_ports_agree() -> None:
    ports = {str(Settings.model_fields["port"].default), str(Settings.model_fields["gateway_port"].default)}
    exposed = [t for kind, t in files.lineage(files.dockerfile("Dockerfile"), "control").lines if kind == "EXPOSE"]
    assert set(exposed[-1].split()) == ports
    assert {p.split(":")[-1] for p in COMPOSE["services"]["api"]["ports"]} == ports
    fly = files.fly()
    by_group = {s["processes"][0]: str(s["internal_port"]) for s in fly["services"]}
    assert by_group == {"api": fly["env"]["SLIPWAY_PORT"], "gateway": fly["env"]["SLIPWAY_GATEWAY_PORT"]}
    public = str(next(s for s in fly["services"] if s["processes"] == ["api"])["ports"][0]["port"])
    assert fly["env"]["SLIPWAY_PUBLIC_URL"].endswith(f":{public}")


def test_fly_lets_no_worker_stop() -> None:
    fly = files.fly()
    assert set(fly["processes"]) == {"api", "worker", "gateway"}
    assert set(fly["restart"][0]["processes"]) == set(fly["vm"][0]["processes"]) == set(fly["processes"])
    assert fly["restart"][0]["policy"] == "always"
    assert all(s["auto_stop_machines"] == "off" and s["min_machines_running"] >= 1 for s in fly["services"])
    assert fly["build"]["build-target"] in files.dockerfile(fly["build"]["dockerfile"])


@pytest.mark.parametrize("name", ["runtime", "local"])
def test_what_the_images_and_we_have_in_one_version_has_one_set_of_hashes(name: str) -> None:
    ours = {str(requirement): hashes for requirement, hashes in locked(REPOSITORY / "requirements/dev.txt")}
    theirs = {str(requirement): hashes for requirement, hashes in locked(REPOSITORY / f"requirements/{name}.txt")}
    assert all(theirs.values())
    same = ours.keys() & theirs.keys()
    assert "fastapi" in {requirement.partition("==")[0] for requirement in same}
    assert {one: theirs[one] for one in same} == {one: ours[one] for one in same}
