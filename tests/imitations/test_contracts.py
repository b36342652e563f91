"""The checks against official contracts: every object is closed, and what could not be checked is counted."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.imitations import closing
from app.imitations.contracts import Amendments, Exchange, OpenApi, Unchecked, load
from tests.support.contracts import Record

pytestmark = pytest.mark.skipif(not closing.AVAILABLE, reason="the extra `imitations` is not installed")

SCHEMAS: dict[str, Any] = {
    "Base": {"type": "object", "properties": {"id": {"type": "string"}}},
    "Thing": {
        "allOf": [
            {"$ref": "#/components/schemas/Base"},
            {"properties": {"size": {"type": "integer", "nullable": True}}},
        ]
    },
    "Free": {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
    "Kind": {"type": "string", "enum": ["x", "y"]},
    "Box": {
        "type": "object",
        "required": ["things"],
        "properties": {
            "things": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}},
            "free": {"$ref": "#/components/schemas/Free"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "anything": {"type": "object"},
            "kind": {"$ref": "#/components/schemas/Kind"},
            # A property that is called like a keyword is a property.
            "properties": {"type": "object", "properties": {"b": {"type": "string"}}},
        },
    },
}
BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Box"}}}, "required": True}
DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.1",
    "paths": {
        "/v1/boxes/{id}": {
            "post": {
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
                    {"name": "limit", "in": "query", "schema": {"type": "integer"}},
                    {"name": "force", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "label.{key}", "in": "query", "schema": {"type": "string"}},
                    {"name": "x-nonce", "in": "header", "required": True, "schema": {"type": "string"}},
                ],
                "requestBody": BODY,
                "responses": {"200": {"content": BODY["content"]}, "204": {"description": "nothing"}},
            }
        }
    },
    "components": {"schemas": SCHEMAS},
}


def swagger() -> dict[str, Any]:
    """The same in Swagger 2.0."""
    text = json.dumps(DOCUMENT).replace("#/components/schemas/", "#/definitions/")
    document: dict[str, Any] = json.loads(text)
    operation = document["paths"]["/v1/boxes/{id}"]["post"]
    del operation["requestBody"]
    schema = {"$ref": "#/definitions/Box"}
    operation["parameters"].append({"name": "body", "in": "body", "required": True, "schema": schema})
    operation["responses"] = {"200": {"schema": schema}}
    return {"swagger": "2.0", "paths": document["paths"], "definitions": document["components"]["schemas"]}


def exchange(body: object = None, **changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "method": "POST",
        "path": "/v1/boxes/1",
        "query": "",
        "headers": {"content-type": "application/json", "x-nonce": "1"},
        "body": json.dumps({"things": []} if body is None else body).encode(),
        "status": 200,
        "answer_type": "application/json",
        "answer": b'{"things": []}',
        **changes,
    }
    return Exchange(**values)


@pytest.fixture(params=["openapi", "swagger"])
def contract(request: pytest.FixtureRequest) -> OpenApi:
    return OpenApi(DOCUMENT if request.param == "openapi" else swagger(), Amendments())


GOOD = [
    exchange(),
    exchange({"things": [{"id": "1", "size": 2}], "free": {"b": 1}, "labels": {"k": "v"}, "anything": {"c": 1}}),
    exchange({"things": [{"size": None}], "properties": {"b": "1"}, "kind": "x"}),
    exchange(query="limit=3&force=true&label.a=b"),
    exchange(status=500, answer=b"oops", answer_type="text/plain"),
    exchange(status=418, answer=b'{"no": "schema"}'),
]


@pytest.mark.parametrize("one", GOOD)
def test_what_keeps_the_contract(contract: OpenApi, one: Exchange) -> None:
    contract.check(one)
    assert (contract.violations, contract.checked) == ([], 1)


BAD = [
    (exchange({"things": [], "thigns": []}), "thigns"),
    (exchange({"things": [{"sise": 1}]}), "sise"),
    (exchange({"things": [], "properties": {"c": 1}}), "'c'"),
    (exchange({"things": [], "labels": {"k": 1}}), "labels"),
    (exchange({"things": [], "kind": "z"}), "kind"),
    (exchange({}), "required"),
    (dataclasses.replace(exchange(), body=b""), "the body is required"),
    (exchange(headers={"x-nonce": "1", "content-type": "text/plain"}), "not sent as JSON"),
    (exchange(headers={"content-type": "application/json"}), "x-nonce"),
    (exchange(query="limit=x"), "integer"),
    (exchange(query="force=yes"), "boolean"),
    (exchange(query="forse=true"), "forse"),
    (exchange(answer=b'{"things": [], "extra": 1}'), "extra"),
    (exchange(path="/v1/boxen/1"), "no such operation"),
    (exchange(method="PUT"), "no such operation"),
]


@pytest.mark.parametrize(("one", "said"), BAD)
def test_what_breaks_it(contract: OpenApi, one: Exchange, said: str) -> None:
    contract.check(one)
    assert any(said in v for v in contract.violations), contract.violations


def test_amendments_are_of_one_side() -> None:
    pointer = "/components/schemas/Kind"
    contract = OpenApi(
        DOCUMENT,
        Amendments(answers={pointer: {"type": "boolean"}}, query={"POST /v1/boxes/{id}": frozenset({"wait"})}),
    )
    contract.check(exchange(query="wait=1", answer=b'{"things": [], "kind": true}'))
    assert contract.violations == []
    contract.check(exchange({"things": [], "kind": True}))
    assert contract.violations
    assert all("body" in v for v in contract.violations)


def test_without_a_contract_all_is_counted(tmp_path: Path) -> None:
    for contract in (load(None, "x.json"), load(tmp_path, "x.json")):
        assert isinstance(contract, Unchecked)
        contract.check(exchange(query="nonsense=1"))
        assert (contract.skipped, contract.checked, contract.violations) == (1, 0, [])


def test_what_is_wrong_over_the_whole_run_fails_it(tmp_path: Path) -> None:
    run, worker = Record(), Record(Counter(fly=3), Counter(koyeb=2), Counter(fly=0, railway=0))
    run.add(worker.as_words())
    assert run.wrong(None) == []
    assert run.told() == [
        "fly: 3 exchanges checked against its official contract",
        "koyeb: 2 exchanges were not checked against its official contract",
    ]
    assert run.wrong(tmp_path) == [f"koyeb: 2 exchanges not checked, though {tmp_path} is there"]
    run.add({"violations": {"railway": 1}})
    assert run.wrong(None) == ["railway: 1 violations of its official contract"]
