"""The description as it was agreed: no drift from it, and no change that breaks a client."""

import json
import subprocess
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tests.openapi.committed import FILE, breaking, description, text
from tests.support.processes import REPOSITORY

Json = dict[str, Any]


def before() -> Json | None:
    """Return what was agreed last: in the last version, else on main or in the last commit; None outside of a clone."""
    for base in (("describe", "--tags", "--abbrev=0"), ("rev-parse", "origin/main"), ("rev-parse", "HEAD")):
        found = _git(*base)
        old = found and _git("show", f"{found.strip()}:docs/openapi.json")
        if old:
            return dict(json.loads(old))
    return None


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=10)
    return done.stdout if done.returncode == 0 else None


def test_the_committed_description_is_the_api_s() -> None:
    assert FILE.read_text() == text(description()), (
        "`make openapi` writes it anew; see what changed before you commit it"
    )


def test_nothing_is_taken_away() -> None:
    old = before()
    if old is None:
        pytest.skip("there is no earlier description to compare with")
    assert breaking(old, description()) == []


def _add(it: Json, *, required: bool) -> None:
    it["paths"]["/v1/builds"]["get"]["parameters"].append({"name": "x", "in": "query", "required": required})


CHANGES: list[tuple[str, Callable[[Json], Any]]] = [
    ("POST /v1/builds is gone", lambda it: it["paths"]["/v1/builds"].pop("post")),
    ("GET /v1/builds is called all", lambda it: it["paths"]["/v1/builds"]["get"].update(operationId="all")),
    ("GET /v1/builds: the query parameter x is required now", lambda it: _add(it, required=True)),
    ("GET /v1/builds: the query parameter limit is gone", lambda it: it["paths"]["/v1/builds"]["get"]["parameters"].pop(0)),
    ("GET /v1/builds 200 is no application/json any more",
     lambda it: it["paths"]["/v1/builds"]["get"]["responses"]["200"].pop("content")),
    ("BuildEnd is gone", lambda it: it["components"]["schemas"].pop("BuildEnd")),
    ("BuildOut.id is gone", lambda it: it["components"]["schemas"]["BuildOut"]["properties"].pop("id")),
    ("BuildOut.id may be missing now", lambda it: it["components"]["schemas"]["BuildOut"]["required"].remove("id")),
    ("BuildOut.id is ['integer'] and was ['string']",
     lambda it: it["components"]["schemas"]["BuildOut"]["properties"].update(id={"type": "integer"})),
    ("BuildRequest.platform is required now",
     lambda it: it["components"]["schemas"]["BuildRequest"]["required"].append("platform")),
    ("BuildStatus is never 'queued' any more", lambda it: it["components"]["schemas"]["BuildStatus"]["enum"].remove("queued")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), CHANGES, ids=[words for words, _ in CHANGES])
def test_what_breaks_a_client_is_noticed(words: str, change: Callable[[Json], Any]) -> None:
    old, new = deepcopy(description()), deepcopy(description())
    change(new)
    assert words in breaking(old, new)


def test_what_breaks_none_is_let_through() -> None:
    old, new = deepcopy(description()), deepcopy(description())
    _add(new, required=False)
    new["paths"]["/v1/new"] = {"get": old["paths"]["/v1/builds"]["get"]}
    new["components"]["schemas"]["BuildOut"]["properties"]["more"] = {"type": "string"}
    assert breaking(old, new) == []
