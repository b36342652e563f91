"""Reads the pages: tables, fenced blocks, links and headings."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import REPOSITORY

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")


def tracked() -> list[Path]:
    """Return every file of the project that is or may become part of it; all but the usual litter without git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=60).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        inside = ((p, p.relative_to(REPOSITORY).parts) for p in REPOSITORY.rglob("*") if p.is_file())
        return sorted(p for p, words in inside if not any(w.startswith(".") or w == "__pycache__" for w in words))
    return sorted(path for name in listed.decode().split("\0") if name and (path := REPOSITORY / name).is_file())


def pages() -> list[Path]:
    """Return the project's own pages."""
    return [p for p in tracked() if p.suffix == ".md" and "vendor" not in p.relative_to(REPOSITORY).parts]


def read(name: str) -> str:
    """Return a page by its path in the project."""
    return (REPOSITORY / name).read_text()


def blocks(text: str, language: str | None = None) -> list[str]:
    """Return the fenced blocks, of one language or all."""
    return [body for found, body in _FENCE.findall(text) if language is None or found == language]


def without_blocks(text: str) -> str:
    """Return the page without its fenced blocks."""
    return _FENCE.sub("", text)


def code(text: str) -> list[str]:
    """Return what stands between single backticks outside of fenced blocks."""
    return _CODE.findall(without_blocks(text))


def links(text: str) -> list[str]:
    """Return the targets of all links."""
    return _LINK.findall(without_blocks(text))


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings make."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in _HEADING.findall(without_blocks(text)))
    return {heading.replace(" ", "-") for heading in plain}


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next of its level or above; raises ValueError when there is none."""
    match = re.search(rf"^(#+) +{re.escape(heading)}$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"there is no heading {heading!r}")
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table, heads left out."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and re.fullmatch(r"\|[-:| ]+\|", lines[number + 1].strip())
        if line.startswith("|") and not is_head and not re.fullmatch(r"\|[-:| ]+\|", line.strip()):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def words(cell: str) -> list[str]:
    """Return what stands between backticks in a cell."""
    return _CODE.findall(cell)
