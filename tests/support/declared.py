"""Holds each refusal that a test meets to the description of its route: status and reason have to be declared there."""

import re
from functools import cache

import httpx

from app.main import described

MEDIA_TYPE = "application/problem+json"


@cache
def _routes() -> list[tuple[str, re.Pattern[str], dict[str, set[str]]]]:
    """Return method, pattern and reasons by status of every operation."""
    found = []
    for path, operations in described().openapi()["paths"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        for method, operation in operations.items():
            answers = {s: a.get("content", {}).get(MEDIA_TYPE, {}) for s, a in operation["responses"].items()}
            reasons = {status: {*content.get("examples", ())} for status, content in answers.items()}
            found.append((method.upper(), pattern, reasons))
    return found


def undeclared(method: str, path: str, status: int, reason: str) -> str | None:
    """Return what is not declared, in words; None for what is, and for what is no operation."""
    for known, pattern, reasons in _routes():
        if known == method and pattern.fullmatch(path) and reason not in reasons.get(str(status), ()):
            return f"{method} {pattern.pattern} does not declare {status} {reason}"
    return None


async def check(answer: httpx.Response) -> None:
    """Fail for a refusal that is not declared; a hook of httpx."""
    if answer.headers.get("content-type") == MEDIA_TYPE:
        await answer.aread()
        path = answer.request.url.path
        assert (
            wrong := undeclared(answer.request.method, path, answer.status_code, answer.json()["reason"])
        ) is None, wrong
