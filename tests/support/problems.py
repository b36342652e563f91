"""Looking at the API's refusals."""

from typing import Any

import httpx


def problem(answer: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """Check that an answer is a whole problem document and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["reason"] == reason
    assert body["status"] == status
    assert body["type"] == f"https://slipway.dev/problems/{reason.replace('_', '-')}"
    assert body["title"]
    assert body["detail"]
    return body
