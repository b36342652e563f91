"""Fetch a source from git: one commit, over https, from a public address, and nothing else that git can do.

The tree is taken out with ``git archive`` and unpacked by the same code as any archive, so that its bounds hold here
too. No checkout is made: no filter (LFS), hook, attribute or submodule has anything to act on.
"""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import certifi

from builder.address import Target, find_target
from builder.children import Ended, run_child, spawned
from builder.guard import Guard
from builder.orders import Environment, Limits, Orders, Source
from builder.outcome import Failure, Reason
from builder.pace import Pace
from builder.tree import Content, plain_path, rejected
from builder.unpack import most_tar_bytes, unpack_tar

ATTEMPTS = 4
#: http.curloptResolve, which pins the address that was checked, came with it.
OLDEST = (2, 37)
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_AGAIN = re.compile(
    r"error: 5\d\d|error: 429|Could not resolve host|timed out|Timeout|Connection reset|early EOF|unexpected disconnect"
    r"|Failed to connect|Connection refused|SSL_ERROR_SYSCALL|GnuTLS recv error|Operation too slow|Empty reply"
)
#: Overrides whatever attributes the tree brings along: the archive holds the blobs as they are.
ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding -export-ignore -export-subst\n"


async def fetch_git(
    environment: Environment, orders: Orders, *, root: Path, guard: Guard, pace: Pace
) -> tuple[str, dict[str, Content]]:
    """Fetch the ref, or the commit that a first run has fixed; returns the commit and the files under ``subdir``.

    Raises Failure: source_fetch when it can't be had, source_rejected when it isn't safe.
    """
    source = orders.source
    wanted = _wanted(source)
    subdir = plain_path(source.subdir or "")
    git = await _find_git(environment)
    target = await find_target(source.url, orders.allow_hosts)
    repository = environment.work / "repository.git"
    env = git_env(environment)
    await _run([git, "init", "--quiet", "--bare", "--template=", str(repository)], env, environment.work)
    (repository / "info").mkdir(exist_ok=True)
    (repository / "info" / "attributes").write_text(ATTRIBUTES, encoding="ascii")
    most = orders.limits.source_bytes
    command = [*_limited(git, most), *fetch_options(target), "fetch", "--quiet", "--depth=1", "--no-tags"]
    command += ["--no-recurse-submodules", "--no-write-commit-graph", "--", target.url, wanted]
    await _fetch(command, wanted=wanted, env=env, repository=repository, most_bytes=most, pace=pace)
    commit = (await _run([git, "rev-parse", "FETCH_HEAD^{commit}"], env, repository)).stdout.strip()
    if source.commit and commit != source.commit:
        raise Failure(Reason.SOURCE_FETCH, f"The repository gave commit {commit} instead of {source.commit}.")
    tree = f"{commit}:{subdir}" if subdir else commit
    kind = await _run([git, "cat-file", "-t", tree], env, repository, may_fail=True)
    if kind.stdout.strip() not in {"tree", "commit"}:
        raise Failure(Reason.SOURCE_INVALID, f"There is no folder {source.subdir!r} in the repository.")
    bare = environment.work / "source.tar"
    await _archive([git, "-c", "tar.umask=0022", "archive", "--format=tar", tree], env, repository, bare, orders.limits)
    files = await asyncio.to_thread(unpack_tar, bare, root, orders.limits, guard.check)
    bare.unlink()
    await asyncio.to_thread(shutil.rmtree, repository)
    return commit, files


def git_env(environment: Environment) -> dict[str, str]:
    """Return the whole environment of a git command: no configuration but ours, no credential, no question asked."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(environment.work),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_SSL_CAINFO": str(environment.ca_file or certifi.where()),
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_NO_REPLACE_OBJECTS": "1",
    }


def fetch_options(target: Target) -> list[str]:
    """Return git's settings for the fetch; each closes a way out of "this commit, from this host"."""
    settings = {
        "protocol.allow": "never",
        "protocol.https.allow": "always",
        "protocol.version": "2",
        "http.followRedirects": "false",
        "http.proxy": "",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "30",
        "credential.helper": "",
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "fetch.recurseSubmodules": "false",
        "fetch.unpackLimit": "1",
        "transfer.bundleURI": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
    }
    if target.pin:
        settings["http.curloptResolve"] = target.pin
    return [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]


