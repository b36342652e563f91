"""Become another account and run a command, although what it needs lies below folders that account can't enter.

The program behind :mod:`app.embedded.reach`, run as a plain file by ``python -I -S``::

    launcher.py [--uid U --gid G] [--keep PATH]... [--die-with-parent SIGNAL] [--parent PID]
                [--no-new-privs] [--check] -- command args...

A private mount namespace has an empty folder over each closed one, and the kept paths bound back at their own places;
then everything is dropped. Where the modes allow all that is kept, no namespace is made. ``--check`` does all but run.
Exit codes of its own, each with one line on stderr: 125 the launcher failed, 126 the command can't be executed,
127 there is no such command.

Each start of PostgreSQL and of each sandbox pays for the imports here, so there are hardly any: ``signal``, ``typing``
and ``argparse`` would double its 15 ms.

Sources: mount_namespaces(7), mount(2), prctl(2). The parent-death signal is cleared by a change of credentials, so it
is set after the drop; it fires when the *thread* that forked ends.
"""

# No pathlib (PTH is off for this file): it alone costs as much as the whole launcher.
from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGINT, SIGPIPE, SIGXFSZ = 2, 13, 25
MAX_LINKS = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""


class LaunchError(Exception):
    """The order can't be carried out; the text is one sentence for a person."""


def follow(path: str) -> tuple[list[str], list[str], str]:
    """Walk an absolute path as the kernel does: (folders passed through, links followed, the real path)."""
    folders: list[str] = []
    links: list[str] = []
    here, rest = "/", path.split("/")[::-1]
    while rest:
        part = rest.pop()
        if part in {"", "."}:
            continue
        folders.append(here)
        if part == "..":
            here = os.path.dirname(here)
            continue
        full = os.path.join(here, part)
        if not os.path.islink(full):
            here = full
            continue
        links.append(full)
        if len(links) > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(full)
        here = "/" if target.startswith("/") else here
        rest.extend(target.split("/")[::-1])
    return folders, links, here


def allows(path: str, uid: int, gid: int, bits: int) -> bool:
    """Tell whether the mode of ``path`` grants ``bits`` (4 read, 2 write, 1 enter) to an account in one group."""
    found = os.stat(path)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (stat.S_IMODE(found.st_mode) >> shift) & bits == bits


def checked(result: int, what: str) -> None:
    """Raise LaunchError when a C call failed."""
    if result != 0:
        raise LaunchError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(
    libc: ctypes.CDLL, source: str, target: str, flags: int, *, kind: str | None = None, data: str | None = None
) -> None:
    """mount(2)."""
    words = [None if w is None else os.fsencode(w) for w in (source, target, kind)]
    detail = None if data is None else data.encode()
    checked(libc.mount(*words, ctypes.c_ulong(flags), detail), f"can't mount over {target}")


def open_way(libc: ctypes.CDLL, real: str, uid: int, gid: int) -> None:
    """Make every folder above ``real`` one that the account can enter, by covering the first that it can't."""
    here = ""
    for part in os.path.dirname(real).split("/"):
        here = os.path.join(here, part) or "/"
        if not os.path.lexists(here):
            os.mkdir(here, 0o755)  # only ever inside a cover of ours: elsewhere the folder is there
        elif not allows(here, uid, gid, 1):
            if here == "/":
                raise LaunchError("the account can't enter the root folder")
            mount(libc, "slipway", here, MS_NOSUID | MS_NODEV, kind="tmpfs", data="mode=0755,size=1m")


def uncover(libc: ctypes.CDLL, keep: Sequence[str], uid: int, gid: int) -> None:
    """Make each of ``keep`` usable at its own place, in a mount namespace of our own."""
    walks = [follow(path) for path in keep]
    if all(allows(folder, uid, gid, 1) for folders, _, _ in walks for folder in folders):
        return
    checked(libc.unshare(CLONE_NEWNS), "can't make a mount namespace (CAP_SYS_ADMIN is missing)")
    mount(libc, "none", "/", MS_REC | MS_PRIVATE)
    # Opened inside the new namespace (mount(2) takes no source of another one) and before anything is covered.
    sources = {real: os.open(real, os.O_PATH | os.O_CLOEXEC) for _, _, real in walks}
    links = {link: os.readlink(link) for _, followed, _ in walks for link in followed}
    for real, source in sorted(sources.items(), key=lambda item: item[0].count("/")):
        open_way(libc, real, uid, gid)
        kept = os.fstat(source)
        if not os.path.lexists(real):
            if stat.S_ISDIR(kept.st_mode):
                os.mkdir(real, 0o755)
            else:
                os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            mount(libc, f"/proc/self/fd/{source}", real, MS_BIND | MS_REC)
        os.close(source)
    for link, target in links.items():
        open_way(libc, link, uid, gid)
        if not os.path.lexists(link):
            os.symlink(target, link)


