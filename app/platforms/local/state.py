"""The local platform's folder: one owner at a time, records that are whole or absent, secrets only sealed.

``<home>/local/`` holds ``lock``, ``processes/`` (0700), ``releases/`` (0700), ``logs/`` (0700) and, for
the dropped account to read through its sandbox, ``images/``, ``seed/`` and ``runs/``.
"""

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.platforms.base import Misconfigured

NAME = "local"


class Folder:
    """Where the platform keeps what must outlive its process. Everything here blocks, for a file's time."""

    def __init__(self, home: Path) -> None:
        self.root = home / "local"
        self.processes = self.root / "processes"
        self.releases = self.root / "releases"
        self.logs = self.root / "logs"
        self.images = self.root / "images"
        self.seed = self.root / "seed"
        self.runs = self.root / "runs"
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folders and become their owner; raises Misconfigured when another process is."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)
        for folder in (self.processes, self.releases, self.logs):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
        for folder in (self.images, self.seed, self.runs):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o711)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Misconfigured(
                NAME, "start", f"{self.root} belongs to another running process; stop it or set another SLIPWAY_HOME"
            ) from None
        self._lock = descriptor

    def close(self) -> None:
        """Give the folder up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a record whole, readable by us alone; a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a record; None when there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Read every record of a folder, by name; drafts that a kill left behind are removed."""
    for draft in folder.glob(".*"):
        draft.unlink(missing_ok=True)
    return [value for path in sorted(folder.glob("*.json")) if (value := read_json(path))]


class Seal:
    """Encrypts what may not lie on disk in clear. The keys are derived from the installation's secret keys (HKDF).

    The first one closes, all of them open, so that a new first key leaves sleeping services their specs.
    """

    def __init__(self, *keys: bytes) -> None:
        self._ciphers = [
            AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"slipway local releases").derive(key))
            for key in keys
        ]

    def close(self, text: str, *, name: str) -> str:
        """Seal ``text`` so that it opens only under the same name."""
        nonce = secrets.token_bytes(12)
        return base64.b64encode(nonce + self._ciphers[0].encrypt(nonce, text.encode(), name.encode())).decode()

    def renew(self, sealed: str, *, name: str) -> str | None:
        """Seal anew, with the first key, what another one has sealed; None where the first did, or where none opens it."""
        found = self._find(sealed, name)
        return None if found is None or found[0] is self._ciphers[0] else self.close(found[1], name=name)

    def _find(self, sealed: str, name: str) -> tuple[AESGCM, str] | None:
        raw = base64.b64decode(sealed)
        for cipher in self._ciphers:
            with contextlib.suppress(InvalidTag):
                return cipher, cipher.decrypt(raw[:12], raw[12:], name.encode()).decode()
        return None

    def open(self, sealed: str, *, name: str) -> str:
        """Open it again; Misconfigured when the installation's key is another one now."""
        if found := self._find(sealed, name):
            return found[1]
        raise Misconfigured(
            NAME, "wake", "the release was sealed under another secret key; restore it or deploy the service again"
        )


def remove_tree(path: Path) -> None:
    """Remove a folder although a program left parts of it closed; absence is success."""

    def opened(_: object, name: str, __: object) -> None:
        parent = Path(name).parent
        parent.chmod(0o700)
        if Path(name).is_dir() and not Path(name).is_symlink():
            Path(name).chmod(0o700)
            shutil.rmtree(name, ignore_errors=True)
        else:
            Path(name).unlink(missing_ok=True)

    if path.is_symlink() or not path.exists():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, onerror=opened)
