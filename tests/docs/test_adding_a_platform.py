"""The platform of docs/adding-a-platform.md, put into a copy of the project as the page says, keeps the contract there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import pages
from tests.support.processes import REPOSITORY

PAGE = pages.read("docs/adding-a-platform.md")
#: What a page about a platform has to do with, besides the platform's own tests.
TESTS = ("tests/platforms/test_plain.py", "tests/docs/test_settings_page.py", "tests/docs/test_tables.py")
OUTCOME = re.compile(r"(\d+) passed[^\n]*$")


def parts(language: str) -> list[tuple[str, str]]:
    """Return the blocks of a language, each with the path that its first line names."""
    split = (body.split("\n", 1) for body in pages.blocks(PAGE, language))
    return [(head.removeprefix("# "), body) for head, body in split]


def changed(text: str, diff: str) -> str:
    """Return a file's text with a block's lines taken out and put in; AssertionError unless it is there once."""
    lines = diff.splitlines()
    old, new = ("\n".join(line[1:] for line in lines if line[:1] != sign) for sign in "+-")
    if not lines[0].startswith(" ") and not lines[-1].startswith(" "):
        old, new = old.strip(), new.strip()  # a part of a line
    assert text.count(old) == 1, f"not there once: {old}"
    return text.replace(old, new)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the tests need, with the page's files and lines in it."""
    root = tmp_path / "copy"
    for folder in ("app", "builder", "docs", "tests"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, root / name)
    for name, body in parts("python"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(body)
    for name, diff in parts("diff"):
        (root / name).write_text(changed((root / name).read_text(), diff))
    for line in "".join(pages.blocks(PAGE, "sh")).splitlines():
        run(root, *line.split())
    return root


def run(root: Path, program: str, *arguments: str) -> str:
    """Run a program of this interpreter's folder in the copy and return its output, which is also shown when it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SLIPWAY_", "COV"))}
    env = kept | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_s_platform_keeps_the_contract(copy: Path) -> None:
    outcome = OUTCOME.search(run(copy, "pytest", "-q", "-p", "no:cacheprovider", *TESTS).strip())
    assert outcome is not None
    assert int(outcome[1]) > 20


def test_the_page_s_files_are_in_our_style_and_in_their_layer(copy: Path) -> None:
    run(copy, "ruff", "check", "--no-cache", "app", "tests/platforms")
    run(copy, "ruff", "format", "--no-cache", "--check", "app", "tests/platforms")
    run(copy, "lint-imports", "--no-cache")


def test_every_platform_is_in_the_layers() -> None:
    layers = (REPOSITORY / "pyproject.toml").read_text()
    folders = {p.parent.name for p in (REPOSITORY / "app/platforms").glob("*/__init__.py")}
    assert len(folders) >= 5
    assert {name for name in folders if f"app.platforms.{name}" not in layers} == set()
