"""Who may do what: tokens, challenges, the token endpoint, mounts, names that try to get out."""

import asyncio
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from app.images import layout
from app.images.tokens import Action, Scope
from tests.images.support import MANIFEST, USER, Place, image, noise, plain_http, push, registry, sha

DATA = noise(1000)

VERBS: list[tuple[str, str, Action]] = [
    ("GET", "/a/b/manifests/v1", "pull"),
    ("HEAD", "/a/b/manifests/v1", "pull"),
    ("PUT", "/a/b/manifests/v1", "push"),
    ("DELETE", "/a/b/manifests/v1", "delete"),
    ("GET", f"/a/b/blobs/{sha(DATA)}", "pull"),
    ("HEAD", f"/a/b/blobs/{sha(DATA)}", "pull"),
    ("DELETE", f"/a/b/blobs/{sha(DATA)}", "delete"),
    ("POST", "/a/b/blobs/uploads/", "push"),
    ("GET", "/a/b/blobs/uploads/" + "0" * 32, "push"),
    ("PATCH", "/a/b/blobs/uploads/" + "0" * 32, "push"),
    ("PUT", "/a/b/blobs/uploads/" + "0" * 32 + f"?digest={sha(DATA)}", "push"),
    ("DELETE", "/a/b/blobs/uploads/" + "0" * 32, "push"),
    ("GET", "/a/b/tags/list", "pull"),
    ("GET", f"/a/b/referrers/{sha(DATA)}", "pull"),
]


@pytest.mark.parametrize(("method", "path", "action"), VERBS)
async def test_each_verb_needs_its_action(place: Place, method: str, path: str, action: Action) -> None:
    needed: list[Action] = ["pull", "push"] if action == "push" else [action]
    others: list[Action] = [a for a in ("pull", "push", "delete") if a != action]
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic " + "YTpi"},
        place.bearer("a/b", *others),
        place.bearer("a/c"),
        place.bearer("a"),
    ]
    async with plain_http(base_url=f"{place.url}/v2") as http:
        for headers in wrong:
            response = await http.request(method, path, headers=headers)
            assert response.status_code == 401, headers
            challenge = response.headers["www-authenticate"]
            assert f'scope="repository:a/b:{",".join(needed)}"' in challenge
            assert challenge.startswith(f'Bearer realm="{place.url}/v2/token",service="slipway"')
        good = await http.request(method, path, headers=place.bearer("a/b", *needed))
        assert good.status_code not in (401, 403, 500)


async def test_the_ping_needs_any_good_token(place: Place) -> None:
    async with plain_http(base_url=f"{place.url}/v2") as http:
        response = await http.get("/")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == f'Bearer realm="{place.url}/v2/token",service="slipway"'
        expired = place.authority.mint("x", [Scope("a", frozenset({"pull"}))], timedelta(seconds=-1)).value
        late = await http.get("/", headers={"Authorization": f"Bearer {expired}"})
        assert 'error="invalid_token"' in late.headers["www-authenticate"]


async def test_the_public_address_is_told_to_others_and_loopback_to_us(tmp_path: Path) -> None:
    async with (
        registry(tmp_path, public_url="https://slipway.example.com") as place,
        plain_http(base_url=f"{place.url}/v2") as http,
    ):
        near = await http.get("/")
        far = await http.get("/", headers={"Host": "slipway.example.com"})
    assert f'realm="{place.url}/v2/token"' in near.headers["www-authenticate"]
    assert 'realm="https://slipway.example.com/v2/token"' in far.headers["www-authenticate"]


async def token(place: Place, *scopes: str, auth: tuple[str, str] | None = USER) -> httpx.Response:
    async with plain_http(auth=auth) as http:
        return await http.get(f"{place.url}/v2/token", params={"service": "slipway", "scope": list(scopes)})


async def test_the_token_endpoint_gives_what_is_granted_and_no_more(place: Place) -> None:
    place.grants = (Scope("a/b", frozenset({"pull", "push"})), Scope("a/c", frozenset({"pull"})))
    response = await token(place, "repository:a/b:pull,push,delete repository:a/c:push", "repository:a/d:pull")
    body = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert body["token"] == body["access_token"]
    assert 0 < body["expires_in"] <= 300
    granted = place.authority.verify(body["token"])
    assert granted
    assert granted.scopes == (Scope("a/b", frozenset({"pull", "push"})),)
    assert granted.subject == USER[0]


async def test_one_repository_named_twice_gets_both(place: Place) -> None:
    body = (await token(place, "repository:a/b:pull", "repository:a/b:push")).json()
    granted = place.authority.verify(body["token"])
    assert granted
    assert granted.allowed("a/b") == {"pull", "push"}


