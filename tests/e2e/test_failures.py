"""What bad input gets on the whole embedded default: each fault its own reason and words, the right owner, and its log kept.

All builds are sent at once to one server, as callers would; then each is looked at.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e.modules import Door, door
from tests.e2e.place import Json, Place, eventually, place
from tests.e2e.programs import program, tiny
from tests.support.agents import Toolbox

MAIN = "package main\n\nfunc main() {}\n"
BROKEN = "package main\n\nfunc main() {\n\tundefinedThing()\n\tvar unused int\n}\n"
DEAF = 'package main\n\nimport "syscall"\n\nfunc main() {\n\tprintln("up")\n\tfor {\n\t\tsyscall.Pause()\n\t}\n}\n'
CRASHING = (
    'package main\n\nimport "syscall"\n\nfunc main() {\n\tprintln("no database, good bye")\n\tsyscall.Exit(3)\n}\n'
)
#: The compiler takes far more than the smallest builder has over so large a literal.
HUGE = (
    "package main\n\nfunc f(i int) string { return string(rune(i)) }\n\nfunc main() {\n\tm := map[string][]string{\n"
    + "".join(f'\t\t"k{i}": {{"v{i}", f({i})}},\n' for i in range(20_000))
    + "\t}\n\tprintln(len(m))\n}\n"
)


@dataclass(frozen=True)
class Bad:
    """A source, and what its build must say. ``kept`` must be in the build's log, ``said`` in the message."""

    files: dict[str, str]
    reason: str
    said: str
    kept: str = ""
    owner: str = "caller"
    retryable: bool = False
    builder: Json = field(default_factory=dict)
    service: bool = False


