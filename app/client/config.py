"""Where the API is and which key opens it: options first, then variables, then what ``slipway login`` wrote."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from app.client.failed import usage

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where ``slipway serve`` listens by default."""
PATIENCE = 60.0
"""For how many seconds something is tried again, unless the caller says otherwise."""


@dataclass(frozen=True)
class Target:
    """An API and the key for it."""

    url: str
    key: str | None = field(default=None, repr=False)


def file() -> Path:
    """Return where ``login`` keeps it: after the XDG Base Directory Specification, in ``$XDG_CONFIG_HOME``."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "slipway/client.json"


def kept() -> Target | None:
    """Read what ``login`` kept, None when there is nothing; Failed when it can't be read."""
    try:
        found = json.loads(file().read_text())
        return Target(str(found["url"]), str(found["key"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise usage(f"{file()} can't be read: {e}", "Run `slipway login` again, or remove the file.") from e


def keep(target: Target) -> None:
    """Write it for the commands to come, readable by nobody else at any moment."""
    path = file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:  # made with mode 0600
        json.dump(asdict(target), draft)
    Path(draft.name).rename(path)


def resolve(url: str | None, key: str | None) -> Target:
    """Return what to call. The key that was kept goes to the API it was given for and to no other."""
    found = kept()
    wanted = url or os.environ.get("SLIPWAY_URL") or (found.url if found else DEFAULT_URL)
    if not _is_address(wanted):
        raise usage(f"{wanted!r} is no address of an API", "Give it as https://slipway.example.com.")
    wanted = wanted.rstrip("/")
    own = found.key if found is not None and found.url == wanted else None
    sent = (key or os.environ.get("SLIPWAY_API_KEY") or own or "").strip()
    if not (sent.isascii() and sent.isprintable()):  # said here: the client's own error would show it
        raise usage("the API key holds characters that no key has", "Copy it again; it begins with slp_.")
    return Target(wanted, sent or None)


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises when it is no number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and text.isprintable() and " " not in text
