import base64
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.images.tokens import ACTIONS, Grants, Scope, TokenAuthority, parse_scope

MINUTE = timedelta(minutes=1)
PULL = Scope("a/b", frozenset({"pull"}))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_grants_what_it_was_minted_for_until_its_end() -> None:
    clock = Clock()
    authority = TokenAuthority([b"k" * 32], clock=clock)
    token = authority.mint("run-1", [PULL], MINUTE)
    assert token.expires_at == 1060
    assert authority.verify(token.value) == Grants("run-1", (PULL,), 1060)
    clock.now = 1060
    assert authority.verify(token.value) is None
    assert token.value not in repr(token)


def test_a_token_never_outlives_what_it_is_made_from() -> None:
    authority = TokenAuthority([b"k" * 32], clock=Clock())
    assert authority.mint("x", [PULL], MINUTE, until=1010).expires_at == 1010


def test_keys_rotate() -> None:
    old, new = b"o" * 32, b"n" * 32
    token = TokenAuthority([old]).mint("x", [PULL], MINUTE).value
    assert TokenAuthority([new, old]).verify(token)
    assert TokenAuthority([new]).verify(token) is None
    with pytest.raises(ValueError, match="32 bytes"):
        TokenAuthority([b"short"])
    with pytest.raises(ValueError, match="32 bytes"):
        TokenAuthority([])


def test_a_changed_token_is_refused() -> None:
    authority = TokenAuthority([b"k" * 32])
    token = authority.mint("x", [PULL], MINUTE).value
    prefix, claims, mac = token.split(".")
    richer = base64.urlsafe_b64encode(base64.urlsafe_b64decode(claims + "==").replace(b'"pull"', b'"push"')).decode()
    wrong = [
        f"{prefix}.{richer.rstrip('=')}.{mac}",
        f"slr2.{claims}.{mac}",
        claims,
        "",
        ".",
        "..",
        f"{prefix}.{claims}.",
        "é.é.é",
    ]
    assert not any(map(authority.verify, wrong))


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    authority = TokenAuthority([b"k" * 32])
    assert authority.verify(text.encode("utf-8", "ignore").decode()) is None
    assert authority.verify("slr1." + text.encode("utf-8", "ignore").decode()) is None


def test_wildcards_are_for_grants_only() -> None:
    everything = Grants("x", (Scope("*", frozenset({"pull", "push"})),))
    wanted = Scope("a/b", ACTIONS)
    assert everything.narrow([wanted]) == (Scope("a/b", frozenset({"pull", "push"})),)
    assert Grants("x", (PULL,)).narrow([Scope("other", ACTIONS)]) == ()
    with pytest.raises(ValueError, match="name"):
        TokenAuthority([b"k" * 32]).mint("x", everything.scopes, MINUTE)


def test_scopes_are_read() -> None:
    assert parse_scope("repository:a/b:pull,push") == Scope("a/b", frozenset({"pull", "push"}))
    assert parse_scope("repository:a/b:*") == Scope("a/b", ACTIONS)
    assert str(Scope("a/b", ACTIONS)) == "repository:a/b:pull,push,delete"
    for text in ("registry:catalog:*", "repository:../x:pull", "repository:*:pull", "", "repository:a"):
        assert parse_scope(text) is None