@pytest.mark.parametrize("auth", [None, ("ann", "wrong"), ("bob", USER[1]), ("", "")])
async def test_the_token_endpoint_refuses_strangers(place: Place, auth: tuple[str, str] | None) -> None:
    response = await token(place, "repository:a/b:pull", auth=auth)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic YQ==", "Basic /w==", "Bearer x"])
async def test_a_credential_that_cannot_be_read_is_refused(place: Place, header: str) -> None:
    async with plain_http() as http:
        response = await http.get(f"{place.url}/v2/token", headers={"Authorization": header})
    assert response.status_code == 401


async def test_a_blob_is_read_only_through_a_repository_that_has_it(place: Place) -> None:
    async with place.client() as client:
        await push(client, "a/b", image(), "v1")
        assert await client.blob_size("a/c", sha(image().config)) is None


async def mount(place: Place, source: str | None, *scopes: Scope) -> httpx.Response:
    value = place.authority.mint("x", scopes, timedelta(minutes=1)).value
    params = {"mount": sha(DATA), **({"from": source} if source else {})}
    async with plain_http(headers={"Authorization": f"Bearer {value}"}) as http:
        return await http.post(f"{place.url}/v2/a/c/blobs/uploads/", params=params)


PUSH = Scope("a/c", frozenset({"pull", "push"}))
READ = Scope("a/b", frozenset({"pull"}))


async def test_a_mount_shares_the_file(place: Place) -> None:
    async with place.http("a/b") as http:
        await http.post("/a/b/blobs/uploads/", params={"digest": sha(DATA)}, content=DATA)
    response = await mount(place, "a/b", PUSH, READ)
    assert (response.status_code, response.headers["docker-content-digest"]) == (201, sha(DATA))
    one, two = (layout.blob_path(place.root, name, sha(DATA)) for name in ("a/b", "a/c"))
    assert one.samefile(two)
    # Without a source, what the token may read is looked at.
    two.unlink()
    assert (await mount(place, None, PUSH, READ)).status_code == 201


async def test_a_mount_without_pull_on_the_source_becomes_an_upload(place: Place) -> None:
    async with place.http("a/b") as http:
        await http.post("/a/b/blobs/uploads/", params={"digest": sha(DATA)}, content=DATA)
    for source, scopes in (
        ("a/b", [PUSH]),
        (None, [PUSH]),
        ("a/b", [PUSH, Scope("a/b", frozenset({"push", "delete"}))]),
        ("../a/b", [PUSH, READ]),
        ("a/none", [PUSH, Scope("a/none", frozenset({"pull"}))]),
    ):
        response = await mount(place, source, *scopes)
        assert response.status_code == 202
        assert "/blobs/uploads/" in response.headers["location"]
    assert not layout.blob_path(place.root, "a/c", sha(DATA)).exists()


async def test_a_mount_is_challenged_for_both_repositories(place: Place) -> None:
    async with plain_http() as http:
        params = {"mount": sha(DATA), "from": "a/b"}
        response = await http.post(f"{place.url}/v2/a/c/blobs/uploads/", params=params)
    assert 'scope="repository:a/c:pull,push repository:a/b:pull"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../..",
        "a/../../x",
        "%2e%2e/x",
        "a%2f..%2f..%2fx",
        "a/blobs/sha256",
        "A",
        "_uploads",
        "_locks",
        "a/./b",
        "a//b",
    ],
)
async def test_names_never_leave_the_root(place: Place, name: str) -> None:
    before = sorted(place.root.parent.rglob("*"))
    bearer = place.bearer("a/b")["Authorization"]
    for method, rest in (("PUT", "manifests/v1"), ("POST", "blobs/uploads/")):
        # By hand: clients tidy such paths up before they send them.
        url = httpx.URL(place.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = f"{method} /v2/{name}/{rest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
        writer.write(f"{head}Authorization: {bearer}\r\nContent-Type: {MANIFEST}\r\n\r\n{{}}".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert int(answer.split()[1]) in (400, 404, 405), answer
    assert sorted(place.root.parent.rglob("*")) == before


async def test_a_link_planted_in_the_root_is_not_followed(place: Place) -> None:
    secret = place.root.parent / "secret"
    secret.write_bytes(DATA)
    folder = place.root / "a/b/blobs/sha256"
    folder.mkdir(parents=True)
    (folder / sha(DATA)[7:]).symlink_to(secret)
    async with place.http("a/b") as http:
        response = await http.get(f"/a/b/blobs/{sha(DATA)}")
    assert response.status_code == 404
