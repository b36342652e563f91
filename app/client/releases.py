"""A release as it goes live, after a rollback or a move: there is no stream of its own, so it is looked at."""

from app.client.command import Caller
from app.client.failed import Code, Json, code_of
from app.client.screen import get

LOOK_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.5)
COLUMNS = (
    ("number", get("number")),
    ("status", get("status")),
    ("kind", get("kind")),
    ("platform", get("platform")),
    ("id", get("id")),
    ("build", get("build_id")),
    ("reason", get("reason")),
)


def until_live(caller: Caller, name: str, release: Json) -> None:
    """Wait for the end of a release's way and report it; exits with the code of how it ended."""
    screen, looks = caller.screen, 0
    number, path = release["number"], f"/v1/services/{name}/releases"
    try:
        with screen.busy(f"release {number} of {name} is going live"):
            while release["status"] in {"pending", "deploying"}:
                caller.api.sleep(LOOK_SECONDS[min(looks, len(LOOK_SECONDS) - 1)])
                looks += 1
                found = caller.api.pages(path, 100)
                release = next(r for r in found if r["id"] == release["id"])
    except KeyboardInterrupt:
        screen.note(f"release {number} goes on. Look at it: slipway services releases {name}")
        raise
    service = caller.api.call("GET", f"/v1/services/{name}")
    if screen.as_json:
        screen.document(release)
    elif release["status"] == "failed":
        screen.note(f"release {number} of {name} failed: {release['reason']}", "bold red")
        screen.note(f"  {release['message']}")
        screen.note(f"  What was live before serves: {service['url']}")
    else:
        screen.note(f"release {number} of {name} is live on {release['platform']}", "bold green")
        screen.address(service["url"] or name)
    raise SystemExit(code_of(release["failure"]) if release["status"] == "failed" else Code.OK)
