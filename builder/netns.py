"""A launcher, run as a script: ``python -I -S netns.py <command> …`` runs the command without any network.

It moves itself into a network namespace of its own, where not even the loopback is up, and becomes the command. As an
ordinary user it needs a user namespace for that, in which it stays the same user. Where the kernel allows neither it
exits with 125. Without a command it only checks that it works, and exits 0. Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys

# linux/sched.h and linux/prctl.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CANNOT = 125


def isolate(libc: ctypes.CDLL) -> bool:
    """Leave the network of this process; False when the kernel does not let us."""
    if libc.unshare(CLONE_NEWNET) != 0:
        uid, gid = os.geteuid(), os.getegid()
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            # A uid 0 without capabilities may not map itself (user_namespaces(7)). It then goes by another name in
            # there, but files still take it for who it is.
            with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w", encoding="utf-8") as file:  # noqa: PTH123 - fast
                file.write(text)
    return all(name == "lo" for _, name in socket.if_nameindex())


def main(command: list[str]) -> int:
    """Become ``command`` without network."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not isolate(libc):
        return CANNOT
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if command:
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - no shell is the point
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
