"""Links lead somewhere, commands exist, and nothing of one machine is in the project."""

import ast
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main

from app.cli import app
from app.settings import Settings
from tests.docs import pages
from tests.support.processes import REPOSITORY

PAGES = {str(p.relative_to(REPOSITORY)): p.read_text() for p in pages.pages()}
CLI = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
# A folder below somebody's home. The account inside of our images is nobody's.
HOMES = re.compile(r"/(?:home|Users)/(?!agent\b)[a-z]\w*|(?<![\w.])/root/")
INDEXES = re.compile(r"pypi\.org|pythonhosted\.org|(?<!no-emit-)\b(?:extra-)?index-url\b|(?<!no-emit-)\bfind-links\b")


def test_there_are_pages() -> None:
    named = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    named |= {f"docs/{n}.md" for n in ("api", "architecture", "builder-protocol", "operations", "settings")}
    assert named <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in pages.links(PAGES[name]):
        if urlsplit(target).scheme:
            assert urlsplit(target).scheme == "https", target
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            assert anchor in pages.anchors(file.read_text()), f"{name} links to {target}, which has no such heading"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of a page: each line of its shell blocks, each command of it, and inline code."""
    lines = [line for body in pages.blocks(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    for line in [*lines, *pages.code(text)]:
        for part in re.split(r"&&|\|\||;|\|", line.split("    #")[0]):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue  # a quoted text over several lines, which is data for a command
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def refusal(words: list[str]) -> str | None:
    """Return what is wrong with a command of ours, None when nothing is."""
    command: Any = CLI
    for word in words:
        if word.startswith("--"):
            options = {o for parameter in command.params for o in parameter.opts} | {"--help"}
            if word not in options:
                return f"{word} is no option of {command.name}"
        elif commands_of := getattr(command, "commands", None):
            if word not in commands_of:
                return f"{word} is no command"
            command = commands_of[word]
    return None


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist(name: str) -> None:
    for words in commands(PAGES[name]):
        program, rest = words[0].rpartition("/")[2], words[1:]
        if program == "slipway":
            assert refusal(rest) is None, f"{name}: {words}: {refusal(rest)}"
        elif program == "make" and rest and not rest[0].startswith("#"):
            assert rest[0] in TARGETS, f"{name}: {words}"
        elif program.startswith("python") and rest[:1] == ["-m"]:
            assert importlib.util.find_spec(rest[1]) is not None, f"{name}: {words}"


def test_a_command_that_is_none_is_noticed() -> None:
    assert refusal(["serve"]) is None
    assert refusal(["keys", "create", "NAME"]) is None
    assert refusal(["start"]) == "start is no command"
    assert refusal(["worker", "--remote"]) == "--remote is no option of worker"
    text = "`slipway serve`\n\n```sh\nA=b slipway nothing   # so\n.venv/bin/slipway worker --local && make all\n```\n"
    assert [w for w in commands(text) if "slipway" in w[0]] == [
        ["slipway", "nothing"],
        [".venv/bin/slipway", "worker", "--local"],
        ["slipway", "serve"],
    ]


def test_paths_in_backticks_are_there() -> None:
    known = re.compile(r"(?:app|builder|docs|examples|migrations|requirements|tests|benchmarks)/[\w./-]+")
    for name, text in PAGES.items():
        for word in pages.code(text):
            if known.fullmatch(word):
                assert (REPOSITORY / word).exists(), f"{name} names {word}, which is not there"


def test_variables_of_ours_are_settings() -> None:
    """What a builder is given is on the protocol's page; the example of a platform has settings of its own."""
    known = set(re.findall(r"SLIPWAY_[A-Z_]+", PAGES["docs/settings.md"] + PAGES["docs/builder-protocol.md"]))
    assert known > {"SLIPWAY_HOME", "SLIPWAY_URL"}
    for name, text in PAGES.items():
        own = {f"SLIPWAY_PLAIN_{n}" for n in ("BUILDER", "_FOLDER", "_MAX_BUILDERS")} if "adding" in name else set()
        assert set(re.findall(r"SLIPWAY_[A-Z_]+[A-Z]", text)) - own <= known, name


def strings() -> str:
    """Return every text that the code has, f-strings in their constant parts."""
    nodes = (node for path in (REPOSITORY / "app").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_messages_to_look_for_are_those_of_the_code() -> None:
    said = strings()
    quoted = [w for w in pages.code(pages.section(PAGES["docs/operations.md"], "What to do when")) if w.count(" ") > 2]
    assert len(quoted) > 5
    for message in (w for w in quoted if not w.startswith(("GET ", "POST "))):
        for part in re.split(r"<\w+>", message):
            assert part in said, f"{message!r} is nowhere said: {part!r}"


# --------------------------------------------------------------------------------------------------- leaks


def foreign(text: str, hosts: frozenset[str] = frozenset()) -> list[str]:
    """Return what a file has of one machine: folders of a home, addresses of package indexes."""
    found = [m[0] for pattern in (HOMES, INDEXES) for m in pattern.finditer(text)]
    return found + [h for h in hosts if h in text]


def index_hosts() -> frozenset[str]:
    """Return the hosts of the package indexes that this machine is told to use, as far as it is told by variables."""
    names = (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "NPM_CONFIG_REGISTRY",
        "GOPROXY",
    )
    urls = [word for name in names for word in re.split(r"[\s,|]+", os.environ.get(name, ""))]
    default = str(Settings.model_fields["goproxy"].default)
    return frozenset(h for u in urls if (h := urlsplit(u).hostname)) - {urlsplit(default).hostname or ""}


def test_nothing_of_one_machine_is_in_the_project() -> None:
    hosts, files = index_hosts(), [p for p in pages.tracked() if p != Path(__file__)]
    assert len(files) > 100
    for path in files:
        assert foreign(path.read_text(errors="replace"), hosts) == [], path


@pytest.mark.parametrize(
    "text",
    [
        "see /home/ada/clone",
        "in /Users/ada",
        "cd /root/x",
        "--index-url https://x",
        "https://pypi.org/simple",
        "at a.test",
    ],
)
def test_a_leak_is_noticed(text: str) -> None:
    assert foreign(text, frozenset({"a.test"}))


@pytest.mark.parametrize(
    "text", ["root:x:0:0:root:/root:/sbin", "HOME=/home/agent", "--no-emit-index-url", "dist/root/x"]
)
def test_what_is_no_leak_passes(text: str) -> None:
    assert foreign(text, frozenset({"a.test"})) == []
