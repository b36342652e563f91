"""Pulling and unpacking images: what is refused, and that nothing half made stays."""
# ruff: noqa: ASYNC240 - a look at a small file

import asyncio
import dataclasses
import io
import tarfile
from pathlib import Path

import pytest

from app.platforms.base import Misconfigured, Rejected, ServiceRef, ServiceSpec, Transient
from app.platforms.local import LocalPlatform
from app.platforms.local.rootfs import Images
from tests.images.support import Place
from tests.support.agents import digest, layer_of, push
from tests.support.waiting import free_port


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.fixture
def images(tmp_path: Path) -> Images:
    (tmp_path / "images").mkdir()
    return Images(tmp_path / "images", 1024 * 1024)


HOSTILE = {
    "climbs": [entry("../evil")],
    "climbs inside": [entry("a/../../evil")],
    "absolute": [entry("/evil")],
    "through a link": [entry("out", tarfile.SYMTYPE, "/tmp"), entry("out/evil")],
    "through a link to a file": [entry("out", tarfile.SYMTYPE, "../../x"), entry("out/evil")],
    "hard link out": [entry("h", tarfile.LNKTYPE, "../../../etc/passwd")],
    "hard link through a link": [entry("out", tarfile.SYMTYPE, "/etc"), entry("h", tarfile.LNKTYPE, "out/passwd")],
    "hard link to a link": [entry("out", tarfile.SYMTYPE, "/etc/passwd"), entry("h", tarfile.LNKTYPE, "out")],
    "device": [entry("null", tarfile.CHRTYPE)],
    "pipe": [entry("pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_layers_are_refused(case: str, place: Place, images: Images, tmp_path: Path) -> None:
    ref = await push(place, layer_of({}, HOSTILE[case]))
    with pytest.raises(Rejected):
        await images.ensure(ref)
    assert list((tmp_path / "images").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/evil").exists()


async def test_modes_are_made_harmless(place: Place, images: Images) -> None:
    image = await images.ensure(await push(place, layer_of({"app/agent": b"x", "etc/hosts": b"mine"})))
    assert (image.rootfs / "app/agent").stat().st_mode & 0o7777 == 0o755
    assert all((image.rootfs / name).is_dir() for name in ("proc", "dev", "tmp", "etc"))
    assert (image.argv, image.folder) == (("/app/agent",), "/")


async def test_white_outs_and_replaced_links_stay_inside(place: Place, images: Images, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("safe")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(entry("link", tarfile.SYMTYPE, str(tmp_path / "outside")))
        late = tarfile.TarInfo("link")
        late.size = 4
        archive.addfile(late, io.BytesIO(b"evil"))
        archive.addfile(entry("gone"))
        archive.addfile(entry(".wh.gone"))
        archive.addfile(entry("tmp", tarfile.SYMTYPE, str(tmp_path)))
    image = await images.ensure(await push(place, out.getvalue()))
    assert (tmp_path / "outside").read_text() == "safe"
    assert (image.rootfs / "link").read_text() == "evil"
    assert not (image.rootfs / "gone").exists()
    assert not (image.rootfs / "tmp").is_symlink()


async def test_a_layer_that_unpacks_to_something_else_is_refused(place: Place, images: Images) -> None:
    with pytest.raises(Rejected, match="something else"):
        await images.ensure(await push(place, layer_of({"app/agent": b"x"}), diff_id=digest(b"other")))


async def test_a_bomb_is_refused(place: Place, images: Images) -> None:
    with pytest.raises(Rejected, match="too large"):
        await images.ensure(await push(place, layer_of({"app/agent": bytes(2 * 1024 * 1024)})))


async def test_no_entrypoint_is_refused(place: Place, images: Images) -> None:
    with pytest.raises(Rejected, match="entrypoint"):
        await images.ensure(await push(place, layer_of({"app/agent": b"x"}), Entrypoint=None))


async def test_registry_faults_say_what_to_do(place: Place, images: Images) -> None:
    ref = await push(place, layer_of({"app/agent": b"x"}))
    with pytest.raises(Misconfigured):
        await images.ensure(dataclasses.replace(ref, password="wrong"))
    with pytest.raises(Rejected):
        await images.ensure(dataclasses.replace(ref, digest=digest(b"absent")))
    with pytest.raises(Transient):
        await images.ensure(dataclasses.replace(ref, registry=f"http://127.0.0.1:{free_port()}"))


async def test_one_pull_serves_all_who_ask_at_once(place: Place, images: Images) -> None:
    ref = await push(place, layer_of({"app/agent": b"x"}))
    place.requests.clear()
    found = await asyncio.gather(*(images.ensure(ref) for _ in range(5)))
    assert len({image.rootfs for image in found}) == 1
    gets = [
        path
        for method, path, headers in place.requests
        if method == "GET" and "/blobs/" in path and headers.get("authorization")
    ]
    assert len(gets) == 2, "config and layer, once each"


async def test_an_image_goes_with_its_last_release(platform: LocalPlatform, service: ServiceSpec) -> None:
    second = dataclasses.replace(service, release=service.release + "x")
    for spec in (service, second):
        await platform.services.deploy(spec)
    first_ref, second_ref = (ServiceRef(service=s.service, release=s.release) for s in (service, second))
    await platform.services.retire(first_ref)
    assert platform.images.find(service.image.digest) is not None
    await platform.services.wake(second_ref)
    await platform.services.retire(second_ref)
    assert platform.images.find(service.image.digest) is None
    assert list(platform.folder.images.iterdir()) == []
    assert list(platform.folder.releases.iterdir()) == []
    assert list(platform.folder.logs.iterdir()) == []
