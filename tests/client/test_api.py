"""Calls that are tried again, streams that go on, and when both give up; the clock is the test's."""

import io
import json
import socket
from pathlib import Path

import httpx
import pytest

from app.client import config
from app.client.api import Api
from app.client.config import Target
from app.client.failed import Code, Failed
from app.client.problems import hopeless
from tests.client.support import Said, Scripted, problem, scripted

BUSY = Said(503, b"{}", {"Retry-After": "7"})


class Clock:
    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


def api(at: Scripted | str, clock: Clock, patience: float = 60) -> Api:
    url = at if isinstance(at, str) else at.url
    return Api(Target(url, "slp_x"), patience, sleep=clock.sleep, clock=lambda: clock.now)


def test_what_may_go_well_later_is_tried_again_under_the_same_key() -> None:
    clock = Clock()
    answers = (BUSY, Said(429, b"", {"Retry-After": "2"}), Said(200, b'{"a', cut=True), Said(200, b'{"digest": "d"}'))
    with scripted(problem(409, "idempotency_in_flight"), *answers) as it:
        assert api(it, clock).call("POST", "/v1/sources", file=io.BytesIO(b"an archive")) == {"digest": "d"}
    assert [body for *_, body in it.asked] == [b"an archive"] * 5
    keys = set(it.header("Idempotency-Key"))
    assert len(keys) == 1
    assert None not in keys
    assert set(it.header("Authorization")) == {"Bearer slp_x"}
    assert clock.pauses[1:3] == [7, 2]
    assert 0 < clock.pauses[0] <= 0.25 < 1 <= clock.pauses[3] <= 2


@pytest.mark.parametrize(("status", "code"), [(404, Code.REFUSED), (409, Code.REFUSED), (500, Code.ELSEWHERE)])
def test_a_refusal_is_final(status: int, code: Code) -> None:
    clock = Clock()
    errors = [{"field": "service.port", "message": "too large"}]
    with scripted(problem(status, "no", errors=errors)) as it, pytest.raises(Failed) as failed:
        api(it, clock).call("POST", "/v1/builds", json={})
    assert (failed.value.code, clock.pauses) == (code, [])
    assert failed.value.text == "So it is.\n  service.port: too large (no)"


def test_it_gives_up_in_time() -> None:
    clock = Clock()
    with scripted(*[BUSY] * 4) as it, pytest.raises(Failed) as failed:
        api(it, clock, 20).call("GET", "/v1/builds")
    assert (clock.pauses, failed.value.code) == ([7, 7], Code.ELSEWHERE)
    with scripted(BUSY) as it, pytest.raises(Failed):
        api(it, clock).call("POST", "/v1/services/x/wake", patient=False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Failed) as failed:
            api(f"http://127.0.0.1:{nobody.getsockname()[1]}", clock).call("GET", "/v1/builds")
    assert failed.value.code == Code.UNREACHABLE
    assert 40 < clock.now < 80


def test_what_can_not_become_better_is_not_tried_again() -> None:
    clock = Clock()
    with scripted() as it, pytest.raises(Failed) as failed:  # it speaks no TLS
        api(it.url.replace("http://", "https://"), clock).call("GET", "/v1/builds")
    assert (failed.value.code, clock.pauses) == (Code.UNREACHABLE, [])
    for number, final in ((socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)):
        error = httpx.ConnectError("no address")
        error.__cause__ = socket.gaierror(number, "as the system says")
        assert hopeless(error) is final


def test_a_deletion_whose_answer_was_lost_is_one() -> None:
    clock = Clock()
    with scripted(Said(202, b'{"', cut=True), problem(404, "service_not_found")) as it:
        assert api(it, clock).call("DELETE", "/v1/services/x") == {}
    with scripted(problem(404, "service_not_found")) as it, pytest.raises(Failed):
        api(it, clock).call("DELETE", "/v1/services/x")


@pytest.mark.parametrize("body", [b"<html>", b"[]"])
def test_something_else_than_slipway_is_noticed(body: bytes) -> None:
    with scripted(Said(200, body)) as it, pytest.raises(Failed, match="no Slipway"):
        api(it, Clock()).call("GET", "/v1/builds")
    with scripted(Said(404, body)) as it, pytest.raises(Failed, match="not as Slipway does"):
        api(it, Clock()).call("GET", "/v1/builds")


def block(number: int, text: str) -> bytes:
    return f"data: {json.dumps({'text': text}, ensure_ascii=False)}\nid: {number}\n\n".encode()


def test_a_stream_that_breaks_off_goes_on_right_behind_what_was_seen() -> None:
    clock = Clock()
    odd = "a\u2028b\x85c\x0bd"  # ends of lines for Unicode, not for server-sent events
    first = b": slipway\nid: 0\nretry: 1000\n\n" + block(1, odd) + block(2, "two")
    answers = [
        Said(200, first + block(3, "three")[:-1], cut=True),  # its third block is not whole
        BUSY,
        Said(200, b""),  # a deploy: it ends without a word
        Said(200, block(3, "three") + b": keep-alive\nid: 4\n\n"),
        Said(200, b'event: end\ndata: {"status":"succeeded"}\nid: 5\n\n'),
    ]
    with scripted(*answers) as it:
        found = list(api(it, clock).follow("/v1/builds/b/logs", {"since": None}))
    assert [b.data.get("text") for b in found] == [odd, "two", "three", None]
    assert found[-1].event == "end"
    assert it.header("Last-Event-ID") == [None, "2", "2", "2", "4"]
    assert clock.pauses[1] == 7


def test_a_stream_ends_for_good_with_its_key_and_with_patience() -> None:
    clock = Clock()
    with scripted(Said(200, block(1, "x")), problem(401, "unauthorized")) as it, pytest.raises(Failed) as failed:
        list(api(it, clock).follow("/v1/events"))
    assert failed.value.code == Code.REFUSED
    assert "slipway login" in str(failed.value.advice)
    with scripted(*[Said(200, b"")] * 30) as it, pytest.raises(Failed) as failed:
        list(api(it, clock, 10).follow("/v1/events"))
    assert failed.value.code == Code.UNREACHABLE


def test_a_kept_key_goes_to_its_own_api_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIPWAY_URL", "SLIPWAY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.resolve(None, None) == Target(config.DEFAULT_URL, None)
    config.keep(Target("https://a.example", "slp_a"))
    assert config.file().stat().st_mode & 0o777 == 0o600
    assert config.resolve(None, None) == Target("https://a.example", "slp_a")
    assert config.resolve("https://a.example/", None).key == "slp_a"
    assert config.resolve("https://b.example", None) == Target("https://b.example", None)
    monkeypatch.setenv("SLIPWAY_URL", "https://c.example")
    assert config.resolve(None, None) == Target("https://c.example", None)
    monkeypatch.setenv("SLIPWAY_API_KEY", "slp_c")
    assert config.resolve(None, "slp_d") == Target("https://c.example", "slp_d")
    assert config.resolve(None, None).key == "slp_c"
    assert "slp_" not in repr(config.resolve(None, None))
    assert config.resolve(None, "slp_e\n").key == "slp_e"
    for odd in ("slp_ключ", "slp_a\nb"):
        with pytest.raises(Failed, match="holds characters that no key has"):  # and it is not shown
            config.resolve(None, odd)
    for url in ("ftp://x", "example.com", "http://", "http://x:port", "http://a b"):
        with pytest.raises(Failed, match="is no address"):
            config.resolve(url, None)
    config.file().write_text("{")
    with pytest.raises(Failed, match="can't be read"):
        config.resolve(None, None)
