"""What of a folder is sent, and that the same tree is the same archive."""

import gzip
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from app.builds.archives import read_archive
from app.client import pack
from app.client.failed import Code, Failed
from app.settings import Settings

TREE = {
    ".gitignore": "*.log\n!kept.log\nbuild/\n/only-top\nsecret.*\n",
    "main.go": "package main\n",
    "a.log": "x",
    "kept.log": "x",
    "build/out": "x",
    "only-top": "x",
    "sub/.gitignore": "!a.log\n*.tmp\n",
    "sub/a.log": "x",
    "sub/b.tmp": "x",
    "sub/only-top": "x",
    "sub/deep/b.tmp": "x",
    "sub/build/.gitignore": "!*\n",
    "sub/build/out": "x",
    "other/b.tmp": "x",
    "vendor/ä/secret.go": "x",
}
SENT = [".gitignore", "kept.log", "main.go", "other/b.tmp", "sub/.gitignore", "sub/a.log", "sub/only-top"]


def plant(folder: Path, tree: dict[str, str] = TREE) -> Path:
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return [f.name for f in pack.files(folder)]


def test_what_git_would_leave_out_is_left_out(tmp_path: Path) -> None:
    plant(tmp_path)
    assert names(tmp_path) == SENT
    git = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", "init", "-q", tmp_path], check=True, env=git)
    command = ["git", "-C", str(tmp_path), "ls-files", "-z", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, env=git, capture_output=True).stdout.decode()
    assert sorted(listed.strip("\0").split("\0")) == SENT
    assert names(tmp_path) == SENT, "nothing of .git either"


def test_rules_above_the_folder_count_unless_they_leave_it_out_itself(tmp_path: Path) -> None:
    plant(tmp_path, {".gitignore": "*.log\n/made/\n", "agents/one/main.go": "x", "agents/one/a.log": "x"})
    plant(tmp_path, {"made/two/main.go": "x", "made/two/a.log": "x", "made/two/.git": "gitdir: elsewhere"})
    (tmp_path / ".git").mkdir()
    assert names(tmp_path / "agents/one") == ["main.go"]
    assert names(tmp_path / "made/two") == ["a.log", "main.go"]
    (tmp_path / "made/two/.git").unlink()
    assert names(tmp_path / "made/two") == ["a.log", "main.go"]
    (tmp_path / ".git").rmdir()
    assert names(tmp_path / "agents/one") == ["a.log", "main.go"], "without a repository nothing above counts"


def test_the_same_tree_is_the_same_archive_and_what_the_api_takes(tmp_path: Path) -> None:
    archives = []
    for place, mode, when in (("one", 0o755, 0), ("two", 0o700, 1_700_000_000)):
        folder = plant(tmp_path / place)
        (folder / "run.sh").write_text("#!/bin/sh\n")
        (folder / "run.sh").chmod(mode)
        os.utime(folder / "main.go", (when, when))
        with pack.pack(pack.files(folder)) as archive:
            archive.seek(0)
            archives.append(archive.read())
    assert archives[0] == archives[1]
    tree = read_archive(io.BytesIO(archives[0]), len(archives[0]), Settings())
    assert tree.files == len(SENT) + 1
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archives[0]))) as tar:
        assert {m.name: m.mode for m in tar}["run.sh"] == 0o755
        assert {(m.uid, m.uname, m.mtime) for m in tar} == {(0, "", 0)}


def refusal(folder: Path) -> str:
    with pytest.raises(Failed) as failed:
        pack.pack(pack.files(folder)).close()
    assert failed.value.code == Code.USAGE
    return f"{failed.value.text}\n{failed.value.advice}"


def test_what_can_not_be_sent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is no folder" in refusal(tmp_path / "none")
    assert "no files to send" in refusal(tmp_path)
    plant(tmp_path, {"main.go": "x", "data/big.bin": "x" * 3000, "data/small.bin": "x" * 10})
    (tmp_path / "link").symlink_to("main.go")
    assert "link is a symbolic link" in refusal(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / os.fsdecode(b"odd\xff")).write_text("x")
    assert r"'odd\udcff' is no name in UTF-8" in refusal(tmp_path)
    (tmp_path / os.fsdecode(b"odd\xff")).unlink()
    found = pack.files(tmp_path)
    (tmp_path / "main.go").unlink()
    with pytest.raises(Failed, match=r"main.go can't be read, or changed"):
        pack.pack(found)
    (tmp_path / "main.go").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(pack, "MAX_UNPACKED", 3005)
        assert "The largest files:\n     0.0 MiB  data/big.bin" in refusal(tmp_path)
        pack.pack(pack.files(tmp_path), check=False).close()
        patch.setattr(pack, "MAX_UNPACKED", 5000)
        patch.setattr(pack, "MAX_PACKED", 20)
        assert "packed; at most" in refusal(tmp_path)
        patch.setattr(pack, "MAX_FILES", 2)
        assert "3 files; at most 2 are taken. Most are in:\n           2 files  data\n" in refusal(tmp_path)


def test_the_limits_are_those_of_an_installation_that_was_not_told_otherwise() -> None:
    defaults = {name: Settings.model_fields[f"max_{name}"].default for name in ("source_files", "unpacked_bytes")}
    assert defaults == {"source_files": pack.MAX_FILES, "unpacked_bytes": pack.MAX_UNPACKED}
    assert Settings.model_fields["max_source_bytes"].default == pack.MAX_PACKED
