"""What an imitation of a GraphQL platform needs: a reader for the documents it gets, and the check against the official schema.

The reader takes what clients of ours may write, so that an imitation works without the schema: one operation, fragments,
arguments that are variables or plain values. With the schema and graphql-core at hand, ``Schema`` validates each document and
its variables, and each answer by executing the document over it: what the schema does not know or does not allow is a violation.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from app.imitations.contracts import Contract, Exchange, Unchecked

try:
    import graphql
    from graphql.execution.values import get_variable_values

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

_TOKEN = re.compile(r'\.\.\.|[{}()\[\]:$!=]|"(?:[^"\\]|\\.)*"|[\w.+-]+')


class Unreadable(Exception):
    """A document that the reader can't follow."""


@dataclass(frozen=True)
class Field:
    """One selected field with its arguments, variables put in."""

    name: str
    arguments: Mapping[str, Any]
    fields: tuple["Field", ...]


class _Reader:
    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        self._tokens = _TOKEN.findall(re.sub(r"#.*", "", text))
        self._at = 0
        self._variables = variables
        self._fragments: dict[str, int] = {}

    def operation(self) -> tuple[Field, ...]:
        start = None
        while self._at < len(self._tokens):
            kind = self._next()
            if kind == "fragment":
                name = self._next()
                self._fragments[name] = self._at + 2  # past `on Type`
            elif kind not in {"query", "mutation"} or start is not None:
                raise Unreadable(f"one query or mutation is read, not {kind}")
            else:
                start = self._tokens.index("{", self._at)
            self._at = self._close(self._tokens.index("{", self._at))
        if start is None:
            raise Unreadable("no operation")
        return self._selection(start)

    def _next(self) -> str:
        self._at += 1
        if self._at > len(self._tokens):
            raise Unreadable("the document ends too early")
        token: str = self._tokens[self._at - 1]
        return token

    def _close(self, at: int) -> int:
        """Return the place after the bracket that closes the one at ``at``."""
        depth = 0
        for i in range(at, len(self._tokens)):
            depth += {"{": 1, "}": -1}.get(self._tokens[i], 0)
            if depth == 0:
                return i + 1
        raise Unreadable("a bracket is not closed")

    def _selection(self, start: int) -> tuple[Field, ...]:
        self._at = start + 1
        found: list[Field] = []
        while (word := self._next()) != "}":
            if word == "...":
                name = self._next()
                back = self._at
                found += self._selection(self._fragments[name])
                self._at = back
                continue
            arguments: dict[str, Any] = {}
            if self._peek() == "(":
                self._next()
                while (name := self._next()) != ")":
                    self._next()
                    arguments[name] = self._value()
            inner = self._selection(self._at) if self._peek() == "{" else ()
            found.append(Field(word, arguments, inner))
        return tuple(found)

    def _peek(self) -> str:
        token: str = self._tokens[self._at] if self._at < len(self._tokens) else ""
        return token

    def _value(self) -> Any:
        word = self._next()
        if word == "$":
            return self._variables.get(self._next())
        try:
            return json.loads(word)
        except ValueError:
            return word


def read(text: str, variables: Mapping[str, Any]) -> tuple[Field, ...]:
    """Return the root fields that a document selects; Unreadable when it is something else."""
    try:
        return _Reader(text, variables).operation()
    except (KeyError, ValueError) as e:
        raise Unreadable(str(e)) from e


def select(value: Any, fields: tuple[Field, ...]) -> Any:
    """Return of a value what is selected of it; a member that takes arguments is a function of them.

    Unreadable when it has no such member.
    """
    if isinstance(value, list):
        return [select(v, fields) for v in value]
    if value is None or not fields:
        return value
    if unknown := [f.name for f in fields if f.name not in value]:
        raise Unreadable(f"Cannot query field {unknown[0]}")
    members = {f.name: (value[f.name], f) for f in fields}
    return {n: select(v(f.arguments) if callable(v) else v, f.fields) for n, (v, f) in members.items()}


# --------------------------------------------------------------------------------------------------- contract


def load(folder: Path | None, name: str) -> Contract:
    """Return the schema ``name`` of this folder, or an ``Unchecked`` when it or the library is not there."""
    if folder is None or not AVAILABLE or not (folder / name).is_file():
        return Unchecked()
    return Schema(_schema(folder / name))


@cache
def _schema(path: Path) -> Any:
    # The official schema breaks a rule on deprecations that newer libraries hold schemas to.
    return graphql.build_schema(path.read_text(), assume_valid=True)


@dataclass
class Schema:
    """A contract in GraphQL's schema language. Its objects are closed by nature."""

    schema: Any = field(repr=False)
    violations: list[str] = field(default_factory=list)
    checked: int = 0
    skipped: int = 0

    def check(self, exchange: Exchange) -> None:
        """Look at document, variables and answer; say what is wrong once each."""
        self.checked += 1
        try:
            body = json.loads(exchange.body)
            answer = json.loads(exchange.answer)
        except ValueError:
            self.violations.append(f"{exchange.path}: request or answer is no JSON")
            return
        self.violations += [f"{body.get('operationName')}: {p}" for p in self.problems(body, answer)]

    def invalid(self, text: str) -> list[str]:
        """Return what the schema does not allow in a document."""
        return [e.message for e in graphql.validate(self.schema, graphql.parse(text))]

    def problems(self, body: Mapping[str, Any], answer: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield what is wrong with a request and, if given, with its answer."""
        try:
            document = graphql.parse(body["query"])
        except graphql.GraphQLError as e:
            yield f"the document can't be parsed: {e.message}"
            return
        wrong = graphql.validate(self.schema, document)
        yield from (e.message for e in wrong)
        operation = graphql.get_operation_ast(document, body.get("operationName"))
        if operation is None:
            yield "there is no operation of that name"
        if wrong or operation is None:
            return
        variables = body.get("variables") or {}
        definitions = operation.variable_definitions or ()
        declared = {v.variable.name.value for v in definitions}
        yield from (f"the variable {name} is not declared" for name in variables.keys() - declared)
        values = get_variable_values(self.schema, definitions, variables)
        if isinstance(values, list):
            yield from (e.message for e in values)
        elif answer is not None and not answer.get("errors"):
            yield from self._answer(document, body, answer["data"])

    def _answer(self, document: Any, body: Mapping[str, Any], data: Any) -> Iterator[str]:
        result = graphql.execute_sync(
            self.schema,
            document,
            root_value=data,
            variable_values=body.get("variables"),
            operation_name=body.get("operationName"),
        )
        yield from (f"answer: {e.message}" for e in result.errors or ())
        if not result.errors and result.data != data:
            yield "answer: it is not what was selected"
