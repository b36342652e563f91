"""Prefixed, sortable ids: ``bld_`` and 26 characters of a UUIDv7 in base32hex, lower case.

base32hex keeps the order of the bytes, so ids sort by the time they were made.
"""

import base64
import re
from datetime import UTC, datetime, timedelta

import uuid_utils

_ID = re.compile(r"[a-z]{3}_[0-9a-v]{26}")


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``bld_06f1q…``; ``prefix`` has three letters."""
    raw = base64.b32hexencode(uuid_utils.uuid7().bytes).decode("ascii")
    return f"{prefix}_{raw.rstrip('=').lower()}"


def made_at(row_id: str) -> datetime:
    """Return when an id was made: a UUIDv7 begins with the milliseconds of its time (RFC 9562, 5.7)."""
    raw = base64.b32hexdecode(row_id.partition("_")[2].upper() + "======")
    return datetime.fromtimestamp(int.from_bytes(raw[:6], "big") / 1000, UTC)


def first_id(prefix: str, at: datetime, *, skew: timedelta = timedelta()) -> str:
    """Return what no id made at this time or later sorts before (RFC 9562, section 5.7: milliseconds come first).

    ``skew`` is added to the time, which the calendar need not reach: it has the years 1 to 9999 only.
    """
    millis = min(max(int((at.timestamp() + skew.total_seconds()) * 1000), 0), 2**48 - 1)
    return f"{prefix}_{base64.b32hexencode(millis.to_bytes(6) + bytes(10)).decode().rstrip('=').lower()}"


def is_id(text: str, prefix: str) -> bool:
    """Tell whether ``text`` has the form of an id with this prefix."""
    return text.startswith(f"{prefix}_") and _ID.fullmatch(text) is not None


def remote_name(installation: str, row_id: str) -> str:
    """Return the name of a row's resource on a platform: ``slp-<installation>-<row id>``.

    41 characters of ``[a-z0-9-]`` that start with a letter, which every platform takes
    (the tightest is Northflank's job name: 3 to 52).
    """
    return f"slp-{installation}-{row_id.replace('_', '-')}"


def parse_remote_name(name: str) -> tuple[str, str] | None:
    """Split a remote name into (installation, row id); None when it isn't one of ours."""
    match = re.fullmatch(r"slp-([0-9a-z]{6})-([a-z]{3})-([0-9a-v]{26})", name)
    return (match[1], f"{match[2]}_{match[3]}") if match else None
