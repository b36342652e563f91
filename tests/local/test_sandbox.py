"""What a sandbox shows, hides and bounds; with real programs inside real ones."""
# ruff: noqa: ASYNC240 - a look at a small file

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from app.platforms.base import BuilderSpec, Misconfigured, Phase, Ref, ServiceRef, ServiceSpec, StartFailed
from app.platforms.local import LocalPlatform, procfs
from app.settings import LocalSettings, Settings
from tests.local.support import Machine, builder_spec
from tests.platforms.contract import until
from tests.support.agents import Toolbox
from tests.support.waiting import eventually

LOOK = """
import json, os
def tried(do):
    try: return do()
    except OSError as e: return type(e).__name__
def lines(name): return dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
import httpx, builder
print(json.dumps({
    "uid": os.getuid(), "root": sorted(os.listdir("/")), "work": os.listdir("/work"),
    "pids": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "shadow": tried(lambda: open("/etc/shadow").read()), "home": tried(lambda: os.listdir(os.environ["TENANT_HOME"])),
    "environ": tried(lambda: open("/proc/1/environ").read()), "caps": lines("x")["CapBnd"], "new_privs": lines("x")["NoNewPrivs"],
    "fds": sorted(os.readlink(f"/proc/1/fd/{f}") for f in os.listdir("/proc/1/fd") if int(f) > 2),
    "mine": [os.readlink(f"/proc/self/fd/{f}") for f in ("3", "4", "5", "6") if os.path.lexists(f"/proc/self/fd/{f}")],
    "usr": tried(lambda: open("/usr/x", "w").close()), "go": tried(lambda: open("/opt/go/x", "w").close()),
    "seed": tried(lambda: open("/gocache/mine", "w").close()),
    "nested": os.system("unshare -Urn true") if os.path.exists("/usr/bin/unshare") else 0,
}))
"""


def group_of(leader: int | None) -> list[int]:
    """Return the processes of a group that still do anything."""
    found = []
    for pid, seen in procfs.snapshot().items():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == leader and seen.state != "Z":
                found.append(pid)
    return found


COMPILES = """
import subprocess, time
print(subprocess.Popen(["/bin/sleep", "600"], env={}, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


async def said(platform: LocalPlatform, spec: BuilderSpec) -> list[str]:
    return [line.text for line in await platform.builders.logs(Ref(name=spec.name))]


async def output(platform: LocalPlatform, script: str, **env: str) -> str:
    spec = builder_spec(script, env=env)
    await platform.builders.launch(spec)
    await platform.processes.live[spec.name].ended.wait()
    return "\n".join(await said(platform, spec))


async def test_a_builder_sees_only_its_own(machine: Machine) -> None:
    seen = json.loads(await output(machine.platform, LOOK, TENANT_HOME=str(machine.settings.home)))
    assert seen["uid"] == 65532
    assert seen["work"] == []
    assert seen["pids"] == 2
    assert set(seen["root"]) >= {"gocache", "opt", "proc", "work"}
    assert "home" not in seen["root"]
    assert "var" not in seen["root"]
    assert (seen["shadow"], seen["home"]) == ("FileNotFoundError", "FileNotFoundError")
    assert "slr.token" not in seen["environ"]
    assert int(seen["caps"], 16) == 0
    assert seen["new_privs"] == "1"
    assert all(name.startswith("anon_inode:") for name in seen["fds"]), "the sandbox keeps something of the host open"
    assert not [name for name in seen["mine"] if not name.startswith("/proc")]
    assert seen["usr"] == seen["go"] == "OSError"
    assert seen["nested"] == 0, "the builder can't drop the network for its compile phase"
    assert seen["seed"] is None
    assert not list((machine.settings.home / "local/seed").rglob("mine"))


async def test_builders_do_not_see_each_other(machine: Machine) -> None:
    first, second = (
        builder_spec("open('/work/a', 'w').close()\nimport time\nprint('hello', flush=True)\ntime.sleep(600)"),
        "",
    )
    await machine.platform.builders.launch(first)

    async def up() -> bool:
        return bool(await machine.platform.builders.logs(Ref(name=first.name)))

    await until(up)
    second = await output(machine.platform, "import os; print(os.listdir('/work'), os.path.exists('/proc/3'))")
    assert second.strip() == "[] False"


async def test_a_build_cannot_alter_the_seed(tmp_path: Path, toolbox: Toolbox) -> None:
    machine = Machine(Settings(home=toolbox.home(tmp_path / "home", seeded=True)))
    await machine.start()
    try:
        seed = next((machine.settings.home / "local/seed").glob("seed-*"))
        victim = next(p for p in sorted(seed.rglob("*-d")) if p.stat().st_size)
        content = victim.read_bytes()
        script = f"""
