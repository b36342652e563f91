"""Archives that mean harm, and the digest of those that don't."""

import gzip
import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.orders import Limits
from builder.outcome import Failure, Reason, Stopped
from builder.tree import Content, plain_path, tree_digest
from builder.unpack import RATIO_FLOOR, unpack

LIMITS = Limits(unpacked_bytes=1 << 20, files=50)


def nothing() -> None:
    return


def entry(name: str, data: bytes = b"x", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tarred(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def opened(bare: bytes, folder: Path, limits: Limits = LIMITS, *, level: int = 6) -> dict[str, Content]:
    archive = folder / "a.tar.gz"
    archive.write_bytes(gzip.compress(bare, level))
    return unpack(archive, folder / "into", folder / "scratch", limits, nothing)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, b"", type=kind, linkname=target)


def raw_header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A header that tarfile would not write."""
    head = bytearray(512)
    head[: len(name)] = name
    head[100:108], head[108:116], head[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    head[124:136], head[136:148], head[156:157] = size, b"00000000000\0", kind
    head[257:265], head[148:156] = b"ustar\x0000", b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


NEGATIVE = b"\xff" * 6 + bytes(6)
HUGE = b"77777777777\0"

HARMFUL: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: tarred(entry("/etc/x")),
    "parent": lambda: tarred(entry("../x")),
    "parent inside": lambda: tarred(entry("a/../../x")),
    "parent as folder": lambda: tarred(entry("..", b"", type=tarfile.DIRTYPE)),
    "symlink": lambda: tarred(link("a", "b")),
    "symlink then file": lambda: tarred(link("a", "/tmp"), entry("a/x")),
    "hard link": lambda: tarred(entry("b"), link("a", "b", tarfile.LNKTYPE)),
    "device": lambda: tarred(entry("a", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "block device": lambda: tarred(entry("a", b"", type=tarfile.BLKTYPE)),
    "fifo": lambda: tarred(entry("a", b"", type=tarfile.FIFOTYPE)),
    "contiguous": lambda: tarred(entry("a", b"", type=tarfile.CONTTYPE)),
    "twice": lambda: tarred(entry("a"), entry("a")),
    "twice by another name": lambda: tarred(entry("a/b"), entry("./a//b")),
    "file over folder": lambda: tarred(entry("a/b"), entry("a")),
    "folder over file": lambda: tarred(entry("a"), entry("a/b")),
    "no name": lambda: tarred(entry("./.")),
    "control characters": lambda: tarred(entry("a\nb")),
    "not UTF-8": lambda: raw_header(b"a\xff", b"00000000000\0", b"0") + bytes(1024),
    "too deep": lambda: tarred(entry("d/" * 65 + "x")),
    "part too long": lambda: tarred(entry("x" * 256)),
    "too many files": lambda: tarred(*(entry(f"f{n}", b"") for n in range(51))),
    "too many folders": lambda: tarred(*(entry(f"{n}/a/b/x", b"") for n in range(20))),
    "too many entries": lambda: tarred(*(entry("same", b"", type=tarfile.DIRTYPE) for _ in range(101))),
    "too much": lambda: tarred(*(entry(f"f{n}", bytes(300_000)) for n in range(4))),
    "says it is huge": lambda: raw_header(b"a", HUGE, b"0"),
    "negative size": lambda: raw_header(b"a", NEGATIVE, b"0") + bytes(1024),
    "negative header": lambda: raw_header(b"a", NEGATIVE, b"x") + bytes(1024),
    "huge header": lambda: raw_header(b"a", HUGE, b"L") + bytes(1024),
    "headers all the way down": lambda: raw_header(b"a", b"00000000000\0", b"L") * 5000 + bytes(1024),
    "sparse": lambda: tarred(entry("a", b"1\n", pax_headers={"GNU.sparse.map": "0,9999999", "GNU.sparse.size": "9"})),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_means_harm_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        opened(HARMFUL[name](), tmp_path)
    assert caught.value.reason == Reason.SOURCE_REJECTED, caught.value.message
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside <= {"a.tar.gz", "into"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_bomb_is_stopped_before_it_is_on_the_disk(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb", 9) as out:
        for _ in range(64):
            out.write(bytes(1 << 20))
    assert archive.stat().st_size < 100_000
    with pytest.raises(Failure, match="packed more than"):
        unpack(archive, tmp_path / "into", tmp_path / "scratch", Limits(), nothing)
    assert not (tmp_path / "scratch").exists()


def test_what_packs_well_is_no_bomb_when_it_is_small(tmp_path: Path) -> None:
    assert opened(tarred(entry("zeros", bytes(RATIO_FLOOR - 20_000))), tmp_path, Limits())


def test_a_stop_is_obeyed_half_way(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tarred(*(entry(f"f{n}") for n in range(9)))))
    asked = iter(range(100))

    def check() -> None:
        if next(asked) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        unpack(tmp_path / "a.tar.gz", tmp_path / "into", tmp_path / "scratch", LIMITS, check)
    assert len(list((tmp_path / "into").iterdir())) < 9


def test_a_plain_tree_comes_out_as_it_was(tmp_path: Path) -> None:
    files = opened(
        tarred(
            entry("./", b"", type=tarfile.DIRTYPE),
            entry("./cmd/run.sh", b"#!", mode=0o4755),
            entry("é.go", b"package x", mode=0o600),
            entry("empty", b"", type=tarfile.DIRTYPE),
        ),
        tmp_path,
    )
    assert set(files) == {"cmd/run.sh", "é.go"}
    assert files["cmd/run.sh"].executable
    root = tmp_path / "into"
    assert (root / "cmd/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (root / "é.go").stat().st_mode & 0o7777 == 0o644


def test_the_digest_is_the_one_of_the_protocol_page() -> None:
    files = {"b": Content(False, "11"), "a/c": Content(True, "22"), "é": Content(False, "33")}
    by_hand = b"a/c\0x\x0022\nb\0-\x0011\n\xc3\xa9\0-\x0033\n"
    assert tree_digest(files) == f"sha256:{hashlib.sha256(by_hand).hexdigest()}"
    assert tree_digest(dict(reversed(files.items()))) == tree_digest(files)


def unpacked(archive: Path, into: Path, scratch: Path) -> dict[str, Content]:
    """Return what came out, nothing when it was refused; any other error fails the test."""
    try:
        return unpack(archive, into, scratch, LIMITS, nothing)
    except Failure as failure:
        if failure.reason not in {Reason.SOURCE_REJECTED, Reason.SOURCE_INVALID}:
            raise
        return {}


NAMES = st.lists(st.text(alphabet="ab./\\é \x00\x1f", min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(names=NAMES, kinds=st.lists(st.sampled_from([b"0", b"5", b"1", b"2", b"3", b"7", b"L", b"x", b"S"]), min_size=6))
def test_nothing_ever_lands_outside(names: list[str], kinds: list[bytes]) -> None:
    bare = b""
    for name, kind in zip(names, kinds, strict=False):
        bare += raw_header(name.encode()[:99], b"00000000003\0", kind) + b"abc".ljust(512, b"\0")
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "outer" / "in").mkdir(parents=True)
        archive = folder / "a"
        archive.write_bytes(gzip.compress(bare + bytes(1024)))
        files = unpacked(archive, folder / "outer/in/to", folder / "s")
        assert all(plain_path(path) == path for path in files)
        assert {p.name for p in (folder / "outer").iterdir()} == {"in"}
        assert {p.name for p in (folder / "outer" / "in").iterdir()} <= {"to"}
        assert {p.name for p in folder.iterdir()} == {"outer", "a"}
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=2000), packed=st.booleans())
def test_junk_is_a_failure_and_nothing_else(junk: bytes, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").write_bytes(gzip.compress(junk) if packed else junk)
        assert unpacked(folder / "a", folder / "to", folder / "s") == {}
