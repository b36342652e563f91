"""Looking at the API's refusals."""

from typing import Any

import httpx


def problem(
    answer: httpx.Response, status: int, reason: str | None = None, *, field: str | None = None
) -> dict[str, Any]:
    """Check that an answer is a whole problem document, with this reason and about this field if given; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    reason = reason or body["reason"]
    assert body["reason"] == reason
    assert field is None or field in [e["field"] for e in body["errors"]]
    assert body["status"] == status
    assert body["type"] == f"https://slipway.dev/problems/{reason.replace('_', '-')}"
    assert body["title"]
    assert body["detail"]
    return body