import os, subprocess, time
path = "/gocache/{victim.relative_to(seed)}"
try: os.chmod(path, 0o644)
except OSError as e: print("chmod", e)
try: open(path, "w").write("poison")
except OSError as e: print("write", e)
os.makedirs("/work/p"); open("/work/p/go.mod", "w").write("module p\\n\\ngo 1.25\\n")
open("/work/p/main.go", "w").write('package main\\nimport "fmt"\\nfunc main() {{ fmt.Println(1) }}\\n')
env = {{"GOCACHE": "/gocache", "CGO_ENABLED": "0", "HOME": "/work", "PATH": "/usr/bin"}}
env |= {{"GOTELEMETRY": "off", "GOTOOLCHAIN": "local"}}
argv = [os.environ["SLIPWAY_GO"], "build", "-x", "-trimpath", "-o", "/work/out", "."]
done = subprocess.run(argv, cwd="/work/p", env=env, capture_output=True, text=True)
print("code", done.returncode, "compiled", done.stderr.count("/compile -o"), done.stderr[-300:] if done.returncode else "")
"""
        said = await output(machine.platform, script)
        assert "code 0 compiled 1" in said, said
        assert victim.read_bytes() == content
        assert victim.stat().st_mode & 0o222 == 0
    finally:
        await machine.close()


async def get(platform: LocalPlatform, spec: ServiceSpec, route: str, **params: str) -> httpx.Response:
    address = await platform.services.wake(ServiceRef(service=spec.service, release=spec.release))
    async with httpx.AsyncClient(timeout=10) as client:
        return await client.get(address.url + route, params=params)


async def test_a_service_sees_only_its_image(platform: LocalPlatform, service: ServiceSpec, tmp_path: Path) -> None:
    await platform.services.deploy(service)
    assert (await get(platform, service, "/ids")).text == "65532 2"
    for path in ("/etc/shadow", str(tmp_path), "/usr/bin/env", "/root"):
        assert (await get(platform, service, "/read", path=path)).status_code == 404, path
    assert (await get(platform, service, "/write", path="/app/agent")).status_code == 403
    assert (await get(platform, service, "/write", path="/tmp/x")).status_code == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="there is nothing to drop")
async def test_root_drops_its_uid(platform: LocalPlatform, service: ServiceSpec) -> None:
    spec = builder_spec()
    await platform.builders.launch(spec)
    await platform.services.deploy(service)
    for name in (spec.name, service.release):
        process = platform.processes.live[name]
        for pid in (process.record.pid, process.record.inner, *process.tree()):
            status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
            assert status["Groups"].split() == []
            if pid == process.record.pid:
                assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}


async def test_secrets_are_in_no_command_line_and_no_file(machine: Machine, service: ServiceSpec) -> None:
    spec = dataclasses.replace(service, secrets={"API_KEY": "hush-5e2f"}, env={"PLAIN": "seen-77aa"})
    await machine.platform.services.deploy(spec)
    assert (await get(machine.platform, spec, "/env", name="API_KEY")).text == "hush-5e2f"
    await machine.platform.builders.launch(builder_spec(env={"SECRET": "hush-5e2f"}))
    for pid in procfs.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        assert b"hush-5e2f" not in words, words
    files = [p for p in (machine.settings.home / "local").rglob("*") if p.is_file()]
    assert any(p.suffix == ".json" for p in files)
    assert not [p for p in files if b"hush-5e2f" in p.read_bytes()]
    platform = await machine.restart()
    ref = ServiceRef(service=spec.service, release=spec.release)
    await platform.services.sleep(ref)
    assert (await get(platform, spec, "/env", name="API_KEY")).text == "hush-5e2f"


async def test_a_stranger_on_the_port_is_not_the_release(machine: Machine, service: ServiceSpec) -> None:
    services = machine.platform.services
    spec = dataclasses.replace(service, env={"MODE": "mute"})
    await services.deploy(spec)
    port = machine.platform.processes.live[spec.release].record.extra["port"]
    ref = ServiceRef(service=spec.service, release=spec.release)
    with socket.create_server(("127.0.0.1", port)):
        assert (await services.inspect(ref)).phase is Phase.STARTING
        assert procfs.listening([os.getpid()], [port]) == ("127.0.0.1", port)
        with pytest.raises(StartFailed) as caught:
            await services.wake(ref)
    assert caught.value.reason == "not_listening"


async def test_a_program_that_insists_on_the_asked_port_is_taken(platform: LocalPlatform, service: ServiceSpec) -> None:
    from app.platforms.local import ports

    port = ports.free()
    spec = dataclasses.replace(service, port=port, env={"MODE": "asked", "ASKED": str(port)})
    await platform.services.deploy(spec)
    address = await platform.services.wake(ServiceRef(service=spec.service, release=spec.release))
    assert address.url == f"http://127.0.0.1:{port}"


async def test_too_much_memory_ends_a_service(platform: LocalPlatform, service: ServiceSpec) -> None:
    spec = dataclasses.replace(service, env={"MODE": "hog"})
    await platform.services.deploy(spec)
    ref = ServiceRef(service=spec.service, release=spec.release)
    with pytest.raises(StartFailed) as caught:
        await platform.services.wake(ref)
    assert caught.value.reason == "out_of_memory"
    seen = await platform.services.inspect(ref)
    assert (seen.phase, seen.out_of_memory) == (Phase.FAILED, True)


@pytest.mark.parametrize(
    "script",
    [
        "kept = []\nimport time\nwhile True: kept.append(b'x' * 4_000_000); time.sleep(0.002)",
        "import time\nfor i in range(1000): open(f'/gocache/{i}', 'wb').write(b'x' * 4_000_000); time.sleep(0.002)",
        "import os\nfor i in range(3): os.fork()\nk = []\nimport time\nwhile True: k.append(b'x' * 1_000_000); time.sleep(0.002)",
    ],
    ids=["heap", "files", "tree"],
)
async def test_too_much_memory_ends_a_builder(platform: LocalPlatform, script: str) -> None:
    spec = builder_spec(script, memory_mb=128)
    await platform.builders.launch(spec)
    await platform.processes.live[spec.name].ended.wait()
    seen = await platform.builders.inspect(Ref(name=spec.name))
    assert (seen.phase, seen.out_of_memory) == (Phase.FAILED, True)


async def test_only_an_end_that_nobody_asked_for_is_told(platform: LocalPlatform, service: ServiceSpec) -> None:
    told, ref = platform.platform.ended, ServiceRef(service=service.service, release=service.release)
    assert told is not None
    await platform.services.deploy(service)
    await platform.services.wake(ref)
    await platform.services.sleep(ref)
    assert not told.is_set()
    await platform.services.wake(ref)
    os.kill(platform.processes.live[service.release].tree()[0], signal.SIGKILL)
    async with asyncio.timeout(10):
        await told.wait()


async def test_a_builder_past_its_deadline_is_ended(platform: LocalPlatform) -> None:
    spec = builder_spec(seconds=-60)
    await platform.builders.launch(spec)
    await platform.processes.live[spec.name].ended.wait()
    seen = await platform.builders.inspect(Ref(name=spec.name))
    assert (seen.phase, seen.message) == (Phase.FAILED, "ended at its deadline")


async def test_a_builder_has_resource_limits(platform: LocalPlatform) -> None:
    script = "import resource as r; print(*(r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in ('NPROC', 'DATA', 'CORE')))"
    data = (256 + 512) * 1024 * 1024
    assert (await output(platform, script)).strip() == f"(1024, 1024) ({data}, {data}) (0, 0)"


async def test_a_stubborn_program_is_killed_after_its_grace(platform: LocalPlatform, service: ServiceSpec) -> None:
    spec = dataclasses.replace(service, env={"MODE": "stubborn"})
    await platform.services.deploy(spec)
    ref = ServiceRef(service=spec.service, release=spec.release)
    await platform.services.wake(ref)
    process = platform.processes.live[spec.release]
    await platform.services.sleep(ref)
    assert process.record.exit_code == 137
    assert procfs.marked(process.record.marker) == set()
    assert (await platform.services.inspect(ref)).phase is Phase.ASLEEP


async def test_a_log_does_not_grow_without_end(platform: LocalPlatform) -> None:
    said = "import time\nfor i in range(400): print(str(i) * 10_000, flush=True)\nprint('last', flush=True)\ntime.sleep(600)"
    spec = builder_spec(said)
    await platform.builders.launch(spec)
    path = platform.processes.log_path(spec.name)

    async def bounded() -> bool:
        lines = await platform.builders.logs(Ref(name=spec.name))
        return bool(lines) and lines[-1].text == "last" and path.stat().st_size < 4 * 1024 * 1024

    await until(bounded)


async def test_a_sandbox_that_does_not_work_is_said(tmp_path: Path, toolbox: Toolbox, service: ServiceSpec) -> None:
    broken = LocalSettings(bwrap=Path("/bin/false"))
    machine = Machine(Settings(home=toolbox.home(tmp_path / "broken"), local=broken))
    await machine.start()
    try:
        with pytest.raises(Misconfigured, match="SLIPWAY_SANDBOX=none"):
            await machine.platform.builders.launch(builder_spec())
        with pytest.raises(Misconfigured, match="SLIPWAY_SANDBOX=none"):
            await machine.platform.services.deploy(service)
    finally:
        await machine.close()


async def test_no_go_is_said(tmp_path: Path, toolbox: Toolbox) -> None:
    machine = Machine(Settings(home=tmp_path / "home", local=LocalSettings(go_root=tmp_path)))
    await machine.start()
    try:
        with pytest.raises(Misconfigured, match="SLIPWAY_LOCAL__GO_ROOT"):
            await machine.platform.builders.launch(builder_spec())
    finally:
        await machine.close()


async def test_without_a_sandbox_services_run_and_end_all_the_same(
    tmp_path: Path, toolbox: Toolbox, service: ServiceSpec, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(Settings(home=toolbox.home(tmp_path / "bare"), sandbox="none"))
    await machine.start()
    try:
        assert "UNPROTECTED" in caplog.text
        await machine.platform.services.deploy(service)
        uid = (await get(machine.platform, service, "/ids")).text.split()[0]
        assert uid == (str(os.geteuid()) if os.geteuid() else "65532")
        ref = ServiceRef(service=service.service, release=service.release)
        await machine.platform.services.sleep(ref)
        assert (await machine.platform.services.inspect(ref)).phase is Phase.ASLEEP
        daemon = dataclasses.replace(service, release=service.release + "x", env={"MODE": "daemon"})
        await machine.platform.services.deploy(daemon)
        process = machine.platform.processes.live[daemon.release]
        await eventually(lambda: not process.alive)
        assert process.record.exit_code == 4
        # What it started carries no mark of ours any more, and its group alone tells whose it is.
        await eventually(lambda: group_of(process.record.pid) == [])
        # A compiler has a group and an environment of its own, and is below its builder.
        spec = builder_spec(COMPILES)
        await machine.platform.builders.launch(spec)
        process = machine.platform.processes.live[spec.name]
        (compiler,) = await until(lambda: said(machine.platform, spec))
        await machine.platform.processes.kill(process)
        await eventually(lambda: group_of(int(compiler)) == [])
    finally:
        await machine.close()
    assert procfs.marked(machine.platform.processes.prefix) == set()
