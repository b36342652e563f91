"""Where the API is and which key opens it: options first, then variables, then what ``slipway login`` wrote."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from app.client.failed import usage

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where ``slipway serve`` listens by default."""


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
    wanted = (url or os.environ.get("SLIPWAY_URL") or (found.url if found else DEFAULT_URL)).rstrip("/")
    if not wanted.startswith(("http://", "https://")):
        raise usage(f"{wanted!r} is no address of an API", "Give it as https://slipway.example.com.")
    own = found.key if found is not None and found.url == wanted else None
    return Target(wanted, key or os.environ.get("SLIPWAY_API_KEY") or own)
