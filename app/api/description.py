"""The API's own description: what FastAPI makes of the routes, and what it can't know.

Clients are generated from it, so every model and every enum has a name, every answer is declared, and examples are whole.
``docs/openapi.json`` is this description as it was agreed; tests hold it to that.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.problems import document
from app.api.reasons import DECLARED, MEDIA_TYPE, words
from app.api.runs import Lines
from app.api.schemas import BuildEnd
from app.builds.completion import Completion

Json = dict[str, Any]

REF = "#/components/schemas/"
EXAMPLE = "#/components/examples/"
UNSEEN: tuple[type[BaseModel], ...] = (BuildEnd, Completion, Lines)
"""Models of streams, and of bodies that a route reads by itself."""
BODIES = {"add_run_logs": Lines, "complete_run": Completion}
SERVERS = [{"url": "/", "description": "The installation that this description comes from."}]

PARTS = {
    "batch_id": ("A batch's id.", "bat_06f1qv0n2k3m4p5r6s7t8u9vb1"),
    "build_id": ("A build's id.", "bld_06f1qv0n2k3m4p5r6s7t8u9va0"),
    "delivery_id": ("A delivery's id.", "dlv_06f1q3s8v5t7p2c4k9m0a1b2d4"),
    "key_id": ("A key's id.", "key_06f1q3s8v5t7p2c4k9m0a1b2d4"),
    "name": ("A service's name.", "echo"),
    "project": ("A project's name.", "acme"),
    "run_id": ("A run's id.", "run_06f1qv0n2k3m4p5r6s7t8u9va0"),
    "webhook_id": ("A webhook's id.", "whk_06f1q3s8v5t7p2c4k9m0a1b2c3"),
    "limit": ("Items on a page.", 50),
    "platform": ("Only those on this platform.", "fly"),
    "service": ("Only those of the service with this name.", "echo"),
    "build": ("Only those of the build with this id.", "bld_06f1qv0n2k3m4p5r6s7t8u9va0"),
    "status": ("Only those with this status.", None),
    "webhook-id": ("The same for each try of one completion.", "msg_5f1c"),
    "webhook-timestamp": ("When it was signed, in Unix seconds; five minutes off at most.", "1767322800"),
    "webhook-signature": ("`v1,` and the signature, as Standard Webhooks has it.", "v1,K5oZfzN95Z9UVu1EsfQmfVNQ="),
}  # fmt: skip

LOCATED = {"create_build", "retry_build", "create_webhook", "create_key", "rotate_key", "create_project"}


def install(app: FastAPI) -> None:
    """Make the app describe itself so; made once, when it is first asked for."""
    plain = app.openapi

    def described() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = describe(plain())
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def describe(made: Json) -> Json:
    """Return FastAPI's description completed."""
    it = deepcopy(made)
    _, unseen = models_json_schema([(m, "validation") for m in UNSEEN], ref_template=REF + "{model}")
    models: Json = it["components"]["schemas"]
    models |= {name: schema for name, schema in unseen["$defs"].items() if name not in models}
    for operation in operations(it):
        _complete(operation)
    it["servers"] = SERVERS
    _untitle(it["paths"])
    for model in models.values():
        model.pop("title", None)
        _untitle(model.get("properties", {}))
    _name_enums(it)
    it = _renamed(it)
    for name, example in examples().items():
        it["components"]["schemas"][name]["examples"] = [example]
    it["components"]["examples"] = dict(sorted(_problems(it)))
    return it


def _problems(it: Json) -> Iterator[tuple[str, Json]]:
    """Yield an example of each problem that an operation has, by its status and reason."""
    for operation in operations(it):
        for answer in operation["responses"].values():
            for reference in answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).values():
                name = reference["$ref"].removeprefix(EXAMPLE)
                status, _, reason = name.partition("_")
                yield name, {"summary": words(reason), "value": document(int(status), reason, words(reason))}


def operations(description: Json) -> Iterator[Json]:
    """Yield every operation of the API, those of its webhooks aside."""
    for path in description["paths"].values():
        yield from path.values()


@cache
def examples() -> Json:
    """Return an example for each model that is a whole body or answer, by its name."""
    text = (resources.files("app.api") / "examples.json").read_text()
    found: Json = json.loads(text)
    return found


def _complete(operation: Json) -> None:
    """Add what holds for every operation of its kind: answers, headers, and words on what has none."""
    name, answers = operation["operationId"], operation["responses"]
    if model := BODIES.get(name):
        body = {"application/json": {"schema": {"$ref": REF + model.__name__}}}
        operation["requestBody"] = {"required": True, "content": body}
    parameters = operation.get("parameters", [])
    for parameter in parameters:
        _not_null(parameter["schema"])
        words, example = PARTS.get(parameter["name"], (None, None))
        if words:
            parameter.setdefault("description", parameter["schema"].pop("description", words))
        if example is not None:
            parameter.setdefault("example", example)
    once, pages = (any(p["name"] == key for p in parameters) for key in ("Idempotency-Key", "cursor"))
    for status, reasons in _common(operation, once=once, pages=pages):
        phrase = HTTPStatus(status).phrase
        answer = answers.setdefault(str(status), {"description": phrase, "content": {MEDIA_TYPE: {}}})
        answer.setdefault(DECLARED, []).extend(r for r in reasons if r not in answer[DECLARED])
    if not operation.get("security"):  # nothing of it is read
        del answers["422"]
    operation["responses"] = {s: _answer(int(s), a, name, once=once, pages=pages) for s, a in sorted(answers.items())}


