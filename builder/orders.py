"""What this builder was told: a little in its environment, the rest as the answer to its claim."""

import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit


class BadEnvironment(Exception):
    """The environment does not hold what the protocol page asks for."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Orders from the environment, checked. ``deadline`` is in Unix seconds."""

    url: str
    run_id: str
    token: str = field(repr=False)
    deadline: float
    instance: str
    hold: bool
    go: str
    goroot: Path | None
    gocache: Path | None
    work: Path
    ca_file: Path | None
    """Trust roots for the control plane, the registry and git instead of certifi's."""
    traceparent: str | None = None
    """The build's place in a trace, which goes with every call to the control plane (W3C Trace Context)."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what comes in and goes out; bytes, or counts."""

    source_bytes: int = 50 << 20
    unpacked_bytes: int = 500 << 20
    files: int = 20_000
    image_bytes: int = 500 << 20
    log_bytes: int = 10 << 20
    log_line_bytes: int = 16 << 10
    completion_bytes: int = 256 << 10
    diagnostics: int = 200


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the source is; ``digest`` and ``commit`` are None until a first run has fixed them."""

    kind: Literal["archive", "git"]
    digest: str | None = None
    url: str = ""
    ref: str | None = None
    subdir: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The answer to the claim."""

    run_id: str
    build_id: str
    kind: str
    source: Source
    package: str
    goarch: str
    goproxy: str
    gosumdb: str | None
    repository: str
    port: int
    created: int
    labels: Mapping[str, str]
    limits: Limits
    allow_hosts: tuple[str, ...]
    deadline: float
    heartbeat_seconds: float
    secrets: tuple[str, ...] = field(repr=False)
    """Values in the orders that look secret: never to be seen in a log or a report."""


SECRET_NAMES = ("token", "secret", "password", "passwd", "credential", "api_key", "apikey", "private_key")


def take_environment() -> dict[str, str]:
    """Return the environment and take the run token out of it, so that no child can inherit it."""
    taken = dict(os.environ)
    os.environ.pop("SLIPWAY_RUN_TOKEN", None)
    return taken


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Check the variables of the protocol page; raises BadEnvironment naming the one at fault."""
    found = {}
    for name in ("SLIPWAY_URL", "SLIPWAY_RUN_ID", "SLIPWAY_RUN_TOKEN", "SLIPWAY_RUN_DEADLINE"):
        found[name] = environ.get(name, "").strip()
        if not found[name]:
            raise BadEnvironment(f"{name} is not set")
    url = found["SLIPWAY_URL"].rstrip("/")
    if not is_safe_url(url):
        raise BadEnvironment("SLIPWAY_URL must be https (plain http on loopback only): the run token travels over it")
    try:
        deadline = float(found["SLIPWAY_RUN_DEADLINE"])
    except ValueError:
        raise BadEnvironment("SLIPWAY_RUN_DEADLINE must be Unix seconds") from None
    work = environ.get("SLIPWAY_WORK", "").strip()
    if not work or not Path(work).is_dir():
        raise BadEnvironment("SLIPWAY_WORK must name a folder to work in")
    return Environment(
        url=url,
        run_id=found["SLIPWAY_RUN_ID"],
        token=found["SLIPWAY_RUN_TOKEN"],
        deadline=deadline,
        instance=_instance(environ) or secrets.token_hex(16),
        hold=environ.get("SLIPWAY_HOLD_AFTER_CALLBACK", "") == "1",
        go=environ.get("SLIPWAY_GO", "").strip() or "go",
        goroot=_path(environ, "GOROOT"),
        gocache=_path(environ, "SLIPWAY_GOCACHE"),
        work=Path(work).resolve(),
        ca_file=_path(environ, "SSL_CERT_FILE"),
        traceparent=environ.get("TRACEPARENT", "").strip() or None,
    )


def read_orders(answer: Mapping[str, Any]) -> Orders:
    """Read the claim's answer; KeyError, TypeError or ValueError when it isn't what the protocol page says."""
    source, build, image = answer["source"], answer["build"], answer["image"]
    known = Limits.__dataclass_fields__
    return Orders(
        run_id=str(answer["run_id"]),
        build_id=str(answer["build_id"]),
        kind=str(answer["kind"]),
        source=Source(
            kind=_source_kind(source["kind"]),
            digest=source.get("digest"),
            url=source.get("url") or "",
            ref=source.get("ref"),
            subdir=source.get("subdir"),
            commit=source.get("commit"),
        ),
        package=build.get("package") or ".",
        goarch=build.get("goarch") or "amd64",
        goproxy=answer["modules"].get("goproxy") or "off",
        gosumdb=answer["modules"].get("gosumdb"),
        repository=image["repository"],
        port=int(image["port"]),
        created=int(image.get("created") or 0),
        labels={str(k): str(v) for k, v in (image.get("labels") or {}).items()},
        limits=Limits(**{k: int(v) for k, v in answer.get("limits", {}).items() if k in known}),
        allow_hosts=tuple(answer.get("allow_hosts") or ()),
        deadline=float(answer["deadline"]),
        heartbeat_seconds=max(0.05, float(answer.get("heartbeat_seconds") or 10.0)),
        secrets=tuple(sorted(find_secrets(answer))),
    )


def find_secrets(value: object, name: str = "") -> set[str]:
    """Return values that look secret: by the name they go under, or as the user part of a URL."""
    if isinstance(value, Mapping):
        return set().union(*(find_secrets(v, str(k)) for k, v in value.items()))
    if isinstance(value, list):
        return set().union(*(find_secrets(v, name) for v in value))
    if not isinstance(value, str):
        return set()
    if any(word in name.lower() for word in SECRET_NAMES):
        return {value}
    found: set[str] = set()
    for part in value.replace("|", ",").split(","):
        if "://" in part and "@" in part:
            userinfo = part.split("://", 1)[1].split("/", 1)[0].rpartition("@")[0]
            found |= {userinfo, userinfo.partition(":")[2]}
    return found


def is_safe_url(url: str) -> bool:
    """Tell whether a token may travel to this URL: https anywhere, http to this machine only."""
    parts = urlsplit(url)
    if not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    if parts.scheme == "https":
        return True
    if parts.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname == "localhost" or parts.hostname.endswith(".localhost")


def _instance(environ: Mapping[str, str]) -> str:
    """Return what names this machine: told by us, or by the platform in a variable that we were told the name of."""
    given = environ.get("SLIPWAY_INSTANCE", "").strip()
    return given or environ.get(environ.get("SLIPWAY_INSTANCE_FROM", "").strip(), "").strip()


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name, "").strip()
    return Path(value).absolute() if value else None


def _source_kind(kind: str) -> Literal["archive", "git"]:
    if kind == "archive":
        return "archive"
    if kind == "git":
        return "git"
    raise ValueError(f"unknown source kind {kind!r}")