async def _fetch(
    command: list[str], *, wanted: str, env: Mapping[str, str], repository: Path, most_bytes: int, pace: Pace
) -> None:
    for attempt in range(ATTEMPTS):
        ended = await run_child(command, env=env, cwd=repository)
        if ended.code == 0:
            return
        if not _AGAIN.search(ended.stderr) or attempt == ATTEMPTS - 1:
            break
        await pace.wait(attempt)
    text = ended.stderr
    if _is_full(repository, most_bytes):
        raise rejected(f"The repository's pack is larger than {most_bytes} bytes.")
    lines = [line.strip() for line in text.splitlines() if line.startswith(("fatal:", "error:", "remote:"))]
    problem = (lines[-1] if lines else text.strip() or f"git ended with {ended.code}")[:500]
    if re.search(r"error: 30[1-8]", text):
        problem = "it redirects elsewhere, which is not followed. Give the final address"
    elif "could not read Username" in text or "Authentication failed" in text:
        problem = "it is not there, or not public"
    raise Failure(Reason.SOURCE_FETCH, f"{wanted!r} could not be fetched from the repository: {problem}.")


async def _archive(command: list[str], env: Mapping[str, str], cwd: Path, to: Path, limits: Limits) -> None:
    """Write the tree as a tar; a tree that refers to itself over and over is stopped at the limit."""
    left = most_tar_bytes(limits)
    async with spawned(command, env=env, cwd=cwd, stderr=asyncio.subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with to.open("xb") as file:
            while chunk := await process.stdout.read(1 << 18):
                left -= len(chunk)
                if left < 0:
                    raise rejected(f"The source unpacks to more than {limits.unpacked_bytes} bytes.")
                await asyncio.to_thread(file.write, chunk)
        if await process.wait() != 0:
            raise Failure(Reason.SOURCE_FETCH, "The commit's tree could not be read: the repository is broken.")


def _wanted(source: Source) -> str:
    if source.commit:
        if not _COMMIT.fullmatch(source.commit):
            raise Failure(Reason.SOURCE_INVALID, f"{source.commit!r} is not a full commit id.")
        return source.commit
    ref = source.ref or "HEAD"
    if not _REF.fullmatch(ref) or ".." in ref or ref.endswith((".lock", "/", ".")):
        raise Failure(Reason.SOURCE_INVALID, f"{ref!r} is not the name of a ref.")
    return ref


async def _find_git(environment: Environment) -> str:
    git = shutil.which("git", path=git_env(environment)["PATH"])
    if git is None:
        raise Failure(Reason.SOURCE_FETCH, "This builder has no git. Send the source as files or as an archive.")
    said = await run_child([git, "version"], env=git_env(environment), cwd=environment.work)
    match = re.search(r"(\d+)\.(\d+)", said.stdout)
    if match is None or (int(match[1]), int(match[2])) < OLDEST:
        raise Failure(Reason.SOURCE_FETCH, f"This builder's git is too old ({said.stdout.strip()}): 2.37 is needed.")
    return git


def _limited(git: str, most_bytes: int) -> list[str]:
    """Return git under a limit of file size: the pack it receives is one file."""
    return ["/bin/sh", "-c", 'ulimit -f "$1" && shift && exec "$@"', "sh", str(_blocks(most_bytes)), git]


def _blocks(size: int) -> int:
    """Return a size in the 512-byte blocks that POSIX's ``ulimit -f`` counts in."""
    return -(-size // 512)


def _is_full(repository: Path, most_bytes: int) -> bool:
    """Tell whether the limit ended a fetch: git dies of it without a word, and leaves the pack as far as it came."""
    packs = (repository / "objects" / "pack").glob("tmp_pack_*")
    return any(pack.stat().st_size >= _blocks(most_bytes) * 512 for pack in packs)


async def _run(command: list[str], env: Mapping[str, str], cwd: Path, *, may_fail: bool = False) -> Ended:
    ended = await run_child(command, env=env, cwd=cwd)
    if ended.code != 0 and not may_fail:
        words = ended.stderr.strip()[:300]
        raise Failure(Reason.SOURCE_FETCH, f"git {command[1]} failed: {words or subprocess.list2cmdline(command[:2])}")
    return ended
