"""The folder for the server's socket: short, since a socket's path has 107 bytes at most, private, and not for long."""

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from app.embedded.errors import EmbeddedError

MAX_PATH_BYTES = 107
"""sun_path of unix(7), less its final zero."""
SOCKET = ".s.PGSQL.5432"
NAME = re.compile(r"slp-pg-[0-9a-f]{8}")


def new_name() -> Path:
    """Return a path for a new folder, in the temporary folder, or in /tmp when that one's name is too long."""
    name = f"slp-pg-{secrets.token_hex(4)}"
    for place in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - a random name, made exclusively
        if len(os.fsencode(place / name / SOCKET)) <= MAX_PATH_BYTES and os.access(place, os.W_OK | os.X_OK):
            return place / name
    raise EmbeddedError("no temporary folder with a short enough name for sockets; set TMPDIR to one")


def remove(folder: Path) -> None:
    """Remove a folder of sockets and nothing else: whatever does not look like one of ours is left alone."""
    if NAME.fullmatch(folder.name) is None or folder.is_symlink():
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name in {SOCKET, f"{SOCKET}.lock"}:
                path.unlink(missing_ok=True)
        folder.rmdir()
