"""``slipway deploy`` and ``slipway build``: a folder is packed, sent, built and, if it shall be a service, brought up."""

import os
import re
from pathlib import Path
from typing import Annotated, Unpack

import typer

from app.client.command import Caller
from app.client.failed import Json, usage
from app.client.options import BuildOptions, Folder, given, pairs, secrets
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
    **options: Unpack[BuildOptions],
) -> None:
    """Build a folder and run it as a service: packs, sends, follows, and prints the address."""
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
    body = given(platform=platform) | {"service": {"name": name or _named_after(folder), **service}}
    _send(caller, folder, body, options)


def build(caller: Caller, folder: Folder = HERE, **options: Unpack[BuildOptions]) -> None:
    """Build a folder to an image, and run nothing."""
    # Without a service the platform is that of its builder: there may be no `local` here, which is what the API takes.
    _send(caller, folder, given(platform=options["builder"]), options)


def _named_after(folder: Path) -> str:
    """Return a folder's name as a service may have it: small letters, digits and single hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not name[:1].isalpha():
        raise usage(f"no service can be named after {folder.resolve()}", "Say how it shall be called with --name.")
    return name


def _send(caller: Caller, folder: Path, body: Json, options: BuildOptions) -> None:
    from app.client import pack  # noqa: PLC0415 - only what sends a folder needs it

    body |= given(
        build=given(package=options["package"], goarch=options["goarch"], cache=False if options["no_cache"] else None),
        builder=given(
            platform=options["builder"],
            memory_mb=options["builder_memory"],
            timeout_seconds=options["timeout"],
        ),
        labels=pairs(options["label"], "--label"),
        strict=False if options["lenient"] else None,
    )
    screen, api = caller.screen, caller.api
    files = pack.files(folder)
    check = not options["large"]
    with screen.busy(f"packing and sending {len(files):,} files"), pack.pack(files, check=check) as archive:
        size = archive.seek(0, os.SEEK_END)
        screen.note(f"sending {len(files):,} files, {size / 1024:,.1f} KiB packed", "dim")
        source = api.call("POST", "/v1/sources", file=archive)
    sent = api.call("POST", "/v1/builds", json=body | {"source": {"kind": "upload", "digest": source["digest"]}})
    if options["no_wait"]:
        raise SystemExit(report(screen, sent))
    watch(caller, sent["id"], cancel=options["cancel_on_interrupt"], folder=str(folder))
