"""Checks requests and answers against a platform's official contract: OpenAPI 3.0 and 3.1, Swagger 2.0.

None of the official files closes its objects, and platforms drop misspelt fields silently. So every object that names
its properties is treated as closed here, unless it says ``additionalProperties``. Where the contract is known to be wrong, an
``amend`` puts it right, with its source.

Without a contract (``Unchecked``) nothing is refused and everything is counted, so that a run can say what it did not check.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from app.imitations.closing import AVAILABLE, Side, escape, resolve

_VERBS = {"get", "put", "post", "delete", "patch", "head", "options"}


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, as they went over the wire; ``query`` is the raw query string."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    answer_type: str
    answer: bytes


class Contract(Protocol):
    """Collects what is wrong in ``violations``; ``checked`` and ``skipped`` count exchanges."""

    violations: list[str]
    checked: int
    skipped: int

    def check(self, exchange: Exchange) -> None:
        """Look at one exchange and keep what is wrong with it."""
        ...


@dataclass
class Unchecked:
    """No contract at hand."""

    violations: list[str] = field(default_factory=list)
    checked: int = 0
    skipped: int = 0

    def check(self, exchange: Exchange) -> None:
        """Count it."""
        self.skipped += 1


@dataclass(frozen=True)
class Amendments:
    """What is known to differ from the official file, each with its source.

    ``requests`` and ``answers`` map JSON pointers into the document to schemas that replace what is there; ``query`` maps
    ``"DELETE /v1/apps/{app_name}"`` to names that are taken there all the same. ``free`` objects are left open.
    """

    requests: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, frozenset[str]] = field(default_factory=dict)
    free: frozenset[str] = frozenset()


def load(folder: Path | None, name: str, amendments: Amendments | None = None) -> Contract:
    """Return the contract ``name`` of this folder, or an ``Unchecked`` when it or the library is not there."""
    if folder is None or not AVAILABLE or not (folder / name).is_file():
        return Unchecked()
    return OpenApi(_read(folder / name), amendments or Amendments())


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


class OpenApi:
    """A contract in OpenAPI or Swagger form."""

    def __init__(self, document: Mapping[str, Any], amendments: Amendments) -> None:
        self.violations: list[str] = []
        self.checked = 0
        self.skipped = 0
        self._extra_query = amendments.query
        self._sides, self._operations = _compiled(document, amendments)

    def check(self, exchange: Exchange) -> None:
        """Look at method, path, query, headers, both bodies; say what is wrong once each."""
        found = self._find(exchange.method, exchange.path)
        if found is None:
            self.violations.append(f"{exchange.method} {exchange.path}: the contract has no such operation")
            return
        self.checked += 1
        problems = [*self._request(found, exchange), *self._answer(found, exchange)]
        self.violations += [f"{exchange.method} {found.template}: {p}" for p in problems]

    def _find(self, method: str, path: str) -> "_Operation | None":
        fitting = [o for o in self._operations if o.method == method and o.pattern.fullmatch(path)]
        # A literal segment beats a parameter: OpenAPI's own rule for paths that overlap.
        return min(fitting, key=lambda o: o.template.count("{"), default=None)

    def _request(self, found: "_Operation", exchange: Exchange) -> Iterator[str]:
        yield from self._query(found, exchange.query)
        for parameter in found.parameters("header"):
            if parameter.get("required") and parameter["name"].lower() not in exchange.headers:
                yield f"the header {parameter['name']} is required"
        pointer, required = found.request_body
        if pointer is None:
            if exchange.body not in {b"", b"{}"}:
                yield "takes no body"
        elif exchange.body:
            if "json" not in exchange.headers.get("content-type", ""):
                yield "the body is not sent as JSON"
            yield from (f"body {p}" for p in self._sides["request"].problems(pointer, exchange.body))
        elif required:
            yield "the body is required"

    def _query(self, found: "_Operation", query: str) -> Iterator[str]:
        given = parse_qsl(query, keep_blank_values=True)
        known = {p["name"]: p for p in found.parameters("query")}
        for name in [n for n, p in known.items() if p.get("required")]:
            if name not in {n for n, _ in given}:
                yield f"the query parameter {name} is required"
        extra = self._extra_query.get(f"{found.method} {found.template}", frozenset())
        for name, value in given:
            parameter = next((p for n, p in known.items() if _named(n, name)), None)
            if parameter is None:
                if name not in extra:
                    yield f"the query parameter {name} is not in the contract"
                continue
            schema = parameter.get("schema", parameter)
            # A list may come comma separated; each of its words has to be good.
            for word in value.split(",") if schema.get("enum") else [value]:
                if problem := _spelled(schema, word):
                    yield f"the query parameter {name}={value} {problem}"

    def _answer(self, found: "_Operation", exchange: Exchange) -> Iterator[str]:
        pointer = found.answer_body(exchange.status)
        if pointer is None or not exchange.answer:
            return
        if "json" in exchange.answer_type:
            yield from (
                f"answer {exchange.status} {p}" for p in self._sides["answer"].problems(pointer, exchange.answer)
            )


@dataclass(frozen=True)
class _Operation:
    method: str
    template: str
    pattern: re.Pattern[str]
    content: Mapping[str, Any]
    shared: tuple[Any, ...]
    document: Mapping[str, Any]

    @property
    def _pointer(self) -> str:
        return f"/paths/{escape(self.template)}/{self.method.lower()}"

    def parameters(self, where: str) -> Iterator[Mapping[str, Any]]:
        for parameter in (*self.shared, *self.content.get("parameters", ())):
            real = resolve(self.document, parameter["$ref"]) if "$ref" in parameter else parameter
            if real["in"] == where:
                yield real

    @property
    def request_body(self) -> tuple[str | None, bool]:
        """Return the pointer to the body's schema, and whether a body is required."""
        for index, parameter in enumerate(self.content.get("parameters", ())):
            if parameter.get("in") == "body":
                return f"{self._pointer}/parameters/{index}/schema", bool(parameter.get("required"))
        body = self.content.get("requestBody")
        if body is None or "application/json" not in body.get("content", {}):
            return None, False
        return f"{self._pointer}/requestBody/content/application~1json/schema", bool(body.get("required"))

    def answer_body(self, status: int) -> str | None:
        """Return the pointer to the schema of an answer with this status, None where the contract leaves it open."""
        for code in (str(status), "default"):
            answer = self.content.get("responses", {}).get(code)
            if answer is None:
                continue
            base = f"{self._pointer}/responses/{code}"
            if "schema" in answer:
                return f"{base}/schema"
            if "application/json" in answer.get("content", {}):
                return f"{base}/content/application~1json/schema"
            return None
        return None


