"""Run commands as the dropped account, although what they need lies below folders that account can't enter.

A control plane that runs as root drops its privileges for PostgreSQL and for sandboxes. When Python, a clone or a home
lies below root's own 0700 folder, the dropped account can't get there, and opening that folder to everybody is not
ours to do: :mod:`app.embedded.launcher` makes a view of the file system in which just the kept paths can be reached.
"""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from app.embedded.errors import ReachError
from app.embedded.launcher import allows, follow

LAUNCHER = Path(__file__).with_name("launcher.py")


class Account(NamedTuple):
    """An unprivileged account that a process of root becomes."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """Return the account to drop to: ``postgres``, else ``nobody``; None when this process isn't root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise ReachError("running as root, and there is no account `postgres` or `nobody` to drop to; run as another user")


def reachable(path: str | os.PathLike[str], who: Account | None) -> bool:
    """Tell whether ``who`` (None: this process) can get to ``path`` and read it, and enter or execute what is for that.

    Goes by owner and mode, so an ACL may make it wrong; the launcher looks again with the real credentials.
    """
    text = str(Path(path).absolute())
    try:
        if who is None:
            wanted = os.R_OK | (os.X_OK if Path(text).stat().st_mode & 0o111 else 0)
            return os.access(text, wanted)
        folders, _, real = follow(text)
        found = Path(real).stat()
        bits = 5 if found.st_mode & 0o111 else 4
        return all(allows(f, who.uid, who.gid, 1) for f in folders) and allows(real, who.uid, who.gid, bits)
    except OSError:
        return False


def launch_prefix(
    who: Account | None,
    keep: Iterable[str | os.PathLike[str]] = (),
    die_with_parent: signal.Signals | None = None,
    no_new_privs: bool = False,
) -> list[str]:
    """Return the words to put before a command so that it runs as ``who`` and can use each of ``keep``.

    Empty when there is nothing to do. ``keep`` are files or folders with all that is below them, anywhere.
    With ``die_with_parent`` the command gets that signal when this very process ends, so build the prefix in the
    process that spawns it. The command starts in the working folder if the account may enter that, else in ``/``.
    """
    if who is None and die_with_parent is None and not no_new_privs:
        return []
    words = [sys.executable, "-I", "-S", str(LAUNCHER)]
    if who is not None:
        words += ["--uid", str(who.uid), "--gid", str(who.gid)]
        for path in keep:
            words += ["--keep", str(Path(path).absolute())]
    if die_with_parent is not None:
        words += ["--die-with-parent", str(int(die_with_parent)), "--parent", str(os.getpid())]
    if no_new_privs:
        words.append("--no-new-privs")
    return [*words, "--"]


def obstacle(who: Account | None, keep: Sequence[str | os.PathLike[str]]) -> str | None:
    """Return why ``who`` could not use ``keep`` even through the launcher, or None when it can.

    Costs nothing where the modes already allow it; else tries the launcher for real (some 20 ms, blocking), because
    a container may hold the capability and still forbid the mount.
    """
    if all(reachable(path, who) for path in keep):
        return None
    if who is None:
        return f"this user can't use {next(os.fspath(p) for p in keep if not reachable(p, None))}"
    command = [*launch_prefix(who, keep)[:-1], "--check"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    return None if done.returncode == 0 else done.stderr.strip().removeprefix("reach: ") or "the launcher failed"
