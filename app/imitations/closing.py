"""A contract's document with every object closed, and validators for the schemas in it."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

try:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012
except ImportError:
    Draft202012Validator = None

#: False without the extra `imitations`: checks are then skipped, and counted.
AVAILABLE = Draft202012Validator is not None

_URN = "urn:contract"


class Side:
    """The document as one side of the exchange has to keep it: amended, and every object closed."""

    def __init__(self, document: Mapping[str, Any], changes: Mapping[str, Any], free: Iterable[str]) -> None:
        amended = copy.deepcopy(dict(document))
        for pointer, schema in changes.items():
            parent, _, last = pointer.rpartition("/")
            resolve(amended, f"#{parent}")[last.replace("~1", "/").replace("~0", "~")] = schema
        for pointer in free:
            resolve(amended, f"#{pointer}")["additionalProperties"] = True
        closed = _closed(amended)
        # What is one part of an `allOf` may not be closed by itself: the whole of it is.
        closed["x-open"] = {k: _closed(amended[k], parts=True) for k in ("components", "definitions") if k in amended}
        resource = DRAFT202012.create_resource(closed)
        self._registry: Any = Registry().with_resource(_URN, resource)
        self._validators: dict[str, Any] = {}

    def problems(self, pointer: str, body: bytes) -> Iterator[str]:
        """Yield what is wrong with a body."""
        try:
            content = json.loads(body)
        except ValueError:
            yield "is no JSON"
            return
        if pointer not in self._validators:
            schema = {"$ref": f"{_URN}#{pointer}"}
            self._validators[pointer] = Draft202012Validator(schema, registry=self._registry)
        for error in self._validators[pointer].iter_errors(content):
            yield f"at {error.json_path}: {error.message[:300]}"


def _closed(node: Any, *, parts: bool = False) -> Any:
    """Return a copy in which objects refuse what they don't name; ``parts`` leaves the outermost objects open."""
    if isinstance(node, list):
        return [_closed(n, parts=parts) for n in node]
    if not isinstance(node, dict):
        return node
    schema = {k: _member(k, v) for k, v in node.items() if k not in {"example", "examples"}}
    if parts and "properties" not in node and "allOf" not in node:
        return {k: _closed(v, parts=True) for k, v in node.items() if k not in {"example", "examples"}}
    several = "allOf" in node or ("properties" in node and ("oneOf" in node or "anyOf" in node))
    if several:
        for key in {"allOf", "oneOf", "anyOf"} & node.keys():
            schema[key] = [_part(s) for s in node[key]]
    if not parts and (several or isinstance(node.get("properties"), dict)) and "additionalProperties" not in node:
        schema["unevaluatedProperties"] = False
    if node.get("nullable") is True or node.get("x-nullable") is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _member(key: str, value: Any) -> Any:
    if key in {"properties", "patternProperties"} and isinstance(value, dict):
        return {k: _closed(v) for k, v in value.items()}
    return _closed(value)


def _part(schema: Any) -> Any:
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        return {**schema, "$ref": schema["$ref"].replace("#/", "#/x-open/", 1)}
    return _closed(schema, parts=True)


def resolve(document: Mapping[str, Any], reference: str) -> Any:
    """Return what a JSON pointer within the document, with or without its ``#``, points to."""
    node: Any = document
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        node = node[int(name)] if isinstance(node, list) else node[name]
    return node


def escape(text: str) -> str:
    """Return one step of a JSON pointer."""
    return text.replace("~", "~0").replace("/", "~1")
