"""A build as it goes: its stage and its log live, and how it ended in words that say what to do."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rich.text import Text

from app.client.command import Caller
from app.client.failed import Code, Failed, Json, code_of
from app.client.screen import Screen, clean
from app.client.sse import Block

if TYPE_CHECKING:
    from app.client.api import Api

STAGES = {
    "build.queued": "waiting for a builder",
    "build.dispatching": "starting a builder",
    "build.building": "building",
    "build.promoting": "going live",
}
WHOSE = {"caller": "yours", "operator": "the operator's", "platform": "the platform's", "us": "Slipway's own"}
ENDED = frozenset({"succeeded", "failed", "canceled"})

Feed = SimpleQueue[tuple[str, Block | BaseException | None]]


class Stage:
    """The line at the bottom of the terminal: what is going on, and for how long."""

    def __init__(self) -> None:
        self._text, self._begun = "sent", time.monotonic()

    def to(self, text: str) -> None:
        """Begin another stage."""
        self._text, self._begun = text, time.monotonic()

    def __rich__(self) -> Text:
        return Text.assemble((self._text, "bold"), f" {time.monotonic() - self._begun:.1f} s")


def watch(caller: Caller, build_id: str, *, cancel: bool = False, folder: str = "") -> None:
    """Tell a build's id, follow it to its end and report it. Exits with the code of how it ended; after Ctrl-C it goes on
    without us.

    ``cancel``: Ctrl-C cancels it. ``folder`` is put before the names of files, so that they can be opened from here.
    """
    try:
        caller.screen.note(build_id, "dim")  # in here: Ctrl-C may come as soon as it is read
        _follow(caller.api, caller.screen, build_id)
        build = caller.api.call("GET", f"/v1/builds/{build_id}")
    except KeyboardInterrupt:
        _interrupted(caller, build_id, cancel=cancel)
        raise
    except Failed as failed:
        if failed.code is Code.UNREACHABLE:
            failed.advice = f"The build goes on. Follow it later: slipway logs -f {build_id}"
        raise
    raise SystemExit(report(caller.screen, build, folder))


def _interrupted(caller: Caller, build_id: str, *, cancel: bool) -> None:
    if cancel:
        caller.api.call("POST", f"/v1/builds/{build_id}/cancel")
        caller.screen.note(f"{build_id} is canceled")
        return
    caller.screen.note(f"{build_id} goes on. Follow it: slipway logs -f {build_id}")
    caller.screen.note(f"                          End it:    slipway builds cancel {build_id}")


def _follow(api: "Api", screen: Screen, build_id: str) -> None:
    """Show stages and lines until both streams have said that this was all."""
    feed: Feed = SimpleQueue()
    for name in ("events", "logs"):
        threading.Thread(target=_feed, args=(api, name, build_id, feed), daemon=True).start()
    with _status(screen) as stage:
        for what, data in _until_both_end(feed):
            if what == "logs":
                screen.note(data["text"], "dim" if data["stream"] == "builder" else "")
            elif text := STAGES.get(data["kind"]):
                stage.to(text)
                if not screen.err.is_terminal:
                    screen.note(text)
            elif data["kind"] == "run.preparing":
                screen.note(str(data["data"]["message"]))
            elif data["kind"] in {"run.lost", "run.failed", "release.failed"} and data["data"].get("message"):
                screen.note(str(data["data"]["message"]), "yellow")


def _feed(api: "Api", name: str, build_id: str, feed: Feed) -> None:
    try:
        for block in api.follow(f"/v1/builds/{build_id}/{name}"):
            feed.put((name, block))
        feed.put((name, None))
    except BaseException as e:  # noqa: BLE001 - raised where it is waited for
        feed.put((name, e))


def _until_both_end(feed: Feed) -> Iterator[tuple[str, Any]]:
    left = {"events", "logs"}
    while left:
        what, block = feed.get()
        if isinstance(block, BaseException):
            raise block
        if block is None:
            left.remove(what)
        elif block.event is None:
            yield what, block.data


@contextlib.contextmanager
def _status(screen: Screen) -> Iterator[Stage]:
    stage = Stage()
    if screen.err.is_terminal and not screen.as_json:
        with screen.err.status(stage):
            yield stage
    else:
        yield stage


def report(screen: Screen, build: Json, folder: str = "") -> Code:
    """Say how a build ended, or how far it is, and return the exit code: its address alone goes to standard output."""
    if screen.as_json:
        screen.document(build)
    elif build["status"] == "succeeded":
        _succeeded(screen, build)
    elif build["status"] in ENDED:
        _failed(screen, build, folder)
    else:
        screen.text(build["id"])
        screen.note(f"{build['status']}. Follow it: slipway logs -f {build['id']}")
    match build["status"]:
        case "canceled":
            return Code.CALLER
        case "failed":
            return code_of(build["failure"])
    return Code.OK


def _succeeded(screen: Screen, build: Json) -> None:
    took, artifact = build["timings"], build["artifact"]
    stages = ", ".join(f"{s} {took[s]:.1f}" for s in ("queued", "dispatching", "building", "promoting") if s in took)
    live = f"{build['service']} is live on {build['platform']}" if build["release_id"] else f"{build['id']} is built"
    screen.note(f"{live} after {took['total']:.1f} s ({stages})", "bold green")
    for warning in build["warnings"]:
        screen.note(f"warning: {warning}", "yellow")
    if artifact:
        screen.note(f"image {artifact['digest']}, {artifact['size_bytes']:,} bytes")
    if build["url"]:
        screen.address(build["url"])
    else:
        screen.text(build["id"])


def _failed(screen: Screen, build: Json, folder: str) -> None:
    for found in build["diagnostics"]:
        screen.note(diagnostic(found, folder))
    failure = build["failure"]
    if failure is None:
        screen.note(f"{build['id']} was {build['status']}", "yellow")
        return
    screen.note(f"{build['id']} {build['status']}: {failure['reason']}", "bold red")
    if not build["diagnostics"]:  # else they have said it
        screen.note(f"  {failure['message']}")
    if failure["advice"] != failure["message"]:
        screen.note(f"  {failure['advice']}")
    screen.note(f"  The next move is {WHOSE.get(failure['owner'], failure['owner'])}.")
    if failure["retryable"]:
        screen.note(f"  Try again: slipway builds retry {build['id']}")


def diagnostic(found: Json, folder: str = "") -> str:
    """Return a message of the compiler in its own style, ``file:line:column: message``."""
    file = str(PurePosixPath(folder, found["file"])) if found["file"] else ""
    place = ":".join(str(p) for p in (file, found["line"], found["column"]) if p)
    return clean(f"{place}: {found['message']}" if place else found["message"])
