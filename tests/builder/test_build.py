"""A whole build: what is pushed and reported when all goes well."""

import asyncio
import gzip
import hashlib
import io
import os
import stat
import tarfile
import time
from pathlib import Path

import certifi

from builder.outcome import Exit
from tests.builder.conftest import GO_MOD, MAIN, Bench, packed


async def test_a_program_becomes_an_image(bench: Bench, tmp_path: Path) -> None:
    assert await bench.run() == Exit.DONE
    said = bench.plane.completion
    assert said is not None
    assert (said["status"], said["reason"], said["exit_code"]) == ("succeeded", None, 0)
    assert said["toolchain"]["go"].startswith("go1.")
    assert said["isolation"] in {"netns", "goproxy_off"}
    assert set(said["timings"]) == {"fetch", "modules", "compile", "image", "push"}
    manifest, config, layer = bench.plane.image()
    assert said["image"]["repository"] == "slipway/run-1"
    assert said["image"]["size"] == manifest["config"]["size"] + manifest["layers"][0]["size"]
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/app/agent"]
    assert config["config"]["ExposedPorts"] == {"8080/tcp": {}}
    assert config["config"]["Labels"] == {"a": "b"}
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    tar = gzip.decompress(layer)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as entries:
        found = {entry.name: entry for entry in entries}
        assert stat.S_IMODE(found["tmp"].mode) == 0o1777
        assert found["home/agent"].uid == 65532
        content = entries.extractfile("etc/ssl/certs/ca-certificates.crt")
        assert content is not None
        assert content.read().decode() == certifi.contents()
        agent = entries.extractfile("app/agent")
        assert agent is not None
        (tmp_path / "agent").write_bytes(agent.read())
    (tmp_path / "agent").chmod(stat.S_IMODE(found["app/agent"].mode))
    ran = await asyncio.create_subprocess_exec(tmp_path / "agent", stderr=asyncio.subprocess.PIPE)
    assert (await asyncio.wait_for(ran.communicate(), 10))[1] == b"1\n"


async def test_two_builds_give_one_digest(bench: Bench) -> None:
    assert await bench.run() == Exit.DONE
    first = bench.plane.completion
    bench.plane.instance = None
    # Another archive of the same tree, another folder, another umask, no help from the first one's cache.
    bench.plane.source = packed({"./main.go": MAIN, "go.mod": GO_MOD})
    before = os.umask(0o077)
    try:
        assert await bench.run(SLIPWAY_RUN_DEADLINE=str(time.time() + 60)) == Exit.DONE
    finally:
        os.umask(before)
    second = bench.plane.completion
    assert first is not None
    assert second is not None
    assert first["image"] == second["image"]
    assert first["source"] == second["source"]
