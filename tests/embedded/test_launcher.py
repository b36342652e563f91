"""The launcher: what the dropped account can reach, what it can't, and what else it has lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.embedded.reach import Account, account, launch_prefix, obstacle, reachable
from tests.embedded.support import needs_root, without_sys_admin
from tests.support.processes import assert_gone, python, spawned

NOBODY = Account("nobody", 65534, 65534)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def files_in(folder: Path) -> tuple[Path, Path]:
    """Make ``kept/file`` and ``secret`` some folders down."""
    kept = folder / "some" / "where" / "kept"
    kept.mkdir(parents=True)
    (kept / "file").write_text("kept")
    (kept / "file").chmod(0o644)
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o644)
    return kept, folder / "secret"


@needs_root
def test_kept_folders_can_be_read_at_their_own_place_and_nothing_beside_them(closed_folder: Path) -> None:
    kept, secret = files_in(closed_folder)
    before = Path("/proc/self/mountinfo").read_text()
    assert not reachable(kept, NOBODY)
    assert run([*launch_prefix(NOBODY), "cat", str(kept / "file")]).returncode != 0

    prefix = launch_prefix(NOBODY, [kept])
    assert run([*prefix, "cat", str(kept / "file")]).stdout == "kept"
    assert "No such file" in run([*prefix, "cat", str(secret)]).stderr
    assert obstacle(NOBODY, [kept]) is None
    assert Path("/proc/self/mountinfo").read_text() == before
    assert closed_folder.stat().st_mode & 0o777 == 0o700


@needs_root
def test_what_is_written_in_a_kept_folder_is_there_for_everybody(closed_folder: Path) -> None:
    kept, _ = files_in(closed_folder)
    os.chown(kept, NOBODY.uid, NOBODY.gid)
    assert run([*launch_prefix(NOBODY, [kept]), "touch", str(kept / "new")]).returncode == 0
    assert (kept / "new").stat().st_uid == NOBODY.uid


@needs_root
def test_links_files_and_folders_in_folders_are_kept_too(closed_folder: Path) -> None:
    kept, secret = files_in(closed_folder)
    inner = kept / "inner"  # a closed folder inside a kept one
    inner.mkdir(mode=0o700)
    deep, _ = files_in(inner)
    link = closed_folder / "links" / "to"
    link.parent.mkdir()
    link.symlink_to(Path("..") / "some" / "where")
    names = [link / "kept" / "file", secret, deep / "file", kept / "file"]
    prefix = launch_prefix(NOBODY, [link / "kept", secret, deep, kept])
    assert run([*prefix, "cat", *map(str, names)]).stdout == "keptsecretkeptkept"


@needs_root
def test_everything_is_dropped() -> None:
    prefix = launch_prefix(NOBODY, no_new_privs=True)
    shown = subprocess.check_output([*prefix, "cat", "/proc/self/status"], extra_groups=[4], text=True, timeout=20)
    status = dict(line.split(":\t", 1) for line in shown.splitlines() if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    ignored = int(status["SigIgn"], 16)  # Python ignores these two, and exec hands that on
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@needs_root
def test_what_the_account_may_not_use_is_named(closed_folder: Path) -> None:
    done = run([*launch_prefix(NOBODY, [closed_folder]), "true"])
    assert done.returncode == 125
    assert done.stderr == f"reach: uid 65534 may not use {closed_folder}: owner or mode forbid it\n"
    missing = run([*launch_prefix(NOBODY, [closed_folder / "missing"]), "true"])
    assert missing.returncode == 127
    assert str(closed_folder / "missing") in missing.stderr


@needs_root
def test_without_the_capability_it_says_so(closed_folder: Path) -> None:
    kept, _ = files_in(closed_folder)
    command = without_sys_admin([*launch_prefix(NOBODY, [kept]), "true"])
    done = run([str(word) for word in command])
    assert done.returncode == 125
    assert "CAP_SYS_ADMIN" in done.stderr


@needs_root
def test_root_drops_to_an_account_that_is_not_root() -> None:
    who = account()
    assert who is not None
    assert who.uid != 0


def test_nothing_special_means_no_launcher() -> None:
    assert launch_prefix(None, ["/anything"]) == []


def test_reachable_is_about_this_process_without_an_account(tmp_path: Path) -> None:
    assert reachable(tmp_path, None)
    assert not reachable(tmp_path / "missing", None)
    assert obstacle(None, [tmp_path / "missing"]) == f"this user can't use {tmp_path / 'missing'}"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--keep", "relative", "--", "true"], 125, "wrong argument '--keep'"),
        (["--keep", "/tmp", "--", "true"], 125, "--keep needs them"),
        (["--uid", "1", "--", "true"], 125, "--uid and --gid go together"),
        (["--"], 125, "no command"),
        (["--", "/no/such/program"], 127, "No such file or directory"),
        (["--", "/etc/passwd"], 126, "Permission denied"),
    ],
)
def test_a_wrong_order_is_one_line_and_a_code(words: list[str], code: int, text: str) -> None:
    launcher = launch_prefix(None, no_new_privs=True)[:4]
    done = run([*launcher, *words])
    assert done.returncode == code
    assert done.stderr.startswith("reach: ")
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


PARENT = """
import signal, subprocess, sys
from app.embedded.reach import launch_prefix
prefix = launch_prefix(None, die_with_parent=signal.SIGTERM)
child = subprocess.Popen([*prefix, sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
child.wait()
"""


def test_the_command_dies_with_its_parent() -> None:
    with spawned(*python(PARENT)) as parent:
        parent.line("up")
        children = psutil.Process(parent.pid).children()
        assert len(children) == 1
        parent.kill()
        assert_gone(children)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    prefix = launch_prefix(None, die_with_parent=signal.SIGTERM)
    prefix[prefix.index("--parent") + 1] = "1" if os.getpid() != 1 else "2"
    done = run([*prefix, sys.executable, "-c", "print('ran')"])
    assert (done.returncode, done.stdout) == (125, "")
    assert "parent is gone" in done.stderr
