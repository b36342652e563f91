"""The rules that the whole description keeps, so that clients generated from it are good."""

import re
from collections.abc import Iterator
from secrets import token_urlsafe
from typing import Any

import jsonschema
import pytest

from app.api.reasons import NOT_STARTED, WORDS
from app.api.schemas import Problem
from app.ids import new_id
from app.secrets import Keyring
from app.webhooks.message import new_secret
from tests.openapi.committed import description, text

Json = dict[str, Any]
IT = description()
MODELS: Json = IT["components"]["schemas"]
OPERATIONS = [(f"{m.upper()} {path}", o) for path, ms in IT["paths"].items() for m, o in ms.items()]
VERBS = {
    "add", "cancel", "claim", "complete", "create", "delete", "get", "grant", "heartbeat", "list", "migrate", "redeliver",
    "retry", "revoke", "rollback", "rotate", "sleep", "test", "update", "wake",
}  # fmt: skip
PUBLIC = {"get_health", "get_readiness"}


def contents() -> Iterator[tuple[str, Json]]:
    """Yield (where, media type) of every body and answer."""
    for label, operation in OPERATIONS:
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media, content in part.get("content", {}).items():
                yield f"{label} {media}", content


def named(schema: Json) -> str:
    """Return the model of a whole body or answer."""
    (ref,) = [s["$ref"] for s in (schema, *schema.get("anyOf", [])) if "$ref" in s]
    return str(ref).removeprefix("#/components/schemas/")


def test_it_is_openapi_3_1() -> None:
    assert IT["openapi"].startswith("3.1")
    assert {"info", "paths", "components", "servers", "tags", "webhooks"} <= set(IT)


def test_operation_ids_are_methods_of_a_client() -> None:
    ids = [o["operationId"] for _, o in OPERATIONS]
    assert len(ids) == len(set(ids))
    assert {i.partition("_")[0] for i in ids} <= VERBS
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", i) for i in ids)


@pytest.mark.parametrize(("label", "operation"), OPERATIONS, ids=[label for label, _ in OPERATIONS])
def test_an_operation_says_all_of_itself(label: str, operation: Json) -> None:
    assert operation["summary"]
    assert operation["description"]
    (tag,) = operation["tags"]
    assert tag in {t["name"] for t in IT["tags"]}
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), parameter["name"]
    answers = operation["responses"]
    needed = {"500", "503"}
    if operation["operationId"] in PUBLIC:
        assert "security" not in operation
    else:
        ((scheme, _),) = (s for wanted in operation["security"] for s in wanted.items())
        assert scheme == ("RunToken" if tag == "runs" else "ApiKey")
        needed |= {"401", "403", "422"}
    if "requestBody" in operation:
        needed |= {"400", "413", "422"}
    if "{" in label:
        needed |= {"404"}
    assert needed <= set(answers)
    for status, answer in answers.items():
        if int(status) >= 400:
            ((media, content),) = answer["content"].items()
            assert (media, content["schema"]) == ("application/problem+json", {"$ref": "#/components/schemas/Problem"})
            assert content["examples"]
            for reason, example in content["examples"].items():
                problem = IT["components"]["examples"][example["$ref"].rpartition("/")[2]]["value"]
                assert (problem["reason"], str(problem["status"])) == (reason, status)
                assert f"`{reason}`" in answer["description"]
    assert "WWW-Authenticate" in answers.get("401", {"headers": ["WWW-Authenticate"]})["headers"]
    assert "Retry-After" in answers["503"]["headers"]
    once = any(p["name"] == "Idempotency-Key" for p in operation.get("parameters", []))
    for status, answer in answers.items():
        if int(status) < 300:
            assert once == ("Idempotency-Replayed" in answer.get("headers", {}))
    if any(p["name"] == "cursor" for p in operation.get("parameters", [])):
        assert "Link" in answers["200"]["headers"]
    assert not once or "Retry-After" in answers["409"]["headers"]


