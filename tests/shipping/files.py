"""Readers of the shipping files: what Docker, Compose and Fly would take from them, as far as these files need it."""

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import REPOSITORY

_VARIABLE = re.compile(r"\$(?:\$|\{([A-Z_]+)(?::\?[^}]*)?\})")


@dataclass
class Stage:
    """One stage of a Dockerfile: instructions in order, and what its image would run with."""

    name: str
    parent: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def words(self, instruction: str) -> list[str]:
        """Return the operands of the last instruction of this kind, in exec form."""
        last = [text for kind, text in self.lines if kind == instruction][-1]
        return list(json.loads(last))


def dockerfile(path: str) -> dict[str, Stage]:
    """Read a Dockerfile into its stages; continuation lines are joined, comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / path).read_text(), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = stages[name or "last"] = Stage(name or "last", parent)
        elif kind and current is not None:
            current.lines.append((kind, rest.strip()))
    return stages


def lineage(stages: Mapping[str, Stage], name: str) -> Stage:
    """Return the stage with all that it inherits."""
    own = stages[name]
    if own.parent not in stages:
        return own
    above = lineage(stages, own.parent)
    return Stage(name, above.parent, above.lines + own.lines)


def image_environment(stage: Stage) -> dict[str, str]:
    """Return what ENV sets."""
    words = (word.partition("=") for kind, text in stage.lines if kind == "ENV" for word in shlex.split(text))
    return {name: value for name, _, value in words}


def health_command(stage: Stage) -> list[str]:
    """Return the command of the last HEALTHCHECK."""
    text = [text for kind, text in stage.lines if kind == "HEALTHCHECK"][-1]
    return list(json.loads(text[text.index("CMD") + 3 :]))


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Read docker-compose.yml with its variables put in; KeyError names one that is missing."""
    text = _VARIABLE.sub(lambda m: variables[m[1]] if m[1] else "$", _without_comments("docker-compose.yml"))
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    return document


def compose_variables() -> set[str]:
    """Return the names of the variables that docker-compose.yml asks for."""
    return {m[1] for m in _VARIABLE.finditer(_without_comments("docker-compose.yml")) if m[1]}


def _without_comments(path: str) -> str:
    return re.sub(r"^\s*#.*$", "", (REPOSITORY / path).read_text(), flags=re.MULTILINE)


def fly() -> dict[str, Any]:
    """Read fly.toml."""
    return tomllib.loads((REPOSITORY / "fly.toml").read_text())


def fly_secrets() -> set[str]:
    """Return the names that fly.toml's head tells the operator to set as secrets."""
    head = (REPOSITORY / "fly.toml").read_text().partition("\napp = ")[0]
    return set(re.findall(r"\b([A-Z_]+)=…", head))


def seconds(text: str) -> float:
    """Read a duration such as ``40s`` or ``1m``."""
    return float(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def order(services: Mapping[str, Any]) -> list[str]:
    """Return the services such that each comes after those it depends on."""
    done: list[str] = []
    while len(done) < len(services):
        ready = [n for n, s in services.items() if n not in done and set(s.get("depends_on", {})) <= set(done)]
        assert ready, "the services depend on each other in a circle"
        done += ready
    return done


def exists(path: str) -> bool:
    """Tell whether a path that a file names is there."""
    return (REPOSITORY / Path(path)).exists()
