import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.images import layout
from app.images.errors import ReferenceInvalid
from app.images.reference import (
    Reference,
    check_digest,
    check_reference,
    check_repository,
    digest_of,
    is_digest,
    is_repository,
    is_tag,
    new_hash,
    parse_reference,
)
from tests.images.support import sha

HEX = "a" * 64


@pytest.mark.parametrize("name", ["a", "slipway/run-1", "a.b/c__d/e--f/0", "a" * 255])
def test_repository_names(name: str) -> None:
    assert check_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "a/../b",
        "A",
        "a_",
        "_a",
        "a..b",
        "a___b",
        "a b",
        "a\n",
        "a\0",
        "é",
        "a/.b",
        "a" * 256,
    ],
)
def test_bad_repository_names(name: str) -> None:
    with pytest.raises(ReferenceInvalid):
        check_repository(name)


@given(st.text(alphabet="ab./_-%\\\0\nA", max_size=20))
def test_no_good_name_leaves_its_folder(name: str) -> None:
    if is_repository(name):
        assert all(re.match("[a-z0-9]", part) for part in name.split("/"))


def test_tags_and_digests() -> None:
    assert is_tag("v1.0_a-B")
    assert is_tag("_" * 128)
    assert not any(map(is_tag, ["", "-a", ".a", "a/b", "a:b", "a" * 129, "a\n"]))
    assert is_digest(f"sha256:{HEX}")
    assert is_digest(f"sha512:{HEX}{HEX}")
    assert not any(
        map(is_digest, [HEX, f"sha256:{HEX}a", f"sha256:{HEX.upper()}", f"md5:{HEX[:32]}", f"sha256:{HEX}\n"])
    )
    assert check_reference("latest") == "latest"
    assert check_reference(f"sha256:{HEX}") == f"sha256:{HEX}"
    with pytest.raises(ReferenceInvalid):
        check_reference("sha256:short")
    with pytest.raises(ReferenceInvalid):
        check_digest("latest")


def test_digests_of_data() -> None:
    assert digest_of(b"x") == sha(b"x")
    assert digest_of(b"x", f"sha512:{HEX}{HEX}") == sha(b"x", "sha512")
    hash_ = new_hash(f"sha512:{HEX}{HEX}")
    hash_.update(b"x")
    assert f"sha512:{hash_.hexdigest()}" == sha(b"x", "sha512")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "registry.example.com", "[::1]:5000"])
def test_references(host: str) -> None:
    text = f"{host}/slipway/run-1@sha256:{HEX}"
    assert parse_reference(text) == Reference(host, "slipway/run-1", f"sha256:{HEX}")
    assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slipway/run@sha256:" + HEX,
        "host.example/a",
        "host.example/a:tag",
        "host.example/A@sha256:" + HEX,
        "host.example@sha256:" + HEX,
        "a@b.example/x@latest",
        "-.x/a@sha256:" + HEX,
    ],
)
def test_bad_references(text: str) -> None:
    with pytest.raises(ReferenceInvalid):
        parse_reference(text)


def test_names_that_mean_something_in_a_layout_are_refused(tmp_path: Path) -> None:
    for name in ("a/blobs/sha256", "index.json", "a/oci-layout"):
        with pytest.raises(ReferenceInvalid, match="reserved"):
            layout.repository_path(tmp_path, name)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "repo").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReferenceInvalid):
        layout.repository_path(tmp_path / "root", "a/repo")