def test_models_and_choices_have_names() -> None:
    def anonymous(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, list):
            for n, part in enumerate(node):
                yield from anonymous(part, f"{where}.{n}")
        elif isinstance(node, dict):
            words = node.get("enum", [])
            if "properties" in node or any(isinstance(w, str) for w in words):
                yield where
            for key, part in node.items():
                # What is in a stream is said by `contentSchema`, which no generator reads.
                if key not in {"contentSchema", "examples", "example", "default"}:
                    yield from anonymous(part, f"{where}.{key}")

    assert list(anonymous(IT["paths"], "paths")) == []
    for name, model in MODELS.items():
        assert list(anonymous([*model.get("properties", {}).values()], name)) == []
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name)
        assert "title" not in model.get("properties", {}).get("title", {}), name


def test_bodies_and_answers_have_examples_that_fit() -> None:
    for where, content in contents():
        schema = content["schema"]
        if "example" in content or schema.get("type") == "string":
            continue
        model = MODELS[named(schema)]
        assert model.get("examples"), f"{where}: add an example of {named(schema)} to app/api/examples.json"
    for name, model in MODELS.items():
        for example in model.get("examples", []):
            whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": MODELS}}
            jsonschema.Draft202012Validator(whole).validate(example)


CREDENTIALS = re.compile(r"slp_[\w-]{20,}|slr\.run_\w+\.|whsec_[\w+/=]{20,}|eyJ[\w-]{16,}|://[^/@]+:[^/@]+@")


def test_every_reason_is_one_of_an_operation_and_of_the_schema() -> None:
    problems = {e["value"]["reason"]: e["value"] for e in IT["components"]["examples"].values()}
    assert set(problems) == {*WORDS, *NOT_STARTED}
    for problem in problems.values():
        assert Problem.model_validate(problem).model_dump() == problem


def test_no_example_holds_a_secret() -> None:
    """What stands for one ends with ``…``, so that no reader takes it for one that works."""

    def secrets(node: Any, name: str = "") -> Iterator[str]:
        if isinstance(node, list):
            for part in node:  # of an answer: the names of secrets
                yield from secrets(part)
        elif isinstance(node, dict):
            for key, part in node.items():
                yield from secrets(part, name if name == "secrets" else key)
        elif isinstance(node, str) and name in {"key", "secret", "secrets", "token"}:
            yield node

    run_token = Keyring("k", {"k": bytes(32)}).run_token(new_id("run"), "k")
    for real in (f"slp_{token_urlsafe(32)}", new_secret(), run_token, "https://u:p@example.com"):
        assert CREDENTIALS.search(real)
    assert CREDENTIALS.findall(text(IT)) == []
    stood_for = [s for m in MODELS.values() for e in m.get("examples", []) for s in secrets(e)]
    assert len(stood_for) > 4
    assert [s for s in stood_for if not s.endswith("…")] == []


def test_patterns_mean_the_same_in_every_language() -> None:
    def patterns(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for part in node:
                yield from patterns(part)
        elif isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                yield node["pattern"]
            for part in node.values():
                yield from patterns(part)

    found = {*patterns(IT)}
    assert found
    # What is a space, a digit or a letter differs: U+0085 is a space to Rust and Python, and none to ECMAScript.
    assert [p for p in found if re.search(r"\\[sSdDwWbB]", p)] == []
    assert all(p.startswith("^") and p.endswith("$") for p in found), "it would match a part"


def test_streams_are_described() -> None:
    streams = [
        label for label, o in OPERATIONS if "text/event-stream" in o["responses"].get("200", {}).get("content", {})
    ]
    assert streams == ["GET /v1/events", "GET /v1/builds/{build_id}/events", "GET /v1/builds/{build_id}/logs"]
    for label, operation in OPERATIONS:
        if label in streams:
            assert {"last-event-id", "after"} <= {p["name"].lower() for p in operation["parameters"]}
            assert "\nid: " in operation["responses"]["200"]["content"]["text/event-stream"]["example"]


def test_scopes_and_server_are_said() -> None:
    schemes = IT["components"]["securitySchemes"]
    assert set(schemes) == {"ApiKey", "RunToken"}
    scopes = {s for _, o in OPERATIONS for wanted in o.get("security", []) for s in wanted.get("ApiKey", [])}
    assert scopes
    assert all(f"`{scope}`" in schemes["ApiKey"]["description"] for scope in scopes)
    assert IT["servers"][0]["url"] == "/"


def test_nothing_of_the_framework_s_own_errors_is_left() -> None:
    assert not {"HTTPValidationError", "ValidationError"} & set(MODELS)
