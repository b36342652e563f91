"""Bearer tokens of the embedded registry: small, signed, for a few repositories and minutes.

A token is ``slr1.<claims>.<mac>``, both parts base64url; to a client it is opaque. Nothing is stored, so a token can't
be taken back before its end: keep the lives short.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, cast, get_args

from app.images.reference import is_repository

Action = Literal["pull", "push", "delete"]
ACTIONS: frozenset[Action] = frozenset(get_args(Action))

_PREFIX = "slr1"
# Bound the work that a stranger's header can cause.
_MAX_TOKEN = 8192


@dataclass(frozen=True)
class Scope:
    """What may be done with one repository. ``*`` stands for every repository and is for grants, never in a token."""

    repository: str
    actions: frozenset[Action]

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(a for a in ('pull', 'push', 'delete') if a in self.actions)}"


@dataclass(frozen=True)
class Grants:
    """Who somebody is and what they may do; ``expires_at`` in Unix seconds bounds what is minted from it."""

    subject: str
    scopes: tuple[Scope, ...]
    expires_at: float | None = None

    def allowed(self, repository: str) -> frozenset[Action]:
        """Return the actions granted on this repository."""
        return frozenset(a for s in self.scopes if s.repository in (repository, "*") for a in s.actions)

    def narrow(self, wanted: Iterable[Scope]) -> tuple[Scope, ...]:
        """Return what of ``wanted`` is granted; what isn't is left out, as the Docker token flow has it."""
        cut = (Scope(w.repository, w.actions & self.allowed(w.repository)) for w in wanted)
        return tuple(s for s in cut if s.actions)


@dataclass(frozen=True)
class Token:
    """A minted token; ``expires_at`` in Unix seconds."""

    value: str
    expires_at: float

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"


def parse_scope(text: str) -> Scope | None:
    """Read ``repository:<name>:<action>[,<action>…]``; None for any other kind of scope. ``*`` means all actions."""
    kind, _, rest = text.partition(":")
    name, _, words = rest.rpartition(":")
    if kind != "repository" or not is_repository(name):
        return None
    asked = set(words.split(","))
    return Scope(name, ACTIONS if "*" in asked else frozenset(a for a in ACTIONS if a in asked))


class TokenAuthority:
    """Mints and verifies tokens. The first of ``keys`` (32 bytes or more each) signs, all of them verify."""

    def __init__(self, keys: Sequence[bytes], *, clock: Callable[[], float] = time.time) -> None:
        if not keys or any(len(k) < 32 for k in keys):
            raise ValueError("a token authority needs keys of at least 32 bytes")
        # Derived, so that the same key signing something else can never make a registry token.
        self._keys = [hmac.digest(k, b"slipway registry token", hashlib.sha256) for k in keys]
        self.clock = clock

    def mint(self, subject: str, scopes: Iterable[Scope], ttl: timedelta, *, until: float | None = None) -> Token:
        """Return a token for exactly ``scopes``, good for ``ttl`` and never past ``until`` (Unix seconds)."""
        expires = self.clock() + ttl.total_seconds()
        expires = expires if until is None else min(expires, until)
        access = {s.repository: sorted(s.actions) for s in scopes}
        if not all(is_repository(name) for name in access):
            raise ValueError("a token's scopes name their repositories")
        claims = _encode(json.dumps({"s": subject, "e": expires, "a": access}, separators=(",", ":")).encode())
        return Token(f"{_PREFIX}.{claims}.{_encode(_mac(self._keys[0], claims))}", expires)

    def verify(self, token: str) -> Grants | None:
        """Return what the token grants; None when it is forged, malformed or past its end."""
        prefix, _, rest = token[:_MAX_TOKEN].partition(".")
        claims, _, mac = rest.partition(".")
        try:
            given = _decode(mac)
        except (ValueError, binascii.Error):
            return None
        # Every key is tried, so that the time does not tell which one matched.
        good = [hmac.compare_digest(_mac(k, claims), given) for k in self._keys]
        if prefix != _PREFIX or not any(good):
            return None
        body = json.loads(_decode(claims))
        if body["e"] <= self.clock():
            return None
        scopes = tuple(Scope(name, cast("frozenset[Action]", frozenset(a))) for name, a in body["a"].items())
        return Grants(body["s"], scopes, body["e"])


def _mac(key: bytes, claims: str) -> bytes:
    return hmac.digest(key, claims.encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