#: By document and amendments, which it keeps: to close the objects of a large file takes longer than most tests.
_COMPILED: dict[tuple[int, int], tuple[Any, ...]] = {}


def _compiled(document: Mapping[str, Any], amendments: Amendments) -> tuple[dict[str, Side], list["_Operation"]]:
    key = (id(document), id(amendments))
    if key not in _COMPILED:
        sides = {
            "request": Side(document, amendments.requests, amendments.free),
            "answer": Side(document, amendments.answers, amendments.free),
        }
        _COMPILED[key] = (sides, list(_operations(document)), document, amendments)
    sides, operations, *_ = _COMPILED[key]
    return sides, operations


def _operations(document: Mapping[str, Any]) -> Iterator[_Operation]:
    for template, item in document["paths"].items():
        pattern = re.compile(re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template)))
        for verb in _VERBS & item.keys():
            yield _Operation(verb.upper(), template, pattern, item[verb], tuple(item.get("parameters", ())), document)


def _named(declared: str, given: str) -> bool:
    """Tell whether a declared parameter is this one; ``metadata.{key}`` stands for any key."""
    return re.fullmatch(re.sub(r"\\\{[^}]*\\\}", ".+", re.escape(declared)), given) is not None


def _spelled(schema: Mapping[str, Any], value: str) -> str | None:
    kind = schema.get("type")
    if kind == "integer" and not re.fullmatch(r"-?\d+", value):
        return "is no integer"
    if kind == "boolean" and value not in {"true", "false"}:
        return "is no boolean"
    if schema.get("enum") and value not in schema["enum"]:
        return f"is none of {schema['enum']}"
    return None
