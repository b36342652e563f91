"""The client's side of registry authentication: challenges, and tokens kept per scope until shortly before their end.

After distribution's "Token Authentication Specification": ``WWW-Authenticate: Bearer realm=…,service=…,scope=…``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from app.images.answers import read_json
from app.images.errors import RegistryDenied, RegistryUnavailable
from app.images.tokens import Token

_SCHEME = re.compile(r"\s*([A-Za-z]+)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*([A-Za-z_]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))\s*,?')
#: Seconds a token lives when the answer does not say (the specification's default).
_DEFAULT_LIFE = 60
#: A token is not used any more so many seconds before its end.
_MARGIN = 10


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate that a 401 offers; ``kind`` in lower case."""

    kind: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read the WWW-Authenticate headers of an answer; what can't be read is left out."""
    found = []
    for header in headers:
        position = 0
        while match := _SCHEME.match(header, position):
            position, parameters = match.end(), {}
            while parameter := _PARAMETER.match(header, position):
                parameters[parameter[1].lower()] = parameter[2] if parameter[2] is not None else parameter[3]
                position = parameter.end()
            found.append(Challenge(match[1].lower(), parameters))
    return found


@dataclass
class Credential:
    """What we may show a registry: a fixed Bearer, or a name and password for Basic and for its token service."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> httpx.BasicAuth | None:
        """The name and password, when there are any."""
        return httpx.BasicAuth(self.username, self.password or "") if self.username else None


@dataclass(frozen=True)
class TokenRequest:
    """Where and for what a token is asked; made from a challenge and the scope we want."""

    url: httpx.URL
    scope: str

    @classmethod
    def of(cls, challenge: Challenge, registry: str, scope: str) -> "TokenRequest":
        """Build it; refuse a realm that would carry the credential over plain http where the registry has https."""
        realm = challenge.parameters.get("realm", "")
        parts, own = urlsplit(realm), urlsplit(registry)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise RegistryDenied(f"{registry} names no usable token service")
        # Over plain http a credential goes nowhere but to the host that the operator named.
        if parts.scheme == "http" and (own.scheme != "http" or parts.hostname != own.hostname):
            raise RegistryDenied(f"{registry} names a token service over plain http, which is refused")
        wanted = dict.fromkeys([*scope.split(), *challenge.parameters.get("scope", "").split()])
        url = httpx.URL(realm)
        if service := challenge.parameters.get("service"):
            url = url.copy_add_param("service", service)
        for word in wanted:
            url = url.copy_add_param("scope", word)
        return cls(url, scope)


def read_token(response: httpx.Response, body: bytes, now: float) -> Token:
    """Return the token of a token service's answer."""
    try:
        answer = read_json(body)
        value = answer.get("token") or answer["access_token"]
        life = float(answer.get("expires_in") or _DEFAULT_LIFE)
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryUnavailable(f"the token service {response.url.host} gave no token") from error
    if not isinstance(value, str):
        raise RegistryUnavailable(f"the token service {response.url.host} gave no token")
    return Token(value, now + life)


class TokenCache:
    """Tokens by scope."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}

    def get(self, scope: str, now: float) -> str | None:
        """Return a token for exactly this scope that is good for a while yet."""
        token = self._tokens.get(scope)
        return token.value if token and token.expires_at - _MARGIN > now else None

    def put(self, scope: str, token: Token, now: float) -> None:
        """Keep a token; the ones past their end go."""
        self._tokens = {s: t for s, t in self._tokens.items() if t.expires_at > now}
        self._tokens[scope] = token

    def drop(self, scope: str) -> None:
        """Forget a token that was refused."""
        self._tokens.pop(scope, None)
