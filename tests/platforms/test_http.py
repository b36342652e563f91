"""The client under the remote platforms: what it repeats, what it never repeats, and what it makes of answers."""

from typing import Any

import httpx
import pytest

from app.platforms.base import Misconfigured, RateLimited, Rejected, Transient
from app.platforms.budget import Bucket, PerObject
from app.platforms.failures import Missing, NotSent, retry_after
from app.platforms.http import ATTEMPTS, MAX_WAIT, JsonApi, Wire

Answer = httpx.Response | httpx.TransportError


class Far:
    """The far side: answers from a list, the last one for ever, and keeps what it was sent."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.naps: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, httpx.TransportError):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)

    def api(self, **options: Any) -> JsonApi:
        values = {"headers": {"Authorization": "Bearer secret"}, "sleep": self.sleep, **options}
        return JsonApi("far", "https://api.example", transport=httpx.MockTransport(self), **values)


def json(status: int = 200, content: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=content if content is not None else {}, headers=headers)


async def ask(far: Far, method: str = "GET", **options: Any) -> Any:
    api = far.api()
    try:
        return await api.call("look", method, "/v1/things", **options)
    finally:
        await api.aclose()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("trouble", [json(503), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")])
async def test_what_does_no_harm_is_repeated(method: str, trouble: Answer) -> None:
    far = Far(trouble, trouble, json(content={"ok": 1}))
    assert (await ask(far, method)).content == {"ok": 1}
    assert len(far.requests) == 3
    assert 0 < far.naps[0] < far.naps[1] * 2


@pytest.mark.parametrize("trouble", [json(503), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut")])
async def test_a_post_is_never_repeated_blindly(trouble: Answer) -> None:
    far = Far(trouble, json())
    with pytest.raises(Transient):
        await ask(far, "POST", json={})
    assert len(far.requests) == 1


@pytest.mark.parametrize("trouble", [json(429), httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
async def test_a_post_that_surely_took_no_effect_is_repeated(trouble: Answer) -> None:
    far = Far(trouble, json())
    await ask(far, "POST", json={})
    assert len(far.requests) == 2


async def test_a_post_that_may_be_repeated_is() -> None:
    far = Far(json(503), json())
    await ask(far, "POST", json={}, repeat=True)
    assert len(far.requests) == 2


async def test_it_gives_up() -> None:
    far = Far(httpx.ConnectError("refused"))
    with pytest.raises(NotSent):
        await ask(far)
    assert len(far.requests) == ATTEMPTS


async def test_retry_after_wins_over_our_own_wait() -> None:
    far = Far(json(429, **{"retry-after": "7"}), json(503, **{"retry-after": "0"}), json())
    await ask(far)
    assert far.naps == [7.0, 0.0]


async def test_a_long_retry_after_is_the_caller_s() -> None:
    far = Far(json(429, **{"retry-after": str(MAX_WAIT + 1)}), json())
    with pytest.raises(RateLimited) as caught:
        await ask(far)
    assert caught.value.retry_after == MAX_WAIT + 1
    assert far.naps == []


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "3"}, 0) == 3
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50) == 10
    assert retry_after({"retry-after": "soon"}, 0) is None
    assert retry_after({}, 0) is None


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Rejected), (401, Misconfigured), (403, Misconfigured), (404, Missing), (500, Transient)]
)
async def test_errors_name_the_request_and_no_secret(status: int, kind: type[Exception]) -> None:
    far = Far(json(status, {"error": "no"}, **{"x-request-id": "rid-1"}))
    with pytest.raises(kind) as caught:
        await ask(far, "POST")
    assert "rid-1" in str(caught.value)
    assert "look" in str(caught.value)
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize("content", [b"<html>", b"\xff"])
async def test_a_success_that_is_no_json_is_none(content: bytes) -> None:
    with pytest.raises(Transient, match="no JSON"):
        await ask(Far(httpx.Response(200, content=content)), "POST")


class Thing(Wire):
    id: str
    state: str = ""


async def test_models_ignore_what_they_don_t_know_and_say_what_is_missing() -> None:
    answer = await ask(Far(json(content={"id": "1", "state": "never heard of", "more": {}})))
    assert answer.read(Thing) == Thing(id="1", state="never heard of")
    with pytest.raises(Transient, match="id"):
        (await ask(Far(json(content={"state": "x"})))).read(Thing)


async def test_a_refusal_inside_a_success_is_classified() -> None:
    far = Far(json(content={"errors": ["no"]}))
    api = far.api(refused=lambda content: "errors" in content)
    with pytest.raises(Rejected):
        await api.call("look", "POST", "/graphql")
    await api.aclose()


async def test_queries_are_spelled_and_requests_counted() -> None:
    far = Far(json(503), json())
    api = far.api()
    await api.call("look", "GET", "/v1/things", params={"a": True, "b": ["x", "y"], "c": 1})
    await api.aclose()
    assert far.requests[0].url.query == b"a=true&b=x&b=y&c=1"
    assert far.requests[0].headers["user-agent"].startswith("slipway/")
    assert api.requests == {"look": 2}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def bucket(clock: Clock, **changes: Any) -> Bucket:
    values: dict[str, Any] = {"limit": 10, "window": 10, "sleep": clock.sleep, "clock": clock, **changes}
    return Bucket(platform="far", **values)


async def test_the_last_requests_are_kept_for_stopping() -> None:
    clock = Clock()
    one = bucket(clock, max_wait=0)
    for _ in range(6):
        await one.acquire("poll")
    with pytest.raises(RateLimited):
        await one.acquire("poll")
    for _ in range(2):
        await one.acquire("call")
    with pytest.raises(RateLimited):
        await one.acquire("call")
    for _ in range(2):
        await one.acquire("stop")
    with pytest.raises(RateLimited) as caught:
        await one.acquire("stop")
    assert caught.value.retry_after == pytest.approx(1)


async def test_a_short_wait_is_waited_for() -> None:
    clock = Clock()
    one = bucket(clock)
    for _ in range(15):
        await one.acquire("stop")
    assert clock.now == pytest.approx(1005)


async def test_what_the_platform_says_is_left_counts() -> None:
    one = bucket(Clock(), max_wait=0)
    await one.feed({"x-ratelimit-remaining": "0"})
    with pytest.raises(RateLimited):
        await one.acquire("stop")
    one = bucket(Clock())
    await one.feed({"x-ratelimit-remaining": "99"})
    assert one.left == 10


@pytest.mark.parametrize(
    ("throttled", "headers", "wait"), [(8.0, {}, 8), (0.0, {"x-ratelimit-reset": "6"}, 6), (0.0, {}, 5)]
)
async def test_a_throttled_answer_closes_it_for_all(throttled: float, headers: dict[str, str], wait: float) -> None:
    clock = Clock()
    one = bucket(clock)
    await one.feed(headers, throttled=throttled)
    await one.acquire("stop")
    assert clock.now == pytest.approx(1000 + wait)


async def test_objects_are_counted_apart() -> None:
    clock = Clock()
    many = PerObject(make=lambda operation: bucket(clock, limit=1, window=1, burst=3), most=4)
    for key in "abcdefgh":
        for _ in range(3):
            await many.acquire("call", operation="start", key=key)
    assert clock.now == 1000
    await many.acquire("call", operation="start", key="h")
    assert clock.now == pytest.approx(1001)


async def test_the_budget_is_asked_before_each_try() -> None:
    clock = Clock()
    far = Far(json(503), json())
    one = bucket(clock)
    api = far.api(budget=one)
    await api.call("look", "GET", "/v1/things")
    await api.aclose()
    assert one.left == 8
