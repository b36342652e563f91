"""The Go toolchain: the environment its commands get, and what it can do on this machine."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from builder import netns
from builder.children import run_child
from builder.orders import Environment, Orders
from builder.outcome import Failure, Reason

PUBLIC_PROXY = "https://proxy.golang.org"
PUBLIC_SUMDB = "sum.golang.org"

Isolation = Literal["netns", "goproxy_off"]


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """``go`` is the command's full path, ``version`` such as ``go1.27.3``."""

    go: str
    version: str
    isolation: Isolation

    def offline(self, command: list[str]) -> list[str]:
        """Return the command as it is started without network, as far as this machine can."""
        return [*_launcher(), *command] if self.isolation == "netns" else command

    def scrubber(self, work: Path) -> Callable[[str], str]:
        """Return ``scrub`` for this machine."""
        return partial(scrub, work=work, goroot=Path(self.go).resolve().parent.parent)


async def find_toolchain(environment: Environment) -> Toolchain:
    """Look once at what is there: the go command, its version, and whether a child can be cut off the network."""
    go = shutil.which(environment.go)
    if go is None:
        raise Failure(Reason.INTERNAL_ERROR, "The builder has no Go toolchain: the `go` command was not found.")
    env = go_env(environment, go=go)
    try:
        version, isolation = await asyncio.gather(
            run_child([go, "env", "GOVERSION"], env=env, cwd=environment.work), _probe(environment.work)
        )
    except OSError as error:
        raise Failure(Reason.INTERNAL_ERROR, f"The builder's Go toolchain does not start: {error.strerror}.") from error
    if version.code != 0:
        raise Failure(Reason.INTERNAL_ERROR, "The builder's Go toolchain does not work: `go env` failed.")
    return Toolchain(go=go, version=version.stdout.strip(), isolation=isolation)


async def _probe(cwd: Path) -> Isolation:
    try:
        return "netns" if (await run_child(_launcher(), env={}, cwd=cwd)).code == 0 else "goproxy_off"
    except OSError:
        # An account that may not start this very Python again can't launch anything by it.
        return "goproxy_off"


def _launcher() -> list[str]:
    return [sys.executable, "-I", "-S", netns.__file__]


def go_env(environment: Environment, *, go: str, orders: Orders | None = None, online: bool = False) -> dict[str, str]:
    """Return the whole environment of a go command; nothing of ours is inherited.

    GOENV=off and GOFLAGS empty: neither a file nor a variable changes what is built. GOVCS and GOPROXY: modules come
    from the proxy alone, never from version control. See https://go.dev/ref/mod#environment-variables.
    """
    work = environment.work
    for name in ("home", "tmp", "gopath"):
        (work / name).mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(go).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work / "home"),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(work / "tmp"),
        "GOCACHE": str(environment.gocache or work / "gocache"),
        "GOPATH": str(work / "gopath"),
        "GOMODCACHE": str(work / "gopath" / "pkg" / "mod"),
        **({"GOROOT": str(environment.goroot)} if environment.goroot else {}),
        "GO111MODULE": "on",
        "GOENV": "off",
        "GOFLAGS": "",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "GOVCS": "*:off",
        "GOPROXY": proxies(orders.goproxy) if orders and online else "off",
        "GOSUMDB": sumdb(orders) if orders and online else "off",
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": orders.goarch if orders else "amd64",
    }


def proxies(goproxy: str) -> str:
    """Return a GOPROXY list without ``direct``, whichever separator stood before it; ``off`` when nothing is left."""
    kept = ""
    separator = ""
    for word in goproxy.replace(",", " , ").replace("|", " | ").split():
        if word in {",", "|"}:
            separator = word
        elif word != "direct":
            kept += f"{separator}{word}" if kept else word
    return kept or "off"


def sumdb(orders: Orders) -> str:
    """Return the checksum database to ask.

    Told none, it is Go's own for Go's own proxy, which mirrors it, and none for any other: a private proxy's modules
    must not be named to the public. go.sum, without which we don't build, pins the content in either case.
    """
    if orders.gosumdb:
        return orders.gosumdb
    return PUBLIC_SUMDB if proxies(orders.goproxy) in {PUBLIC_PROXY, f"{PUBLIC_PROXY},off"} else "off"


def scrub(text: str, *, work: Path, goroot: Path) -> str:
    """Take this machine's paths out of a tool's words: the source's own become relative, modules' begin with a name."""
    modules = "gopath/pkg/mod/"
    for path, short in (
        (f"{work}/source/", ""),
        (f"{work}/source", "."),
        (f"{work}/{modules}", ""),
        (f"../{modules}", ""),
        (f"{goroot}/", "$GOROOT/"),
        (f"{work}/", ""),
    ):
        text = text.replace(path, short)
    return text
