"""What callers may send: every bound, every name that isn't there, and everything that is no request at all."""

import json
from typing import Any

import pytest

from app.models import Build, Project, Service
from tests.support.world import FILES, World, client

BASE: dict[str, Any] = {"source": {"kind": "files", "files": FILES}, "platform": "yard"}
SERVICE = {"name": "echo"}
GIT = {"kind": "git", "url": "https://example.com/a.git"}


def build(**changes: Any) -> dict[str, Any]:
    return BASE | changes


def service(**changes: Any) -> dict[str, Any]:
    return BASE | {"service": SERVICE | changes}


#: What is wrong → the field that the answer names.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"platform": "yard"}, "source"),
    (build(source=None), "source"),
    (build(source={"kind": "tape"}), "source"),
    (build(source={"files": FILES}), "source"),
    (build(source={"kind": "files", "files": {}}), "source.files"),
    (build(source={"kind": "files", "files": {"a": 1}}), "source.files.a"),
    (build(source={"kind": "files", "files": FILES, "x": 1}), "source.x"),
    (build(source={"kind": "files", "files": {"../a": ""}}), "source.files.../a"),
    (build(source={"kind": "files", "files": {"/a": ""}}), "source.files./a"),
    (build(source={"kind": "files", "files": {"a//b": ""}}), "source.files.a//b"),
    (build(source={"kind": "files", "files": {"a": "", "a/b": ""}}), "source.files.a"),
    (build(source={"kind": "files", "files": {"a": "\x00"}}), "source.files.a"),
    (build(source={"kind": "files", "files": {"a\x00": ""}}), "source.files.a\ufffd"),
    (build(source={"kind": "files", "files": {"a": "\ud800"}}), "source.files.a"),
    (build(source={"kind": "upload"}), "source.digest"),
    (build(source={"kind": "upload", "digest": "sha256:zz"}), "source.digest"),
    (build(source={"kind": "upload", "digest": "sha256:" + "0" * 64}), "source.digest"),
    (build(source=GIT | {"url": "http://example.com/a"}), "source.url"),
    (build(source=GIT | {"url": "https://a b"}), "source.url"),
    (build(source=GIT | {"url": "https://" + "a" * 2048}), "source.url"),
    (build(source=GIT | {"ref": ""}), "source.ref"),
    (build(source=GIT | {"ref": "-x"}), "source.ref"),
    (build(source=GIT | {"ref": "a" * 256}), "source.ref"),
    (build(source=GIT | {"subdir": "../up"}), "source.subdir"),
    (build(source=GIT | {"subdir": "a" * 513}), "source.subdir"),
    (build(x=1), "x"),
    (build(strict="yes"), "strict"),
    (build(builder={"cpus": True}), "builder.cpus"),
    (build(builder={"memory_mb": 2048.5}), "builder.memory_mb"),
    (service(port="80"), "service.port"),
    (build(**{"\ud800": 1}), "body"),
    (build(source={"kind": "\ud800"}), "source"),
    (service(env={"\ud800": ""}), "service.env.���"),
    (build(build={"kind": "rust"}), "build.kind"),
    (build(build={"package": "-flag"}), "build.package"),
    (build(build={"package": ""}), "build.package"),
    (build(build={"package": "a" * 513}), "build.package"),
    (build(build={"goarch": "mips"}), "build.goarch"),
    (build(build={"x": 1}), "build.x"),
    (build(platform="No"), "platform"),
    (build(platform=1), "platform"),
    (build(platform="mars"), "platform"),
    (build(builder={"platform": "mars"}), "builder.platform"),
    (build(builder={"cpus": 0}), "builder.cpus"),
    (build(builder={"cpus": 65}), "builder.cpus"),
    (build(builder={"cpus": 17}), "builder.memory_mb"),
    (build(builder={"memory_mb": 255}), "builder.memory_mb"),
    (build(builder={"memory_mb": 262145}), "builder.memory_mb"),
    (build(builder={"memory_mb": 70000}), "builder.memory_mb"),
    (build(builder={"timeout_seconds": 9}), "builder.timeout_seconds"),
    (build(builder={"timeout_seconds": 7201}), "builder.timeout_seconds"),
    (build(builder={"regions": ["UP"]}), "builder.regions.0"),
    (build(builder={"regions": ["aa"] * 9}), "builder.regions"),
    (build(builder={"x": 1}), "builder.x"),
    (build(labels={f"l{n}": "" for n in range(33)}), "labels"),
    (build(labels={"": ""}), "labels."),
    (build(labels={"l" * 64: ""}), "labels." + "l" * 64),
    (build(labels={"l": "v" * 256}), "labels.l"),
    (build(labels={"l": "\x00"}), "labels.l"),
    (build(strict="perhaps"), "strict"),
    (service(name=None), "service.name"),
    (service(name=""), "service.name"),
    (service(name="Echo"), "service.name"),
    (service(name="1a"), "service.name"),
    (service(name="a--b"), "service.name"),
    (service(name="a-"), "service.name"),
    (service(name="a" * 41), "service.name"),
    (service(port=0), "service.port"),
    (service(port=65536), "service.port"),
    (service(port="many"), "service.port"),
    (service(health_path="healthz"), "service.health_path"),
    (service(health_path="/a b"), "service.health_path"),
    (service(health_path="/a#b"), "service.health_path"),
    (service(health_path="/" + "a" * 512), "service.health_path"),
    (service(env={"1A": ""}), "service.env.1A"),
    (service(env={"A" * 129: ""}), "service.env." + "A" * 100),
    (service(env={"A": None}), "service.env.A"),
    (service(env={"A": "\x00"}), "service.env.A"),
    (service(env={"PORT": "1"}), "service"),
    (service(env={"SLIPWAY_X": "1"}), "service"),
    (service(env={"FLY_APP": "1"}), "service"),
    (service(env={f"E{n}": "" for n in range(129)}), "service"),
    (service(env={"A": "x" * 65536}), "service"),
    (service(secrets={"A": 1}), "service.secrets.A"),
    (service(secrets={"a b": ""}), "service.secrets.a b"),
    (service(secrets={"PORT": "1"}), "service"),
    (service(secrets={"A": "\x00"}), "service.secrets.A"),
    (service(secrets={"A": "x" * 65536}), "service"),
    (service(env={"A": ""}, secrets={"A": ""}), "service"),
    (service(scale={"min": 2}), "service.scale.min"),
    (service(scale={"idle_seconds": 0}), "service.scale.idle_seconds"),
    (service(scale={"idle_seconds": 86401}), "service.scale.idle_seconds"),
    (service(scale={"idle_seconds": 3601}), "service.scale.idle_seconds"),
    (service(scale={"x": 1}), "service.scale.x"),
    (service(cpus=0), "service.cpus"),
    (service(cpus=65), "service.cpus"),
    (service(memory_mb=15), "service.memory_mb"),
    (service(memory_mb=262145), "service.memory_mb"),
    (service(memory_mb=70000), "service.memory_mb"),
    (service(regions=["x"]), "service.regions.0"),
    (service(image="x"), "service.image"),
    (service() | {"build": {"goarch": "arm64"}}, "build.goarch"),
]


