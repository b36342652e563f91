"""Where a build may get its builder: one platform after the other, and on each one region after the other.

A place without room costs the build nothing but time: the next region is tried within the run, the next platform in another
run, and after the last platform the first one again, later, until the build expires. ``tried`` of the build tells of each.
"""

import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from app import breaker, sql, store
from app.builds import slots
from app.context import Context
from app.lifecycle import Reason
from app.models import Build
from app.platforms.base import Size, Unsupported
from app.platforms.catalog import Entry
from app.sql import Session

ROUND_SECONDS = 15.0
"""The pause after every platform was tried."""
MOST_TRIED = 50

Note = dict[str, Any]


def listed(build: Build) -> list[str]:
    """Return the platforms to try, the first one first."""
    wish = build.spec["builder"]
    return list(dict.fromkeys([wish.get("platform") or build.builder_platform, *(wish.get("fallback") or ())]))


def regions(entry: Entry, build: Build) -> tuple[str, ...]:
    """Return the regions to try, in order; those of the request are the first platform's. ``""``: the platform chooses."""
    wish = build.spec["builder"]
    asked = tuple(wish.get("regions") or ()) if entry.name == listed(build)[0] else ()
    return asked or entry.traits.default_regions or ("",)


def cannot(context: Context, name: str, build: Build) -> str | None:
    """Return why a platform can't build this at all, None when it can."""
    entry, settings = context.catalog.entry(name), context.settings
    wish, strict = build.spec["builder"], build.spec.get("strict", True)
    if entry is None or not entry.configured or not entry.builders:
        return "it is not configured"
    if entry.traits.remote and not (settings.public_url and settings.builder_image):
        return "it needs SLIPWAY_PUBLIC_URL and SLIPWAY_BUILDER_IMAGE"
    if problem := entry.problems.get("builders"):
        return problem
    longest = entry.traits.max_runtime_seconds
    if strict and longest is not None and wish["timeout_seconds"] > longest:
        return f"its builders run at most {longest} seconds"
    held = context.platform(name)
    if strict and held is not None and held.builders is not None:
        try:
            held.builders.fit(Size(cpus=wish["cpus"], memory_mb=wish["memory_mb"]))
        except Unsupported as e:
            return e.message
    if name == "local" and held is not None and build.source["kind"] == "git" and shutil.which("git") is None:
        return "its builders have no git"
    return None


def note(build: Build, platform: str, region: str, reason: Reason, message: str) -> Note:
    """Return an entry for ``tried``."""
    about = {"attempt": build.attempt, "platform": platform, "region": region or None}
    return {**about, "reason": reason, "message": message, "times": 1}


def together(before: Iterable[Note], notes: Iterable[Note]) -> list[Note]:
    """Add notes to what was tried: the same place with the same reason is one entry that counts, else an hour fills a book."""
    tried: dict[object, Note] = {}
    for index, entry in enumerate([*before, *notes]):
        waits = entry["reason"] in {Reason.NO_CAPACITY, Reason.PLATFORM_MISCONFIGURED, Reason.PLATFORM_REJECTED}
        key = (entry["platform"], entry.get("region"), entry["reason"]) if waits else index
        known = tried.pop(key, None)
        tried[key] = entry | {"times": known["times"] + entry["times"]} if known else {"times": 1, **entry}
    return list(tried.values())[-MOST_TRIED:]


def story(tried: Iterable[Mapping[str, Any]]) -> str:
    """Return what was tried, as one text for a person."""
    places = (f"{t['platform']} {t.get('region') or ''}".strip() + f": {t['message']}" for t in tried)
    return "; ".join(places)


def after(context: Context, build: Build) -> tuple[str, bool, list[Note]]:
    """Return the platform to try next, whether that begins a new round, and notes of those that can't build it."""
    names = listed(build)
    at = names.index(build.builder_platform) if build.builder_platform in names else len(names) - 1
    notes: list[Note] = []
    for name in names[at + 1 :]:
        why = cannot(context, name, build)
        if why is None:
            return name, False, notes
        notes.append(note(build, name, "", Reason.PLATFORM_REJECTED, f"skipped: {why}"))
    return names[0], True, notes


def move_on(context: Context, build: Build, seconds: float) -> tuple[dict[str, Any], list[Note], float]:
    """Return what to set of a build that finds no room where it is, notes to add, and the pause before the next try."""
    name, again, notes = after(context, build)
    pause = max(ROUND_SECONDS, seconds) if again else 0.0
    return {"builder_platform": name}, notes, pause


async def admitted(context: Context, session: Session, build: Build) -> tuple[tuple[str, ...], breaker.Seen]:
    """Return the regions to try now on the build's platform, and what the breakers know of them; not asked for ``local``."""
    entry = context.catalog.entries[build.builder_platform]
    wanted = regions(entry, build)
    if not entry.traits.remote:
        return wanted, breaker.Seen({}, frozenset())
    seen = await breaker.look(session, build.builder_platform, wanted, breaker.LAUNCH)
    return tuple(r for r in wanted if r not in seen.shut), seen


async def pass_over(context: Context, session: Session, build: Build, shut: Mapping[str, breaker.Shut]) -> None:
    """Send a queued build, whose row is locked, on to the next platform, since all regions of this one are left alone."""
    here = build.builder_platform
    notes = [note(build, here, r, Reason.NO_CAPACITY, s.message) for r, s in shut.items()]
    values, more, pause = move_on(context, build, min(s.seconds for s in shut.values()))
    message = story(notes)
    await sql.update(
        session,
        Build,
        {"id": build.id},
        tried=together(build.tried, [*notes, *more]),
        message=message,
        not_before=sql.after(pause),
        next_check_at=sql.after(pause + 10),
        **values,
    )
    event = {"reason": Reason.NO_CAPACITY, "message": message, "platform": values["builder_platform"]}
    store.record(session, build, "build.passed_over", event)
    slots.ask(context, session, build.id, values["builder_platform"], delay=pause)
