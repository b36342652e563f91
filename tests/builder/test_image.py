"""The image as bytes: the same for the same input, and stopped at its limit."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from builder.image import Image, assemble
from builder.outcome import Failure, Stopped

LABELS = {"b": "2", "a": "1", "é": "ü"}


def made(folder: Path, **more: object) -> Image:
    folder.mkdir()
    program = folder / "agent"
    program.write_bytes(b"\x7fELF" + bytes(range(256)) * 3000)
    os.utime(program, (len(folder.name), 1))
    settings: dict[str, object] = {
        "goarch": "amd64", "port": 8080, "created": 86400, "labels": LABELS, "most_bytes": 1 << 30,
        "check": lambda: None, **more,
    }  # fmt: skip
    return assemble(program, folder / "layer", **settings)  # type: ignore[arg-type]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = made(tmp_path / "one")
    before = os.umask(0o077)
    try:
        second = made(tmp_path / "another", labels=dict(reversed(LABELS.items())))
    finally:
        os.umask(before)
    assert first.manifest == second.manifest
    assert first.config == second.config
    assert first.layer.digest == second.layer.digest
    assert first.size == second.size


@pytest.mark.parametrize("change", [{"port": 8081}, {"created": 0}, {"labels": {}}, {"goarch": "arm64"}])
def test_other_input_gives_another_digest(tmp_path: Path, change: dict[str, object]) -> None:
    assert made(tmp_path / "one").manifest.digest != made(tmp_path / "two", **change).manifest.digest


def test_the_layer_is_a_plain_gzip_of_no_time_and_no_system(tmp_path: Path) -> None:
    layer = made(tmp_path / "one").layer
    assert isinstance(layer.data, Path)
    raw = layer.data.read_bytes()
    assert raw[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    assert (layer.size, layer.digest) == (len(raw), f"sha256:{hashlib.sha256(raw).hexdigest()}")
    assert len(gzip.decompress(raw)) % 512 == 0


def test_a_limit_and_a_stop_end_the_work(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="larger than 5000 bytes"):
        made(tmp_path / "one", most_bytes=5000)

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        made(tmp_path / "two", check=stop)
