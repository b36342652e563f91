"""``slipway login``, ``logout`` and ``platforms``: where the API is, and what it offers."""

import sys

import typer

from app.client import config
from app.client.command import Caller
from app.client.config import Target
from app.client.failed import usage
from app.client.screen import get


def login(caller: Caller) -> None:
    """Keep an API's address and key for the commands to come. The key is asked for, or read from a pipe."""
    wanted = config.resolve(caller.url, None)
    key = caller.key or _ask(wanted.url)
    if not key:
        raise usage("there is no key", "Give it at the prompt, by a pipe, or with --key.")
    caller.url, caller.key = wanted.url, key
    found = caller.api.call("GET", "/v1/projects", params={"limit": 1})  # every key may
    config.keep(Target(wanted.url, key))
    if caller.screen.as_json:
        caller.screen.document({"url": wanted.url, "file": str(config.file())})
    else:
        project = found["items"][0]["name"]
        caller.screen.text(f"{wanted.url}, project {project}: kept in {config.file()}")


def logout(caller: Caller) -> None:
    """Forget what `login` kept; the key itself stays good."""
    config.file().unlink(missing_ok=True)
    if caller.screen.as_json:
        caller.screen.document({"file": str(config.file())})
    else:
        caller.screen.text(f"{config.file()} is gone")


def platforms(caller: Caller) -> None:
    """List what can be built and run where."""
    caller.screen.table(
        caller.api.call("GET", "/v1/platforms")["items"],
        ("platform", get("name")),
        ("configured", get("configured")),
        ("builders", get("builders")),
        ("services", get("services")),
        ("to zero", get("capabilities", "scale_to_zero")),
        ("shown", get("proof")),
        ("missing", get("missing")),
        ("problems", lambda p: [f"{k}: {v}" for k, v in p["problems"].items()]),
    )


def _ask(url: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    return str(typer.prompt(f"API key for {url}", hide_input=True, err=True)).strip()
