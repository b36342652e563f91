"""What each platform can do, as data that callers choose by and as the README's table: both are made from the code that does it.

``python -m app.capabilities README.md`` writes the table anew.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import SecretStr

from app.platforms import proven
from app.platforms.budget import Allowance, Limit
from app.platforms.catalog import REMOTE, Entry, entries
from app.settings import FlySettings, KoyebSettings, NorthflankSettings, RailwaySettings, Settings

BEGIN, END = "<!-- capabilities: made by python -m app.capabilities README.md -->", "<!-- end of capabilities -->"
HEADS = (
    "platform", "builder for one build", "builds started by API", "image by digest", "to zero", "kept awake by",
    "exit codes", "private images", "its own registry", "builders at once", "requests", "shown",
)  # fmt: skip
IDLE = {"requests": "requests", "outbound": "packets it sends", "none": "nothing"}


def standing(entry: Entry) -> str:
    """Return how a platform was shown to work: ``native``, ``imitated`` or ``live <date>``."""
    return proven.standing(entry.name) if entry.traits.remote else "native"


def allowance(settings: Settings, entry: Entry) -> Allowance | None:
    """Return how a configured platform's requests are counted; None where nobody counts."""
    remote = REMOTE.get(entry.name)
    return remote.allowance(settings) if remote is not None and entry.configured else None


def table(known: Iterable[tuple[Entry, Allowance | None]]) -> str:
    """Return the table as Markdown."""
    lines = [HEADS, ("---",) * len(HEADS), *(_row(entry, counted) for entry, counted in known)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(entry: Entry, counted: Allowance | None) -> Sequence[str]:
    traits = entry.traits
    zero = {"automatic": "by itself", "manual": "by our gateway", "none": "no"}[traits.scale_to_zero]
    return (
        f"`{entry.name}`",
        _yes(entry.builders),
        _yes(entry.builders),
        _yes(entry.services),
        zero,
        IDLE[traits.idle_signal],
        _yes(traits.exit_codes),
        "any registry" if traits.private_registry else "its own only" if traits.own_registry else "no",
        f"`{traits.own_registry}`" if traits.own_registry else "no",
        "one per core" if traits.host_bound else str(traits.max_builders),
        _requests(counted.limit(""), counted) if counted else "not counted",
        standing(entry),
    )


def _requests(limit: Limit, counted: Allowance) -> str:
    window = {1: "a second", 60: "a minute", 3600: "an hour"}[int(limit.window)]
    return f"{limit.limit:,.0f} {window}" + (" for each action and object" if counted.per_object else "")


def _yes(value: object) -> str:
    return "yes" if value else "no"


def usual() -> Settings:
    """Return settings under which every platform is configured as its defaults say."""
    token = SecretStr("a token")
    return Settings(
        fly=FlySettings(token=token),
        koyeb=KoyebSettings(enabled=True, token=token),
        northflank=NorthflankSettings(token=token, project="a"),
        railway=RailwaySettings(
            token=token, project="a", environment="b", builders_project="c", builders_environment="d"
        ),
    )


def page(text: str) -> str:
    """Return a page with the table between its marks made anew; ValueError when it has no marks."""
    settings = usual()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the page has no place for the table")
    known = [(entry, allowance(settings, entry)) for entry in entries(settings).values()]
    return f"{before}{BEGIN}\n\n{table(known)}\n\n{END}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(page(file.read_text()))
