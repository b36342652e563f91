"""Get the modules that the source needs: the one phase of the Go toolchain that has the network.

What is in ``vendor/`` is used as it is and nothing is fetched. ``go.sum`` is a condition: it is what makes a build of
today and one of next year the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from builder.children import run_child
from builder.logs import Log
from builder.orders import Environment, Orders
from builder.outcome import Failure, Reason
from builder.toolchain import Toolchain, go_env


@dataclass(frozen=True, kw_only=True)
class GoModule:
    """What go.mod says, as far as the builder needs it."""

    vendored: bool
    remote: tuple[str, ...]
    """Required modules that must come from a proxy, as ``path@version``."""


async def read_module(environment: Environment, orders: Orders, toolchain: Toolchain, root: Path) -> GoModule:
    """Read and check go.mod; Failure(source_invalid) when it is missing or broken."""
    if not (root / "go.mod").is_file():
        raise Failure(Reason.SOURCE_INVALID, "There is no go.mod in the root of the source. Run `go mod init`.")
    env = go_env(environment, go=toolchain.go, orders=orders)
    scrub = toolchain.scrubber(environment.work)
    edited = await run_child([toolchain.go, "mod", "edit", "-json"], env=env, cwd=root, scrub=scrub)
    if edited.code != 0:
        raise Failure(Reason.SOURCE_INVALID, f"go.mod can't be read: {_first_line(edited.stderr)}")
    said = json.loads(edited.stdout)
    vendored = (root / "vendor").is_dir()
    local = set()
    for replace in said.get("Replace") or []:
        old, new = replace["Old"], replace["New"]
        if not new.get("Version"):
            local.add((old["Path"], old.get("Version")))
            if not vendored:
                _inside(new["Path"])
    remote = tuple(
        f"{need['Path']}@{need['Version']}"
        for need in said.get("Require") or []
        if (need["Path"], need["Version"]) not in local and (need["Path"], None) not in local
    )
    if remote and not vendored and not (root / "go.sum").is_file():
        raise Failure(
            Reason.SOURCE_INVALID, "There is no go.sum, but go.mod requires modules. Run `go mod tidy` and send it too."
        )
    return GoModule(vendored=vendored, remote=remote)


async def fetch_modules(
    environment: Environment, orders: Orders, *, toolchain: Toolchain, root: Path, module: GoModule, log: Log
) -> None:
    """Download what go.mod requires from the proxy; Failure(source_fetch) naming the module that can't be had."""
    if module.vendored or not module.remote:
        return
    ended = await run_child(
        # Writable, so that the work folder can be removed by whoever made it.
        [toolchain.go, "mod", "download", "-modcacherw", "-json"],
        env=go_env(environment, go=toolchain.go, orders=orders, online=True),
        cwd=root,
        log=log,
        shown=("stderr",),
        scrub=toolchain.scrubber(environment.work),
    )
    if ended.code == 0:
        return
    broken = [answer for answer in _objects(ended.stdout) if answer.get("Error")]
    for answer in broken:
        log.write(f"{answer.get('Path')}@{answer.get('Version')}: {answer['Error']}", "stderr")
    text = "\n".join([*(str(answer["Error"]) for answer in broken), ended.stderr])
    problem = _first_line(text)
    name = f"{broken[0].get('Path')}@{broken[0].get('Version')}" if broken else "a module"
    if "running go" in text and "requires go" in text:
        raise Failure(Reason.TOOLCHAIN_MISMATCH, f"{problem}. The builder has {toolchain.version}.")
    if "checksum mismatch" in text or "SECURITY ERROR" in text:
        raise Failure(Reason.SOURCE_REJECTED, f"The module {name} is not the one that go.sum names: checksum mismatch.")
    raise Failure(Reason.SOURCE_FETCH, f"The module {name} could not be fetched: {problem}.")


def _inside(path: str) -> None:
    """Refuse a local replacement that leads out of the source: it would read this machine's files."""
    depth = 0
    for part in PurePosixPath(path).parts:
        depth += {"..": -1, ".": 0}.get(part, 1)
        if depth < 0 or part == "/":
            raise Failure(
                Reason.SOURCE_REJECTED, f"go.mod replaces a module by {path!r}, which is outside of the source."
            )


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Read the JSON objects that go writes one after the other."""
    decoder = json.JSONDecoder()
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield value


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.split("\n")]
    # The remark before the error, and a header whose error is on the next line.
    useful = [line for line in lines if line and not line.startswith("go: downloading") and not line.endswith(":")]
    return (useful[0] if useful else "no further words").removeprefix("go: ").rstrip(".")[:1000]
