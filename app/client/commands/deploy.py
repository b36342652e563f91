"""``slipway deploy`` and ``slipway build``: a folder is packed, sent, built and, if it shall be a service, brought up."""

import os
from pathlib import Path
from typing import Annotated

import typer

from app.client.command import Caller
from app.client.failed import Json
from app.client.options import (
    Builder,
    BuilderMemory,
    CancelOnInterrupt,
    Folder,
    Goarch,
    Labels,
    Large,
    Lenient,
    NoCache,
    NoWait,
    Package,
    Timeout,
    given,
    pairs,
    secrets,
)
from app.client.watch import report, watch

HERE = Path()


def deploy(
    caller: Caller,
    folder: Folder = HERE,
    *,
    platform: Annotated[str | None, typer.Option(help="Where it runs; else `local`.")] = None,
    name: Annotated[str | None, typer.Option(help="The service's name; else the folder's.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A variable of the program.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="K[=V]", help="A secret; K alone takes it from the environment.")
    ] = None,
    secret_file: Annotated[Path | None, typer.Option(help="Secrets from a file of K=V lines.")] = None,
    port: Annotated[int | None, typer.Option(help="Where the program listens, if not on $PORT.")] = None,
    health_path: Annotated[str | None, typer.Option(help="What answers 2xx once it is ready; else /healthz.")] = None,
    cpus: Annotated[float | None, typer.Option(help="Of the service.")] = None,
    memory: Annotated[int | None, typer.Option(help="MiB of the service.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="The platform's own word for where.")] = None,
    minimum: Annotated[int | None, typer.Option("--min", help="1 keeps it up; 0 lets it sleep.")] = None,
    idle: Annotated[int | None, typer.Option(help="Seconds without a request after which it sleeps.")] = None,
    builder: Builder = None,
    package: Package = None,
    goarch: Goarch = None,
    builder_memory: BuilderMemory = None,
    timeout: Timeout = None,
    label: Labels = None,
    no_cache: NoCache = False,
    no_wait: NoWait = False,
    lenient: Lenient = False,
    large: Large = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
) -> None:
    """Build a folder and run it as a service: packs, sends, follows, and prints the address."""
    body = _build(builder, package, goarch, builder_memory, timeout, label, no_cache=no_cache, lenient=lenient)
    service = given(
        env=pairs(env, "--env"),
        secrets=secrets(secret, secret_file),
        port=port,
        health_path=health_path,
        cpus=cpus,
        memory_mb=memory,
        regions=region,
        scale=given(min=minimum, idle_seconds=idle),
    )
    body |= given(platform=platform) | {"service": {"name": name or folder.resolve().name, **service}}
    _send(caller, folder, body, large=large, wait=not no_wait, cancel=cancel_on_interrupt)


def build(
    caller: Caller,
    folder: Folder = HERE,
    *,
    builder: Builder = None,
    package: Package = None,
    goarch: Goarch = None,
    builder_memory: BuilderMemory = None,
    timeout: Timeout = None,
    label: Labels = None,
    no_cache: NoCache = False,
    no_wait: NoWait = False,
    lenient: Lenient = False,
    large: Large = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
) -> None:
    """Build a folder to an image, and run nothing."""
    body = _build(builder, package, goarch, builder_memory, timeout, label, no_cache=no_cache, lenient=lenient)
    _send(caller, folder, body, large=large, wait=not no_wait, cancel=cancel_on_interrupt)


def _build(
    builder: str | None,
    package: str | None,
    goarch: str | None,
    memory: int | None,
    timeout: int | None,
    labels: list[str] | None,
    *,
    no_cache: bool,
    lenient: bool,
) -> Json:
    """Return what both send."""
    return given(
        build=given(package=package, goarch=goarch, cache=False if no_cache else None),
        builder=given(platform=builder, memory_mb=memory, timeout_seconds=timeout),
        labels=pairs(labels, "--label"),
        strict=False if lenient else None,
    )


def _send(caller: Caller, folder: Path, body: Json, *, large: bool, wait: bool, cancel: bool) -> None:
    from app.client import pack  # noqa: PLC0415 - only what sends a folder needs it

    screen, api = caller.screen, caller.api
    files = pack.files(folder)
    with screen.busy(f"packing and sending {len(files):,} files"), pack.pack(files, check=not large) as archive:
        size = archive.seek(0, os.SEEK_END)
        screen.note(f"sending {len(files):,} files, {size / 1024:,.1f} KiB packed", "dim")
        source = api.call("POST", "/v1/sources", file=archive)
    sent = api.call("POST", "/v1/builds", json=body | {"source": {"kind": "upload", "digest": source["digest"]}})
    if not wait:
        raise SystemExit(report(screen, sent))
    watch(caller, sent["id"], cancel=cancel, folder=str(folder))
