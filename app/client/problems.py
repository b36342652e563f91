"""Answers that are refusals, in words for a person."""

import json
import socket
import ssl
from http import HTTPStatus

import httpx

from app.client.failed import Code, Failed, Json

ADVICE = {
    "unauthorized": "Run `slipway login`, or set SLIPWAY_API_KEY.",
    "insufficient_scope": "Use a key that has this scope: `slipway keys create NAME --scope SCOPE`.",
    "operators_only": "Ask the operator, whose key is one of the project `default`.",
    "route_not_found": "Is this the address of a Slipway, and of this version? `slipway version` tells yours.",
    "too_large": "Leave out what the build does not need: name it in .gitignore.",
    "source_not_found": "Send the source again.",
    "platform_differs": "Move it first: `slipway migrate NAME --to PLATFORM`.",
    "unknown_host": "This is the gateway, behind which services are; the API has an address of its own.",
}


def refused(answer: httpx.Response) -> Failed:
    """Return what a refusal means; its body must have been read."""
    problem = document(answer)
    reason, detail = str(problem.get("reason")), str(problem.get("detail"))
    fields = [e for e in problem.get("errors") or () if str(e.get("message")) not in detail]
    lines = [detail, *(f"  {e.get('field')}: {e.get('message')}" for e in fields)]
    code = Code.ELSEWHERE if answer.status_code >= 500 else Code.REFUSED
    return Failed(code, "\n".join(lines) + f" ({reason})", advice=ADVICE.get(reason), problem=problem)


def document(answer: httpx.Response) -> Json:
    """Return the problem document, or one made of an answer that has none: something else than Slipway gave it."""
    try:
        found = json.loads(answer.content)
    except ValueError:
        found = None
    if isinstance(found, dict) and {"reason", "detail"} <= found.keys():
        return found
    phrase = f"{answer.status_code} {_phrase(answer.status_code)}"
    detail = f"{answer.request.url} answered {phrase}, and not as Slipway does."
    return {"status": answer.status_code, "reason": "http_error", "detail": detail}


def unreachable(url: str, error: Exception | str) -> Failed:
    """Return what no answer means."""
    advice = "Is it running, and is this its address? Give another one with --url, SLIPWAY_URL or `slipway login`."
    return Failed(Code.UNREACHABLE, f"{url} can't be reached: {error or type(error).__name__}", advice=advice)


def hopeless(error: BaseException) -> bool:
    """Tell whether another try would end alike: nobody has that name, or what answers speaks no TLS that we may trust."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"
