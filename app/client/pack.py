"""A folder as the archive that ``POST /v1/sources`` takes: the same tree gives the same bytes, whoever packs it and when.

What git would leave out stays out: every ``.gitignore`` counts below where it is, those above the folder too, up to the top of
the repository. ``.git`` is never sent.
"""

import gzip
import os
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pathspec import GitIgnoreSpec

from app.client.failed import Failed, usage

MIB = 1024 * 1024
MAX_FILES = 20_000
MAX_UNPACKED = 500 * MIB
MAX_PACKED = 50 * MIB
"""What an installation takes that was not told otherwise: SLIPWAY_MAX_SOURCE_FILES, _MAX_UNPACKED_BYTES, _MAX_SOURCE_BYTES."""
SHOWN = 5
"""So many files are named when there is too much."""


@dataclass(frozen=True)
class Rules:
    """One ``.gitignore`` and the folder it is in."""

    base: Path
    spec: GitIgnoreSpec

    def say(self, path: Path, *, folder: bool) -> bool | None:
        """Tell whether a path below is left out; None when nothing is said of it."""
        return self.spec.check_file(path.relative_to(self.base).as_posix() + "/" * folder).include


@dataclass(frozen=True)
class File:
    """A file to send; ``size`` in bytes."""

    path: Path
    name: str
    size: int
    executable: bool


def files(folder: Path) -> list[File]:
    """Return what is to be sent of a folder, by name; Failed when it is none, is empty, or has what no source may have."""
    top = folder.resolve()
    if not top.is_dir():
        raise usage(f"{folder} is no folder")
    try:
        found = sorted(_walk(top, top, _above(top)), key=lambda f: f.name.encode())
    except OSError as e:
        raise usage(f"{e.filename or folder} can't be read: {e.strerror}") from e
    if not found:
        raise usage(f"there are no files to send in {folder}", "Files that .gitignore names are left out.")
    return found


def _above(top: Path) -> tuple[Rules, ...]:
    """Return the rules of the repository that the folder is in; none if they leave out the folder itself, which is wanted."""
    root = next((p for p in (top, *top.parents) if (p / ".git").exists()), top)
    rules: tuple[Rules, ...] = ()
    for folder in reversed([p for p in top.parents if p == root or root in p.parents]):
        rules = _with(rules, folder)
    between = [p for p in (*reversed(top.parents), top) if root in p.parents]
    return () if any(_left_out(rules, p, folder=True) for p in between) else rules


def _with(rules: tuple[Rules, ...], folder: Path) -> tuple[Rules, ...]:
    file = folder / ".gitignore"
    if not file.is_file():
        return rules
    lines = file.read_text(errors="surrogateescape").splitlines()
    return (*rules, Rules(folder, GitIgnoreSpec.from_lines(lines)))


def _left_out(rules: tuple[Rules, ...], path: Path, *, folder: bool) -> bool:
    for rule in reversed(rules):  # the nearest one that says something decides
        if rule.base in path.parents and (said := rule.say(path, folder=folder)) is not None:
            return said
    return False


def _walk(top: Path, folder: Path, rules: tuple[Rules, ...]) -> Iterator[File]:
    rules = _with(rules, folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            path, is_folder = folder / entry.name, entry.is_dir(follow_symlinks=False)
            if entry.name == ".git" or _left_out(rules, path, folder=is_folder):
                continue
            if is_folder:
                yield from _walk(top, path, rules)
                continue
            name = path.relative_to(top).as_posix()
            if not _is_utf_8(name):
                raise usage(f"{name!r} is no name in UTF-8", "Rename it, or name it in .gitignore.")
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                what = "a symbolic link" if entry.is_symlink() else "no ordinary file"
                raise usage(
                    f"{name} is {what}; only files and folders can be sent", "Name it in .gitignore, or copy it."
                )
            yield File(path, name, found.st_size, bool(found.st_mode & 0o100))


def _is_utf_8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are none came as surrogates
        return False
    return True


def pack(found: list[File], *, check: bool = True) -> IO[bytes]:
    """Return the archive as a file that is gone once it is closed; Failed when it is larger than an installation takes.

    ``check`` False: this one takes more.
    """
    if check and len(found) > MAX_FILES:
        tops = Counter(f.name.partition("/")[0] for f in found).most_common(SHOWN)
        most = [f"{count:>10,} files  {name}" for name, count in tops]
        raise _too_much(f"{len(found):,} files; at most {MAX_FILES:,} are taken. Most are in", most)
    if check and (total := sum(f.size for f in found)) > MAX_UNPACKED:
        raise _too_much(f"{_mib(total)}; at most {_mib(MAX_UNPACKED)} are taken. The largest files", _largest(found))
    archive = tempfile.TemporaryFile(prefix="slipway-")  # noqa: SIM115 - the caller closes it
    try:
        with (
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=archive, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for file in found:
                _add(tar, file)
        if check and (size := archive.tell()) > MAX_PACKED:
            what = f"{_mib(size)} packed; at most {_mib(MAX_PACKED)} are taken. The largest files"
            raise _too_much(what, _largest(found))
    except BaseException:
        archive.close()
        raise
    return archive


def _add(tar: tarfile.TarFile, file: File) -> None:
    info = tarfile.TarInfo(file.name)
    info.mode = 0o755 if file.executable else 0o644
    try:
        with file.path.open("rb") as content:
            info.size = os.fstat(content.fileno()).st_size
            tar.addfile(info, content)
    except OSError as e:
        raise usage(f"{file.name} can't be read, or changed while it was: {e.strerror or e}") from e


def _largest(found: list[File]) -> list[str]:
    return [f"{_mib(f.size):>10}  {f.name}" for f in sorted(found, key=lambda f: -f.size)[:SHOWN]]


def _too_much(what: str, lines: list[str]) -> Failed:
    advice = "Name what the build does not need in .gitignore; --large sends it all to an installation that takes more."
    return usage("\n  ".join([f"this is too much to send: {what}:", *lines]), advice)


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
