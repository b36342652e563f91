"""What bad sources get: the reason, a message that says what to do, the place in the file, the exit code."""

import asyncio
import gzip
import io
import tarfile
from pathlib import Path

import pytest

from builder.outcome import Exit
from tests.builder.conftest import GO_MOD, MAIN, Bench

SUM = "h1:ZmFrZWZha2VmYWtlZmFrZWZha2VmYWtlZmFrZWZha2U="
NEEDS = GO_MOD + "\nrequire github.com/x/y v1.0.0\n"

BAD_SOURCES: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "no go.mod": ({"main.go": MAIN}, "source_invalid", "go mod init"),
    "broken go.mod": ({"go.mod": "modul x", "main.go": MAIN}, "source_invalid", "go.mod can't be read"),
    "broken version": ({"go.mod": "module m\n\ngo 1.x\n", "main.go": MAIN}, "source_invalid", "go.mod"),
    "no go.sum": ({"go.mod": NEEDS, "main.go": MAIN}, "source_invalid", "There is no go.sum"),
    "library": ({"go.mod": GO_MOD, "a.go": "package lib\n"}, "not_a_program", "is not a program"),
    "nothing": ({"go.mod": GO_MOD, "README": "x"}, "not_a_program", "no Go files"),
    "cgo": (
        {"go.mod": GO_MOD, "main.go": 'package main\n\nimport "C"\n\nfunc main() {}\n'},
        "not_a_program",
        "build constraints",
    ),
    "newer go": ({"go.mod": "module m\n\ngo 1.99\n", "main.go": MAIN}, "toolchain_mismatch", "requires go >= 1.99"),
    "toolchain line": (
        {"go.mod": "module m\n\ngo 1.98.0\n\ntoolchain go1.99.0\n", "main.go": MAIN},
        "toolchain_mismatch",
        "but the builder has go1.",
    ),
    "undeclared module": (
        {"go.mod": GO_MOD, "main.go": 'package main\n\nimport "github.com/x/y"\n\nfunc main() { y.Z() }\n'},
        "source_invalid",
        "No module in go.mod provides github.com/x/y",
    ),
    "stale vendor": (
        {"go.mod": NEEDS, "main.go": MAIN, "vendor/modules.txt": "# nothing\n"},
        "source_invalid",
        "go mod vendor",
    ),
    "replaced by a neighbour": (
        {"go.mod": NEEDS + "\nreplace github.com/x/y => ./a/../../b\n", "main.go": MAIN},
        "source_rejected",
        "outside of the source",
    ),
    "replaced by a path": (
        {"go.mod": NEEDS + "\nreplace github.com/x/y => /etc\n", "main.go": MAIN},
        "source_rejected",
        "outside of the source",
    ),
    "no main function": ({"go.mod": GO_MOD, "main.go": "package main\n"}, "compile_error", "function main"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
async def test_a_bad_source_has_its_reason(bench: Bench, name: str) -> None:
    files, reason, words = BAD_SOURCES[name]
    bench.send(files)
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == reason
    assert words in bench.message()
    assert bench.plane.completion is not None
    assert bench.plane.completion["image"] is None
    assert bench.plane.grants == 0


async def test_a_compile_error_names_file_line_and_column(bench: Bench) -> None:
    bench.send(
        {
            "go.mod": GO_MOD,
            "main.go": 'package main\n\nimport "example.com/agent/sub"\n\nfunc main() { sub.F() }\n',
            "sub/a.go": 'package sub\n\nfunc F() {\n\tx\n\tvar n int = "s"\n}\n',
        }
    )
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "compile_error"
    assert bench.plane.completion is not None
    found = {(d["file"], d["line"], d["column"]): d["message"] for d in bench.plane.completion["diagnostics"]}
    assert found["sub/a.go", 4, 2] == "undefined: x"
    assert ("sub/a.go", 5, 14) in found
    assert "undefined: x" in bench.plane.text


@pytest.mark.parametrize(
    "package", ["-toolexec=/bin/sh", "../x", "/etc", "./...", "nowhere", "main.go", "a\\b", "x@v1"]
)
async def test_a_package_must_be_a_folder_of_the_source(bench: Bench, package: str) -> None:
    bench.plane.orders["build"] = {"package": package, "goarch": "amd64"}
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_invalid"


async def test_the_source_cannot_set_flags_or_run_anything(bench: Bench, tmp_path: Path) -> None:
    """Nothing that a source can bring along changes what is done: go.env, go.work, generate lines, a toolchain."""
    canary = tmp_path / "canary"
    bench.send(
        {
            "go.mod": GO_MOD,
            "main.go": f"package main\n\n//go:generate touch {canary}\n\nfunc main() {{}}\n",
            "go.env": "GOFLAGS=-toolexec=/bin/false\nGOPROXY=https://example.com\n",
            ".config/go/env": "GOFLAGS=-toolexec=/bin/false\n",
            "go.work": "go 1.25\n\nuse ./nowhere\n",
        }
    )
    assert await bench.run() == Exit.DONE
    assert not canary.exists()


async def test_another_folder_than_the_root(bench: Bench) -> None:
    bench.send({"go.mod": GO_MOD, "lib.go": "package lib\n", "cmd/agent/main.go": MAIN})
    bench.plane.orders["build"] = {"package": "cmd/agent", "goarch": "arm64"}
    bench.plane.orders["source"] = {"kind": "archive", "digest": None}
    assert await bench.run() in {Exit.DONE}
    assert bench.plane.image()[1]["architecture"] == "arm64"


async def test_the_digest_must_be_the_one_asked_for(bench: Bench) -> None:
    bench.plane.orders["source"] = {"kind": "archive", "digest": f"sha256:{'0' * 64}"}
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_rejected"
    assert "not the one that was asked for" in bench.message()


async def test_a_source_that_leads_out_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.send({"go.mod": GO_MOD, "../escaped": "x"})
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_rejected"
    assert not await asyncio.to_thread(lambda: list(tmp_path.rglob("escaped")))


async def test_an_archive_that_is_none(bench: Bench) -> None:
    bench.plane.source = b"hello"
    assert await bench.run() == Exit.SOURCE
    assert (bench.reason(), bench.message().startswith("The source is not a readable")) == ("source_invalid", True)


async def test_a_cut_archive(bench: Bench) -> None:
    bench.plane.source = bench.plane.source[:-40]
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_invalid"


async def test_an_archive_over_the_limit_is_not_read_on(bench: Bench) -> None:
    bench.plane.orders["limits"] = {"source_bytes": 100}
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_rejected"


async def test_a_source_that_is_not_there(bench: Bench) -> None:
    bench.plane.plan["source"].append(404)
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "source_fetch"


async def test_a_source_comes_at_the_third_attempt(bench: Bench) -> None:
    bench.plane.plan["source"].extend([503, "reset"])
    assert await bench.run() == Exit.DONE


def wrapper(folder: Path, go: str, script: str) -> str:
    """Return a go command that behaves differently for ``build``, as a machine in trouble does."""
    path = folder / "go"
    path.write_text(f'#!/bin/sh\nif [ "$1" = build ]; then {script}; fi\nexec {go} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", ["kill -9 $$", "ulimit -v 300000", "echo 'compile: signal: killed' >&2; exit 1"])
async def test_a_compiler_out_of_memory(bench: Bench, tmp_path: Path, go: str, script: str) -> None:
    assert await bench.run(SLIPWAY_GO=wrapper(tmp_path, go, script)) == Exit.SOURCE
    assert bench.reason() == "out_of_memory"


async def test_a_disk_that_is_full_is_not_the_callers_fault(bench: Bench, tmp_path: Path, go: str) -> None:
    full = wrapper(tmp_path, go, "echo 'write /x: no space left on device' >&2; exit 1")
    assert await bench.run(SLIPWAY_GO=full) == Exit.BUILDER
    assert bench.reason() == "internal_error"


@pytest.mark.parametrize("go_command", ["/nowhere/go", "/bin/false"])
async def test_no_toolchain(bench: Bench, go_command: str) -> None:
    assert await bench.run(SLIPWAY_GO=go_command) == Exit.BUILDER
    assert bench.reason() == "internal_error"


async def test_a_kind_of_another_day(bench: Bench) -> None:
    bench.plane.orders["kind"] = "dockerfile"
    assert await bench.run() == Exit.BUILDER
    assert bench.reason() == "internal_error"


async def test_an_image_over_the_limit(bench: Bench) -> None:
    bench.plane.orders["limits"] = {"image_bytes": 1000}
    assert await bench.run() == Exit.NETWORK
    assert (bench.reason(), "larger than" in bench.message()) == ("push_failed", True)


async def test_a_report_too_long_is_cut_to_what_is_taken(bench: Bench) -> None:
    bench.send({"go.mod": GO_MOD, "main.go": "package main\n\nfunc main() {\n" + "\tundefinedName\n" * 9 + "}\n"})
    bench.plane.orders["limits"] = {"completion_bytes": 1024}
    assert await bench.run() == Exit.SOURCE
    assert bench.plane.completion is not None
    assert 0 < len(bench.plane.completion["diagnostics"]) < 9


async def test_a_link_in_the_archive(bench: Bench) -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    bench.plane.source = out.getvalue()
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_rejected"


async def test_a_fault_of_our_own_is_reported_as_one(bench: Bench) -> None:
    bench.plane.orders["image"] = {"repository": "r/x", "port": 1, "created": 10**30, "labels": {}}
    assert await bench.run() == Exit.BUILDER
    assert bench.reason() == "internal_error"
    assert "Traceback" in bench.plane.text


async def test_what_a_predecessor_left_is_not_built(bench: Bench) -> None:
    environ = bench.environ()
    work = Path(environ["SLIPWAY_WORK"])
    await asyncio.to_thread((work / "source").mkdir)
    await asyncio.to_thread((work / "source" / "old.go").write_text, "package broken\n")
    await asyncio.to_thread((work / "agent").write_text, "old")
    await asyncio.to_thread((work / "link").symlink_to, "/etc")
    assert await bench.run(SLIPWAY_WORK=str(work)) == Exit.DONE
