"""Compile the program: no network, no cgo, nothing of the source is run, and the same bytes each time."""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from builder.children import Ended, run_child
from builder.diagnostics import parse_diagnostics
from builder.logs import Log
from builder.modules import GoModule
from builder.orders import Environment, Orders
from builder.outcome import Failure, Reason
from builder.toolchain import Toolchain, go_env

#: With these the output depends on source and toolchain alone: no paths, times, version control or build ids.
FLAGS = ("-trimpath", "-buildvcs=false", "-buildmode=exe", "-ldflags=-s -w -buildid=")

#: What a build that failed failed of, by what the toolchain says: the first that matches counts. In the messages,
#: ``match`` is the text that matched, ``name`` its group, ``first`` the first line, and the rest is from the orders.
_RULES: tuple[tuple[Reason, str, str], ...] = (
    (
        Reason.OUT_OF_MEMORY,
        r"signal: killed|runtime: out of memory|cannot allocate memory|failed to reserve page summary memory"
        r"|pthread_create failed|runtime: cannot allocate",
        "The compiler ran out of memory.",
    ),
    (
        Reason.INTERNAL_ERROR,
        r"no space left on device|disk quota exceeded",
        "The builder ran out of disk space.",
    ),
    (
        Reason.TOOLCHAIN_MISMATCH,
        r"(?P<name>requires go >= \S+) \(running go ",
        "go.mod or a module {name}, but the builder has {version}.",
    ),
    (
        Reason.NOT_A_PROGRAM,
        r"-buildmode=exe requires exactly one main package|no main packages to build|no Go files in"
        r"|build constraints exclude all Go files",
        "The package {package!r} is not a program: {first}.",
    ),
    (
        Reason.SOURCE_INVALID,
        r"inconsistent vendoring|vendor/modules\.txt",
        "vendor/ and go.mod don't agree. Run `go mod vendor` and send both.",
    ),
    (
        Reason.SOURCE_INVALID,
        r"(?:no required module provides package|cannot find module providing package) (?P<name>[^\s:;]+)",
        "No module in go.mod provides {name}. Run `go mod tidy`.",
    ),
    (
        Reason.SOURCE_INVALID,
        r"missing go\.sum entry|updates to go\.(?:mod|sum) needed|existing contents have changed",
        "go.mod and go.sum are not complete: {first}. Run `go mod tidy`.",
    ),
    (
        Reason.SOURCE_FETCH,
        r"(?m)^.*module lookup disabled by GOPROXY=off",
        "A module was not fetched: {match}.",
    ),
    (
        Reason.SOURCE_INVALID,
        r"errors parsing go\.mod|(?m:^(?:go: )?go\.mod:\d+: )",
        "go.mod can't be read: {first}.",
    ),
    (Reason.COMPILE_ERROR, "", "The source does not compile: {first}."),
)


@dataclass(frozen=True, kw_only=True)
class UsedModule:
    """A module that is in the program; ``sum`` is None for what was vendored or is part of the source."""

    path: str
    version: str
    sum: str | None


async def compile_program(
    environment: Environment, orders: Orders, *, toolchain: Toolchain, root: Path, module: GoModule, log: Log
) -> Path:
    """Build the package into ``<work>/agent`` and return that path; Failure tells why it does not build."""
    package = package_argument(orders.package, root)
    output = environment.work / "agent"
    mode = "vendor" if module.vendored else "readonly"
    command = [toolchain.go, "build", *FLAGS, f"-mod={mode}", "-o", str(output), package]
    kills = _oom_kills()
    ended = await run_child(
        toolchain.offline(command),
        env=go_env(environment, go=toolchain.go, orders=orders),
        cwd=root,
        log=log,
        scrub=toolchain.scrubber(environment.work),
    )
    if ended.code != 0:
        raise explain(ended, orders, toolchain, killed=_oom_kills() > kills)
    return output


def package_argument(package: str, root: Path) -> str:
    """Return the package as go takes it, ``./…``: a folder of the source, no pattern, no option.

    Raises Failure(source_invalid) for anything else.
    """
    path = PurePosixPath(package)
    odd = package.startswith(("-", "/")) or any(c in package for c in "\\@\x00\n") or "..." in package
    if odd or ".." in path.parts or not package:
        raise Failure(Reason.SOURCE_INVALID, f"build.package {package!r} must be a folder of the source, such as `.`.")
    if not (root / path).is_dir():
        raise Failure(Reason.SOURCE_INVALID, f"build.package {package!r} is not a folder of the source.")
    return f"./{path}" if str(path) != "." else "."


def explain(ended: Ended, orders: Orders, toolchain: Toolchain, *, killed: bool) -> Failure:
    """Return what a build that failed failed of; the toolchain tells it in words only."""
    text = ended.stderr
    # A child that we killed ourselves never comes here: its caller was canceled.
    if killed or ended.code in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        text = f"signal: killed\n{text}"
    for reason, pattern, message in _RULES:
        if match := re.search(pattern, text):
            words = {
                "match": match[0].strip(),
                "name": match.groupdict().get("name"),
                "first": first_words(ended.stderr),
                "package": orders.package,
                "version": toolchain.version,
            }
            return Failure(reason, message.format(**words), parse_diagnostics(text, orders.limits.diagnostics))
    raise AssertionError("the last rule matches anything")


async def used_modules(environment: Environment, toolchain: Toolchain, program: Path) -> list[UsedModule]:
    """Read back from the program which modules are in it (``go version -m``); replacements under their own name."""
    ended = await run_child(
        [toolchain.go, "version", "-m", str(program)], env=go_env(environment, go=toolchain.go), cwd=environment.work
    )
    found: list[UsedModule] = []
    for line in ended.stdout.splitlines():
        kind, *words = line.strip().split("\t")
        if kind == "=>" and found:
            found.pop()
        if kind in {"dep", "=>"} and len(words) >= 2:
            found.append(UsedModule(path=words[0], version=words[1], sum=(words[2] or None) if words[2:] else None))
    return found


def first_words(text: str) -> str:
    """Return the first line that says something."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("# "):
            return line.strip().removeprefix("go: ").rstrip(".")[:500]
    return "the toolchain gave no reason"


def _oom_kills() -> int:
    """Return how often the kernel killed for memory in our control group; 0 where that isn't told (cgroup v2)."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(
            entry for entry in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines() if entry[:3] == "0::"
        )
        events = Path(f"/sys/fs/cgroup{line[3:]}/memory.events").read_text(encoding="ascii")
        return sum(int(words.split()[1]) for words in events.splitlines() if words.startswith("oom_kill "))
    return 0
