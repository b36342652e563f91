"""Sources from git: one commit of one public host, over https, and nothing else that git can do."""

import hashlib
import ipaddress
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builder.address import find_target, is_public
from builder.children import run_child
from builder.git import fetch_options, git_env
from builder.orders import read_environment
from builder.outcome import Exit, Failure
from builder.tree import Content, tree_digest
from tests.builder.conftest import GO_MOD, MAIN, Bench
from tests.builder.servers import GitHost, git_host

FILES = {"go.mod": GO_MOD, "main.go": MAIN}

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


@pytest.fixture
def host(tmp_path: Path, bench: Bench) -> Iterator[GitHost]:
    folder = tmp_path / "host"
    folder.mkdir()
    with git_host(folder) as serving:
        bench.plane.orders["allow_hosts"] = ["localhost"]
        yield serving


async def build(bench: Bench, host: GitHost, path: str = "agent.git", **source: str | None) -> Exit:
    bench.plane.orders["source"] = {
        "kind": "git", "url": f"{host.url}/{path}", "ref": None, "subdir": None, "commit": None, "digest": None, **source,
    }  # fmt: skip
    return await bench.run(SSL_CERT_FILE=str(host.ca))


async def test_a_ref_is_built_and_its_commit_reported(bench: Bench, host: GitHost) -> None:
    tree = host.repository("agent", FILES)
    commit = host.git("rev-parse", "HEAD", cwd=tree)
    assert await build(bench, host, ref="main") == Exit.DONE
    assert bench.plane.completion is not None
    assert bench.plane.completion["source"]["commit"] == commit
    first = bench.plane.completion["source"]["digest"]
    # The same files as an archive have the same digest.
    bench.plane.instance = None
    bench.plane.orders["source"] = {"kind": "archive", "digest": first}
    bench.send(FILES)
    assert await bench.run() == Exit.DONE


async def test_the_commit_of_the_first_run_is_built_though_the_branch_moved(bench: Bench, host: GitHost) -> None:
    tree = host.repository("agent", FILES)
    first = host.git("rev-parse", "HEAD", cwd=tree)
    host.commit(tree, {"main.go": "package broken"})
    assert await build(bench, host, ref="main", commit=first) == Exit.DONE
    assert bench.plane.completion is not None
    assert bench.plane.completion["source"]["commit"] == first


async def test_a_folder_and_a_tag(bench: Bench, host: GitHost) -> None:
    tree = host.repository("agent", {f"services/a/{name}": text for name, text in FILES.items()})
    host.git("tag", "-a", "v1.0", "-m", "x", cwd=tree)
    host.git("push", "-q", "origin", "v1.0", cwd=tree)
    assert await build(bench, host, ref="v1.0", subdir="services/a") == Exit.DONE


async def test_a_folder_that_is_not_there(bench: Bench, host: GitHost) -> None:
    host.repository("agent", FILES)
    assert await build(bench, host, subdir="nowhere") == Exit.SOURCE
    assert bench.reason() == "source_invalid"


async def test_attributes_and_filters_change_nothing(bench: Bench, host: GitHost) -> None:
    attributes = "* filter=lfs text eol=crlf ident export-subst\nmain.go export-ignore\n"
    host.repository("agent", {**FILES, ".gitattributes": attributes, "id.txt": "$Id$ $Format:%H$\n"})
    assert await build(bench, host) == Exit.DONE
    plain = {**FILES, ".gitattributes": attributes, "id.txt": "$Id$ $Format:%H$\n"}
    digest = tree_digest({n: Content(False, hashlib.sha256(t.encode()).hexdigest()) for n, t in plain.items()})
    assert bench.plane.completion is not None
    assert bench.plane.completion["source"]["digest"] == digest


async def test_a_submodule_is_not_fetched(bench: Bench, host: GitHost) -> None:
    host.repository("other", {"secret.txt": "x"})
    tree = host.repository("agent", FILES)
    other = host.git("rev-parse", "HEAD", cwd=host.folder / "other-tree")
    (tree / ".gitmodules").write_text(f'[submodule "o"]\n\tpath = o\n\turl = {host.url}/other.git\n')
    host.git("update-index", "--add", "--cacheinfo", f"160000,{other},o", cwd=tree)
    host.git("add", ".gitmodules", cwd=tree)
    host.git("commit", "-q", "-m", "x", cwd=tree)
    host.git("push", "-q", "origin", "main", cwd=tree)
    assert await build(bench, host) == Exit.DONE
    assert not [path for path in host.asked if "other.git" in path]


async def test_a_link_in_the_tree_is_rejected(bench: Bench, host: GitHost) -> None:
    tree = host.repository("agent", FILES)
    (tree / "link").symlink_to("/etc/passwd")
    host.commit(tree, {})
    assert await build(bench, host) == Exit.SOURCE
    assert bench.reason() == "source_rejected"