def drop(uid: int, gid: int) -> None:
    """Become the account, for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def usable(path: str) -> None:
    """Raise LaunchError unless the account we have become can read ``path``, and enter or execute it."""
    try:
        wanted = os.R_OK | (os.X_OK if os.stat(path).st_mode & 0o111 else 0)
        fine = os.access(path, wanted)
    except OSError as error:
        raise LaunchError(f"uid {os.getuid()} can't get to {path}: {error.strerror}") from None
    if not fine:
        raise LaunchError(f"uid {os.getuid()} may not use {path}: owner or mode forbid it")


class Order:
    """The parsed command line."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.keep: list[str] = []
        self.flags: set[str] = set()
        self.command: list[str] = []


def parse(words: Sequence[str]) -> Order:
    """Parse the command line; argparse is slow to import."""
    order = Order()
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            order.command.extend(left)
            break
        if word in {"--no-new-privs", "--check"}:
            order.flags.add(word)
        elif word == "--keep" and left and left[0].startswith("/"):
            order.keep.append(left.pop(0))
        elif word in {"--uid", "--gid", "--parent", "--die-with-parent"} and left and left[0].isdecimal():
            order.values[word] = int(left.pop(0))
        else:
            raise LaunchError(f"wrong argument {word!r}")
    if not order.command and "--check" not in order.flags:
        raise LaunchError("no command after --")
    if ("--uid" in order.values) != ("--gid" in order.values) or (order.keep and "--uid" not in order.values):
        raise LaunchError("--uid and --gid go together, and --keep needs them")
    return order


def execute(command: list[str]) -> NoReturn:
    """Become the program, looked for along PATH. (os.execvp imports a module, which may be covered by now.)"""
    name = command[0]
    folders = [""] if "/" in name else os.environ.get("PATH", os.defpath).split(":")
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    for folder in folders:
        try:
            os.execv(os.path.join(folder, name), command)  # noqa: S606 - the very purpose
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                failure = OSError(error.errno, error.strerror, name)
    raise failure


def become(order: Order, parent: int) -> NoReturn:
    """Carry out the order; ends in the command itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.getcwd() if os.path.exists(".") else "/"
    if "--uid" in order.values:
        uid, gid = order.values["--uid"], order.values["--gid"]
        uncover(libc, order.keep, uid, gid)
        drop(uid, gid)
        for path in order.keep:
            usable(path)
    if "--check" in order.flags:
        raise SystemExit(0)
    try:
        os.chdir(folder)  # a covered folder is still our working folder until we walk to it again
    except OSError:
        os.chdir("/")
    if "--no-new-privs" in order.flags:
        checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "can't set no_new_privs")
    if "--die-with-parent" in order.values:
        checked(libc.prctl(PR_SET_PDEATHSIG, order.values["--die-with-parent"], 0, 0, 0), "can't bind to the parent")
        if os.getppid() != parent:
            raise LaunchError("the parent is gone already")
    for number in (SIGPIPE, SIGXFSZ):
        libc.signal(number, None)  # Python ignores these two, and exec would hand that on
    execute(order.command)


def main(words: Sequence[str]) -> NoReturn:
    """Run the launcher with the words of its command line."""
    try:
        order = parse(words)
        become(order, order.values.get("--parent", os.getppid()))
    except LaunchError as error:
        code, text = 125, str(error)
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        text = f"{error.strerror}{name}"
        code = {errno.ENOENT: 127, errno.EACCES: 126, errno.ENOEXEC: 126}.get(error.errno or 0, 125)
    except KeyboardInterrupt:
        code, text = 128 + SIGINT, "interrupted"
    sys.stderr.write(f"reach: {text}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