CASES = {
    "does not compile": Bad(program(BROKEN), "compile_error", "main.go:4", kept="undefined: undefinedThing"),
    "no go.mod": Bad(program(MAIN, mod=None), "source_invalid", "go.mod", kept="go.mod"),
    "not a program": Bad(program("package agent\n"), "not_a_program", "is not a program", kept="is not a program"),
    "newer Go": Bad(program(MAIN, mod="module m\n\ngo 1.99\n"), "toolchain_mismatch", "requires go >= 1.99", kept="1.99"),
    "out of memory": Bad(
        program(HUGE), "out_of_memory", "more than 256 MB", retryable=True, builder={"memory_mb": 256, "timeout_seconds": 60}
    ),
    "listens to nobody": Bad(program(DEAF), "not_listening", "did not listen on port 8080", kept="up", service=True),
    "crashes": Bad(program(CRASHING), "crashed_at_start", "code 3: no database", kept="no database, good bye", service=True),
    "unhealthy": Bad(tiny(status=500), "health_check_failed", "did not return a 2xx within 6 seconds: status 500", service=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def modules() -> Iterator[Door]:
    with door() as it:
        yield it


@pytest.fixture(scope="module")
def here(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory, modules: Door) -> Iterator[Place]:
    home = toolbox.home(tmp_path_factory.mktemp("failures") / "home", seeded=True)
    settings = {"GOPROXY": modules.url, "SLIPWAY_PROMOTE_TIMEOUT_SECONDS": "6", "SLIPWAY_LOCAL__MAX_BUILDERS": "3"}
    with place(home, **settings) as it:
        it.start()
        yield it


def name_of(case: str) -> str:
    return case.replace(" ", "-")


def send(it: Place, case: str, bad: Bad) -> str:
    return it.send(bad.files, name_of(case) if bad.service else None, builder=bad.builder)


def problems(it: Place, build: Json, bad: Bad) -> Iterator[str]:
    """Say in what a failed build differs from what it should be."""
    failure, log = build["failure"], it.log(build["id"])
    if (seen := (build["reason"], failure["owner"], failure["retryable"])) != (bad.reason, bad.owner, bad.retryable):
        yield f"it is {seen}: {build['message']}"
    if bad.said not in build["message"]:
        yield f"the message is {build['message']!r}"
    if bad.kept not in log or not log:
        yield f"the log is {log!r}"
    if len(build["runs"]) != 1:
        yield f"it was tried {len(build['runs'])} times"
    if [k for k in it.events(build["id"]) if k == "build.failed"] != ["build.failed"]:
        yield f"its events are {it.events(build['id'])}"


@pytest.mark.timeout(300)
def test_each_fault_has_its_own_answer(here: Place) -> None:
    sent = {case: send(here, case, bad) for case, bad in CASES.items()}
    wrong = []
    builds = {}
    for case, build in sent.items():
        builds[case] = here.ended(build, "failed", timeout=120)
        wrong += [f"{case}: {problem}" for problem in problems(here, builds[case], CASES[case])]
    assert wrong == []
    diagnostics = {(d["file"], d["line"]): d["message"] for d in builds["does not compile"]["diagnostics"]}
    assert diagnostics == {("main.go", 4): "undefined: undefinedThing", ("main.go", 5): "declared and not used: unused"}
    assert builds["out of memory"]["runs"][0]["out_of_memory"]
    here.settled()

    # A service that never had a live release says so, and can be deleted.
    name = name_of("crashes")
    assert here.service(name)["status"] == "pending"
    answer = here.http.get(f"http://127.0.0.1:{here.gateway_port}/", headers={"Host": here.host(name)})
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) > 0
    here.api("DELETE", f"/v1/services/{name}")


def test_modules_come_from_the_proxy_and_time_is_limited(here: Place, modules: Door) -> None:
    """One builder gets its module; another one's never comes, and its time runs out."""
    slow = here.send(modules.needing(tiny(), "example.test/slow"), builder={"timeout_seconds": 10})
    build = here.build(modules.needing(tiny(), "example.test/quick"), "modular")
    assert here.ask("modular")["digest"] == build["artifact"]["digest"]
    assert "/example.test/quick/@v/v1.0.0.zip" in modules.modules.asked
    late = here.ended(slow, "failed", timeout=60)
    assert (late["reason"], late["failure"]["owner"], late["failure"]["retryable"]) == ("timeout", "caller", True)
    assert "did not end in time" in late["message"]
    here.api("DELETE", "/v1/services/modular")


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("passwd")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


BAD_ARCHIVES = {
    "no archive": (b"this is no archive", "source_invalid"),
    "cut": (archive((tarfile.TarInfo("main.go"), MAIN.encode() * 100))[:-20], "source_invalid"),
    "leads out": (archive((tarfile.TarInfo("../main.go"), MAIN.encode())), "source_rejected"),
    "link": (archive((link(), b"")), "source_rejected"),
    "bomb": (archive((tarfile.TarInfo("zeros"), bytes(8 << 20))), "source_rejected"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_at_the_door(case: str, here: Place) -> None:
    data, reason = BAD_ARCHIVES[case]
    answer = here.api("POST", "/v1/sources", status=422, content=data)
    assert answer["reason"] == reason
    assert answer["detail"]


def test_a_build_of_an_upload_that_is_not_there(here: Place) -> None:
    source = {"kind": "upload", "digest": f"sha256:{'0' * 64}"}
    answer = here.api("POST", "/v1/builds", status=422, json={"source": source})
    assert "source.digest" in answer["detail"]


def test_a_stop_in_the_midst_of_a_build(here: Place, modules: Door) -> None:
    """SIGTERM leaves no process; at the next start the build goes on by itself and the service wakes when it is asked."""
    here.build(tiny(), "steady")
    before = here.ask("steady")["instance"]
    modules.modules.asked.clear()
    build = here.send(modules.needing(tiny("2"), "example.test/slow"))
    eventually(lambda: modules.modules.asked != [])
    here.stop()
    modules.opened.set()
    here.start()
    assert here.ask("steady")["instance"] != before
    ended = here.ended(build)
    assert [t["reason"] for t in ended["tried"]] == ["builder_lost"]
    here.settled("steady")
    here.api("DELETE", "/v1/services/steady")
