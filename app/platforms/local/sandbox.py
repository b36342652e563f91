"""Command lines of bubblewrap for builders, services, the seed and the probe: pure functions.

Secrets never get in here: they travel in a file that only bubblewrap reads; a command line is open to everybody. All sandboxes
share the host's network: builders talk to the control plane and to GOPROXY (the builder drops the network for the
compile phase itself, so user namespaces stay usable inside), services listen on loopback. ``local`` is therefore no
tenant boundary: whoever runs here can reach what listens on this machine's loopback.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.settings import MIB

UID = 65532
GO, SITE, CODE = "/opt/go", "/opt/site", "/opt/code"
GOCACHE, WORK = "/gocache", "/work"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
CERTIFICATES = ("/etc/ssl", "/etc/pki", "/etc/ca-certificates")


@dataclass(frozen=True)
class Mount:
    """One host path that shows up inside, read-only unless ``writable``."""

    source: Path
    target: str
    writable: bool = False


def base(bwrap: Path, marker: str, *, network: bool = True) -> list[str]:
    """Return what every sandbox has: own user, pid, ipc, uts and cgroup namespaces, no capability, no terminal."""
    words = [str(bwrap), "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not network:
        words.append("--unshare-net")
    return [
        *words,
        *("--new-session", "--cap-drop", "ALL", "--uid", str(UID), "--gid", str(UID), "--hostname", marker),
    ]


def system() -> list[str]:
    """Return the host's programs and libraries, read-only, as links where the host has links."""
    words: list[str] = []
    for name in SYSTEM:
        path = Path(name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            words += ["--ro-bind", name, name]
    for name in (*NETWORK_FILES, *CERTIFICATES):
        if Path(name).exists():
            words += ["--ro-bind", str(Path(name).resolve()), name]
    return words


def mounts(items: Iterable[Mount]) -> list[str]:
    """Return the words that bind ``items``."""
    return [w for item in items for w in ("--bind" if item.writable else "--ro-bind", str(item.source), item.target)]


def private(tmp_bytes: int) -> list[str]:
    """Return a private /proc, a minimal /dev and a bounded /tmp in memory."""
    return ["--proc", "/proc", "--dev", "/dev", "--size", str(tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108 - inside


def overlay(seed: Path) -> list[str]:
    """Show the seed cache as a folder of the build's own: writes go to memory that dies with it."""
    return ["--overlay-src", str(seed), "--tmp-overlay", GOCACHE]


def builder(
    bwrap: Path, marker: str, shared: Sequence[Mount], cache: Sequence[str], work: Path, tmp_bytes: int
) -> list[str]:
    """Return the sandbox of one builder; ``cache`` are the words that make ``GOCACHE``."""
    return [
        *base(bwrap, marker),
        *system(),
        *mounts(shared),
        *private(tmp_bytes),
        *cache,
        *mounts([Mount(work, WORK, writable=True)]),
        *("--chdir", WORK),
    ]


def service(bwrap: Path, marker: str, rootfs: Path, folder: str, tmp_bytes: int = 64 * MIB) -> list[str]:
    """Return the sandbox of one service: its own image, read-only, as the whole file system."""
    words = [*base(bwrap, marker), "--ro-bind", str(rootfs), "/", *private(tmp_bytes)]
    for name in NETWORK_FILES[:2]:
        if Path(name).exists():
            words += ["--ro-bind", str(Path(name).resolve()), name]
    return [*words, "--chdir", folder]