def _common(operation: Json, *, once: bool, pages: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield status and reasons of what every operation of its kind may answer."""
    yield 500, ("internal_error",)
    yield 503, ("database_unavailable",)
    if operation.get("security"):
        yield 401, ("unauthorized",)
        yield 403, ("foreign_run",) if "runs" in operation["tags"] else ("insufficient_scope",)
    if "requestBody" in operation:
        yield 400, ("malformed_json", "cut_short")
        yield 413, ("too_large",)
    if any(p["in"] == "path" for p in operation.get("parameters", [])):
        yield 404, ("route_not_found",)  # a name with a NUL
    if once:
        yield 409, ("idempotency_in_flight",)
        yield 422, ("idempotency_key_reused",)
    if pages:
        yield 422, ("invalid_cursor",)


def _not_null(schema: Json) -> None:
    """Take null out of what a parameter may be: text can't say it, and leaving the parameter out does."""
    kinds = [s for s in schema.get("anyOf", []) if s != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema.update(kinds[0])


def _answer(status: int, answer: Json, name: str, *, once: bool, pages: bool) -> Json:
    content = dict(answer.get("content", {}))
    if MEDIA_TYPE in content:
        reasons = answer.pop(DECLARED)
        by_reason = {reason: {"$ref": f"{EXAMPLE}{status}_{reason}"} for reason in reasons}
        content = {MEDIA_TYPE: {"schema": {"$ref": REF + "Problem"}, "examples": by_reason}}
        answer["description"] += f": {', '.join(f'`{reason}`' for reason in reasons)}."
    headers: Json = {}
    if status == 401:
        headers["WWW-Authenticate"] = _header("`Bearer`.")
    if status == 503 or (status == 409 and once):
        headers["Retry-After"] = _header("Seconds to wait before the next try.", "integer")
    if status < 300 and once:
        headers["Idempotency-Replayed"] = _header("`true`: the answer to the first request under this key.")
    if status < 300 and name in LOCATED:
        headers["Location"] = _header("Where what was made is.")
    if status == 200 and pages:
        headers["Link"] = _header('The next page, `rel="next"` (RFC 8288).')
    if status == 200 and name == "get_build":
        headers["Preference-Applied"] = _header("`wait=N`, when it was waited for (RFC 7240).")
    parts = {"content": content, "headers": headers | answer.get("headers", {})}
    return {k: v for k, v in answer.items() if k not in parts} | {k: v for k, v in parts.items() if v}


def _header(words: str, kind: str = "string") -> Json:
    return {"description": words, "schema": {"type": kind}}


def _untitle(node: Any) -> None:
    """Drop the titles that pydantic makes of field names: they say nothing, and generators name types after them."""
    if isinstance(node, list):
        for part in node:
            _untitle(part)
    elif isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for part in node.values():
            _untitle(part)


def _name_enums(it: Json) -> None:
    """Move each choice of words that stands inside of something out under a name of its own: that of its model and field."""
    models: Json = it["components"]["schemas"]
    known = {tuple(model["enum"]): name for name, model in models.items() if "enum" in model}
    # A model that another one is made from comes first, so that the choice is named after it.
    for name in sorted(models, key=lambda n: (not n.endswith("Out"), n)):
        if "enum" not in models[name]:
            _name_enums_in(models[name].get("properties", {}), name.removesuffix("Out"), models, known)
    for operation in operations(it):
        for parameter in operation.get("parameters", []):
            _name_enums_in(
                parameter["schema"], _camel(operation["operationId"]) + _camel(parameter["name"]), models, known
            )


def _name_enums_in(node: Any, name: str, models: Json, known: dict[tuple[str, ...], str]) -> None:
    if isinstance(node, list):
        for part in node:
            _name_enums_in(part, name, models, known)
    if not isinstance(node, dict):
        return
    values = node.get("enum")
    if isinstance(values, list) and all(isinstance(v, str) for v in values):
        named = known.setdefault(tuple(values), name)
        models.setdefault(named, {"type": "string", "enum": values})
        del node["enum"], node["type"]
        node["$ref"] = REF + named
        return
    for key, part in node.items():
        if key not in {"example", "examples", "default"}:
            _name_enums_in(part, name if key in _KEYWORDS else name + _camel(key), models, known)


_KEYWORDS = {"anyOf", "oneOf", "allOf", "items", "properties", "additionalProperties", "prefixItems"}


def _camel(text: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]", text))


def _renamed(it: Json) -> Json:
    """Return it with ``BuildPage`` for what FastAPI calls ``Page_BuildOut_``."""
    text = re.sub(r"\bPage_(\w+?)(?:Out)?_(?=\")", r"\1Page", json.dumps(it))
    found: Json = json.loads(text)
    return found
