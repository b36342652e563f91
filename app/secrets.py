"""Secret keys: encryption of secret values, and the keys of run tokens and registry tokens.

Keys come from ``SLIPWAY_SECRET_KEYS`` (``id:base64 of 32 bytes``, comma separated, first one encrypts). The embedded
default makes one under ``SLIPWAY_HOME``. Everything is derived per purpose by HKDF-SHA256, so that no two uses share a
key.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12


class KeysError(Exception):
    """The secret keys are missing, malformed or not the ones the data was made with."""


@dataclass(frozen=True)
class Sealed:
    """An encrypted value: AES-256-GCM, 12-byte nonce, tag at the end of ``ciphertext``."""

    key_id: str
    nonce: bytes
    ciphertext: bytes


@dataclass(frozen=True)
class Keyring:
    """The keys by id; ``active`` is the one that new things are made with."""

    active: str
    keys: Mapping[str, bytes] = field(repr=False)

    def derive(self, purpose: str, key_id: str | None = None) -> bytes:
        """Return 32 bytes for one purpose from the key ``key_id`` (the active one by default)."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"slipway/{purpose}".encode()).derive(
            self._key(key_id or self.active)
        )

    def seal(self, value: str, *, about: str) -> Sealed:
        """Encrypt ``value``; ``about`` (the row's id) is bound to it, so that rows can't be swapped."""
        nonce = os.urandom(NONCE_BYTES)
        cipher = AESGCM(self.derive("secret-version"))
        return Sealed(self.active, nonce, cipher.encrypt(nonce, value.encode(), about.encode()))

    def open(self, sealed: Sealed, *, about: str) -> str:
        """Decrypt; KeysError when the key is gone or the value was tampered with."""
        cipher = AESGCM(self.derive("secret-version", sealed.key_id))
        try:
            return cipher.decrypt(sealed.nonce, sealed.ciphertext, about.encode()).decode()
        except InvalidTag as e:
            raise KeysError(f"secret {about} can't be decrypted with key {sealed.key_id!r}") from e

    def run_token(self, run_id: str, key_id: str) -> str:
        """Return the run's token, the same each time: ``slr.<run id>.<base64url HMAC-SHA256>``."""
        mac = hmac.digest(self.derive("run-token", key_id), run_id.encode(), hashlib.sha256)
        return f"slr.{run_id}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    def pull_password(self, credential_id: str, key_id: str) -> str:
        """Return the password of a pull credential, the same each time: base64url of HMAC-SHA256."""
        mac = hmac.digest(self.derive("pull-credential", key_id), credential_id.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")

    def check_values(self) -> dict[str, str]:
        """Return a fingerprint for each key id; equal ids with unequal fingerprints mean two different key sets."""
        return {k: hashlib.sha256(self.derive("key-check", k)).hexdigest()[:16] for k in self.keys}

    def _key(self, key_id: str) -> bytes:
        try:
            return self.keys[key_id]
        except KeyError:
            raise KeysError(
                f"secret key {key_id!r} is not in SLIPWAY_SECRET_KEYS; add it back behind the first"
            ) from None


def parse_keys(text: str) -> Keyring:
    """Read ``SLIPWAY_SECRET_KEYS``; KeysError says which entry is wrong, never its value."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate((e.strip() for e in text.split(",") if e.strip()), 1):
        key_id, _, encoded = entry.partition(":")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if not key_id or len(key_id) > 64 or len(raw) != KEY_BYTES or key_id in keys:
            raise KeysError(
                f"SLIPWAY_SECRET_KEYS: entry {number} is not `id:base64 of {KEY_BYTES} bytes`, or its id repeats"
            )
        keys[key_id] = raw
    if not keys:
        raise KeysError("SLIPWAY_SECRET_KEYS is empty")
    return Keyring(next(iter(keys)), keys)


def make_keys() -> str:
    """Return the text of a new key set with one key."""
    return f"k{secrets.token_hex(4)}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def home_keys(home: Path) -> Keyring:
    """Read the key file under ``home``, making it on the first start (0600, atomic)."""
    path = home / "secret-keys"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        temporary = home / f".secret-keys.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(make_keys())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # fails when another process was first: then theirs counts
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return parse_keys(path.read_text())
