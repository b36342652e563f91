"""``docs/openapi.json``: the description as it was agreed. ``python -m tests.openapi.committed`` writes it anew.

It may grow, and only so: whoever made a client from it shall be able to go on using that client.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from app.main import described
from tests.support.processes import REPOSITORY

FILE = REPOSITORY / "docs/openapi.json"

Json = dict[str, Any]


@cache
def description() -> Json:
    """Return what the API says of itself, for reading; no part of it needs a database."""
    return described().openapi()


def text(of: Json) -> str:
    return json.dumps(of, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def breaking(old: Json, new: Json) -> list[str]:
    """Return what of ``old`` a client of it would miss in ``new``, or could not send any more."""
    return [*_routes(old, new), *_models(old, new)]


def _routes(old: Json, new: Json) -> Iterator[str]:
    for path, operations in old["paths"].items():
        for method, operation in operations.items():
            label = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                yield f"{label} is gone"
                continue
            if now["operationId"] != operation["operationId"]:
                yield f"{label} is called {now['operationId']}"
            yield from _parameters(label, operation, now)
            for status, answer in operation["responses"].items():
                if int(status) < 400:
                    there = now["responses"].get(status, {}).get("content", {})
                    for media, content in answer.get("content", {}).items():
                        if media not in there:
                            yield f"{label} {status} is no {media} any more"
                        elif _reference(content) != _reference(there[media]):
                            yield f"{label} {status} is another model"


def _reference(content: Json) -> Any:
    return content["schema"].get("$ref")


def _parameters(label: str, old: Json, new: Json) -> Iterator[str]:
    before = {(p["in"], p["name"]): p for p in old.get("parameters", [])}
    now = {(p["in"], p["name"]): p for p in new.get("parameters", [])}
    yield from (f"{label}: the {where} parameter {name} is gone" for where, name in before if (where, name) not in now)
    for key, parameter in now.items():
        if parameter.get("required") and not before.get(key, {}).get("required"):
            yield f"{label}: the {key[0]} parameter {key[1]} is required now"
    if new.get("requestBody", {}).get("required") and not old.get("requestBody", {}).get("required"):
        yield f"{label}: a body is required now"


def _models(old: Json, new: Json) -> Iterator[str]:
    sent, models = reached(old, "requestBody"), new["components"]["schemas"]
    for name, model in old["components"]["schemas"].items():
        now = models.get(name)
        if now is None:
            yield f"{name} is gone"
            continue
        yield from (f"{name} is never {v!r} any more" for v in model.get("enum", []) if v not in now.get("enum", []))
        before, after = model.get("properties", {}), now.get("properties", {})
        yield from (f"{name}.{field} is gone" for field in before if field not in after)
        for field in before.keys() & after.keys():
            if _kind(before[field]) != _kind(after[field]):
                yield f"{name}.{field} is {_kind(after[field])} and was {_kind(before[field])}"
        required, wanted = set(model.get("required", [])), set(now.get("required", []))
        if name in sent:
            yield from (f"{name}.{field} is required now" for field in sorted(wanted - required))
        else:
            yield from (f"{name}.{field} may be missing now" for field in sorted(required - wanted))


def _kind(schema: Json) -> list[str]:
    return sorted(str(s.get("$ref", s.get("type"))) for s in schema.get("anyOf", [schema]))


def reached(description: Json, part: str) -> set[str]:
    """Return the models that a part of any operation leads to."""
    models, found = description["components"]["schemas"], set[str]()

    def walk(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                walk(each)
        elif isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.add(name)
                walk(models[name])
            for each in node.values():
                walk(each)

    for operations in description["paths"].values():
        for operation in operations.values():
            walk(operation.get(part, {}))
    return found


if __name__ == "__main__":
    FILE.write_text(text(description()))