def sent(body: object) -> bytes:
    """Return JSON as a careless caller writes it: half a surrogate pair and all."""
    return json.dumps(body).encode()


async def test_every_bound_is_a_422_that_names_its_field(here: World) -> None:
    for body, field in WRONG:
        answer = await here.http.post("/v1/builds", content=sent(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, (field, str(body)[:200], answer.text)
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["errors"][0]["field"] == field, (str(body)[:200], problem)
        assert problem["errors"][0]["field"] in problem["detail"]
    assert await here.rows(Build) == []
    assert await here.rows(Service) == []


async def test_what_is_just_within_bounds_is_taken(here: World) -> None:
    good = [
        build(labels={f"l{n}": "v" * 255 for n in range(32)}),
        build(builder={"cpus": 16, "memory_mb": 65536, "timeout_seconds": 7200.0, "regions": ["here"] * 8}),
        build(build={"package": "./cmd/x", "goarch": "arm64"}),
        build(source=GIT | {"ref": "release/1.0", "subdir": "a/b"}),
        service(name="a" * 40, env={f"E{n}": "" for n in range(128)}, health_path="/" + "a" * 511),
        service(name="b", secrets={"K": "x" * 65535}, scale={"min": 1, "idle_seconds": 86400}),
        service(name="c1-d2", port=65535, env={"A": "ünï ☃"}, cpus=0.01, memory_mb=16),
    ]
    for body in good:
        answer = await here.http.post("/v1/builds", json=body)
        assert answer.status_code == 202, (str(body)[:200], answer.text)


async def test_secrets_are_never_said_back(here: World) -> None:
    bad: list[dict[str, Any]] = [
        service(secrets={"K": "hunter2-value"}, port="x"),
        service(secrets={"K": "hunter2-value", "PORT": "hunter2-value"}),
        service(secrets={"K": "hunter2-value"}, env={"K": ""}),
        service(secrets={"K": ["hunter2-value"]}),
        service(secrets="hunter2-value"),
        service(secrets={"K": "hunter2-value\x00"}),
        service(secrets={"K": "hunter2-value\ud800"}),
        build(secrets={"K": "hunter2-value"}),
    ]
    for body in bad:
        answer = await here.http.post("/v1/builds", content=sent(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        assert "hunter2" not in answer.text
    await here.deployed("echo", secrets={"K": "hunter2-value"})
    for body in ({"secrets": {"K": "hunter2-value"}, "port": 0}, {"secrets": ["hunter2-value"]}):
        answer = await here.http.patch("/v1/services/echo", json=body)
        assert answer.status_code == 422
        assert "hunter2" not in answer.text
    answer = await here.http.patch("/v1/services/echo", json={"secrets": {"K": "hunter2-new"}})
    assert answer.json()["secrets"] == ["K"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "malformed_json"),
        (b'{"source": }', 400, "malformed_json"),
        (b"\xff\xfe", 400, "malformed_json"),
        (b"[" * 100_000, 400, "malformed_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "malformed_json"),
        (b"", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'"text"', 422, "invalid_request"),
        (b"null", 422, "invalid_request"),
    ],
)
async def test_what_is_no_request(here: World, body: bytes, status: int, reason: str) -> None:
    answer = await here.http.post("/v1/builds", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["reason"] == reason


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain", None])
async def test_json_that_is_not_said_to_be_json(here: World, media: str | None) -> None:
    """What curl sends by ``-d`` alone."""
    headers = {"Content-Type": media} if media else {}
    answer = await here.http.post("/v1/builds", content=json.dumps(build()).encode(), headers=headers)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "body"
    assert "sent with Content-Type: application/json" in error["message"]


async def test_inline_sources_have_a_limit(here: World) -> None:
    settings = here.context.settings
    many = {f"f{n}.go": "" for n in range(settings.max_inline_files + 1)}
    large = {"a.go": "x" * (settings.max_inline_bytes + 1)}
    for files in (many, large):
        answer = await here.http.post("/v1/builds", json=build(source={"kind": "files", "files": files}))
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")
    most = {f"f{n}.go": "" for n in range(settings.max_inline_files)}
    assert (await here.http.post("/v1/builds", json=build(source={"kind": "files", "files": most}))).status_code == 202


async def test_no_body_is_read_without_end(here: World) -> None:
    pieces = 0

    async def endless() -> Any:
        nonlocal pieces
        while True:
            pieces += 1
            yield b" " * 1024 * 1024

    for path in ("/v1/builds", "/v1/services/echo/rollback", "/v1/runs/run_1/claim"):
        answer = await here.http.post(path, content=endless(), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large"), path
        assert pieces < 20, path
        pieces = 0


async def test_strict_false_turns_what_can_t_be_had_into_warnings(here: World) -> None:
    body = service(memory_mb=70000, scale={"idle_seconds": 7200}) | {"builder": {"cpus": 20}, "strict": False}
    answer = await here.http.post("/v1/builds", json=body)
    assert answer.status_code == 202, answer.text
    warned = {w.partition(":")[0] for w in answer.json()["warnings"]}
    assert warned == {"builder.memory_mb", "service.memory_mb", "service.scale.idle_seconds"}
    answer = await here.http.post("/v1/builds", json=body | {"strict": True})
    assert (answer.status_code, answer.json()["reason"]) == (422, "cannot_honour")
    await here.jobs()
    assert len(here.yard.machines) == 1, "a lenient request was refused in the end"


async def test_a_patch_may_be_lenient_too(here: World) -> None:
    await here.deployed("echo")
    answer = await here.http.patch("/v1/services/echo", json={"scale": {"idle_seconds": 7200}, "strict": False})
    assert answer.status_code == 202
    assert [w.partition(":")[0] for w in answer.json()["warnings"]] == ["scale.idle_seconds"]


async def test_a_build_can_t_move_a_service(here: World) -> None:
    await here.submit("echo")
    await here.sql("update service set platform = 'elsewhere'")
    before = (await here.service("echo")).sequence
    answer = await here.http.post("/v1/builds", json=service())
    assert (answer.status_code, answer.json()["reason"]) == (422, "platform_differs")
    assert (await here.service("echo")).sequence == before


async def test_a_project_without_a_key_is_nobody(here: World) -> None:
    _, other = await here.project("acme")
    async with other:
        assert (await other.get("/v1/builds")).json()["items"] == []
        (key,) = (await here.http.get("/v1/keys?project=acme")).json()["items"]
        await here.http.delete(f"/v1/keys/{key['id']}?project=acme")
        assert (await other.get("/v1/builds")).status_code == 401
    async with client(here.app, None) as nobody:
        assert (await nobody.get("/v1/builds")).status_code == 401
    assert len(await here.rows(Project)) == 2