async def test_a_redirect_is_not_followed(bench: Bench, host: GitHost) -> None:
    host.repository("agent", FILES)
    host.redirect = host.url.replace("localhost", "127.0.0.1")
    assert await build(bench, host) == Exit.NETWORK
    assert bench.reason() == "source_fetch"
    assert "redirects" in bench.message()
    assert len(host.asked) == 1


async def test_a_host_in_trouble_is_asked_again(bench: Bench, host: GitHost) -> None:
    host.repository("agent", FILES)
    host.failures = [503, 502]
    assert await build(bench, host) == Exit.DONE


@pytest.mark.parametrize(("path", "ref"), [("agent.git", "nowhere"), ("other.git", "main")])
async def test_what_is_not_there(bench: Bench, host: GitHost, path: str, ref: str) -> None:
    host.repository("agent", FILES)
    assert await build(bench, host, path, ref=ref) == Exit.NETWORK
    assert bench.reason() == "source_fetch"


@pytest.mark.parametrize("allow", [[], ["example.org", "10.0.0.0/8"]])
async def test_an_address_that_is_not_public_is_refused(bench: Bench, host: GitHost, allow: list[str]) -> None:
    host.repository("agent", FILES)
    bench.plane.orders["allow_hosts"] = allow
    assert await build(bench, host) == Exit.NETWORK
    assert bench.reason() == "source_fetch"
    assert "not public" in bench.message()
    assert host.asked == []


async def test_a_network_may_be_listed(bench: Bench, host: GitHost) -> None:
    host.repository("agent", FILES)
    bench.plane.orders["allow_hosts"] = ["127.0.0.0/8", "::1/128"]
    assert await build(bench, host) == Exit.DONE


async def test_a_pack_over_the_limit(bench: Bench, host: GitHost) -> None:
    host.repository("agent", {**FILES, "big": random.Random(1).randbytes(200_000).hex()})
    bench.plane.orders["limits"] = {"source_bytes": 50_000}
    assert await build(bench, host) == Exit.SOURCE
    assert bench.reason() == "source_rejected"


async def test_a_tree_over_the_limit(bench: Bench, host: GitHost) -> None:
    host.repository("agent", {**FILES, "big": "x" * 3_000_000})
    bench.plane.orders["limits"] = {"unpacked_bytes": 500_000, "files": 5}
    assert await build(bench, host) == Exit.SOURCE
    assert bench.reason() == "source_rejected"


@pytest.mark.parametrize("ref", ["--upload-pack=x", "a:b", "+main", "a..b", "x y", "main.lock"])
async def test_a_ref_must_be_a_ref(bench: Bench, host: GitHost, ref: str) -> None:
    assert await build(bench, host, ref=ref) == Exit.SOURCE
    assert host.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://git.example.org/x",
        "ssh://git@example.org/x",
        "file:///etc",
        "ext::sh -c x",
        "https://user:word@example.org/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://2130706433/x",
        "https://0x7f.1/x",
        "https://127.1/x",
        "https://169.254.169.254/latest",
        "https://example.org/x?y=z",
        "https://example.org:99999/x",
        "https:///x",
        "https://exa mple.org/x",
    ],
)
async def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(Failure, match="source_fetch"):
        await find_target(url, ())


async def test_the_address_that_was_checked_is_the_one_that_is_used() -> None:
    target = await find_target("https://localhost:8443/x.git", ["localhost"])
    assert target.url == "https://localhost:8443/x.git"
    assert target.pin is not None
    assert target.pin.startswith("localhost:8443:")
    assert (await find_target("https://127.0.0.1/x", ["127.0.0.1"])).pin is None


PRIVATE = """10.0.0.1 127.0.0.1 169.254.169.254 100.64.0.1 192.168.1.1 172.16.0.1 0.0.0.0 224.0.0.1 255.255.255.255 ::1 ::
fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a00:1 2002:7f00:1::"""
PUBLIC = "1.1.1.1 2606:4700:4700::1111 64:ff9b::101:101"


@pytest.mark.parametrize(
    ("text", "public"), [(t, False) for t in PRIVATE.split()] + [(t, True) for t in PUBLIC.split()]
)
def test_which_addresses_are_public(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


async def test_a_pinned_name_is_not_looked_up_again(bench: Bench, host: GitHost) -> None:
    """The name below resolves nowhere: that the fetch works at all shows that git uses the pin."""
    host.repository("agent", FILES)
    port = host.url.rpartition(":")[2]
    target = await find_target(f"https://localhost:{port}/agent.git", ["localhost"])
    elsewhere = replace(
        target, url=f"https://git.example.test:{port}/agent.git", pin=f"git.example.test:{port}:127.0.0.1"
    )
    env = {**git_env(read_environment(bench.environ())), "GIT_SSL_NO_VERIFY": "1"}
    command = ["git", *fetch_options(elsewhere), "ls-remote", elsewhere.url, "main"]
    ended = await run_child(command, env=env, cwd=host.folder)
    assert ended.code == 0, ended.stderr
    assert "refs/heads/main" in ended.stdout
