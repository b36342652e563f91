"""Answers the gateway gives itself: RFC 9457 problem documents."""

import json
from http import HTTPStatus

import h11

from app.errors import Refusal


def problem(parser: h11.Connection, refusal: Refusal, request_id: str, *, close: bool, bodiless: bool = False) -> bytes:
    """Write a whole answer: ``reason`` for programs, ``detail`` for people, ``instance`` to find it in the log.

    ``bodiless`` is for the answer to HEAD; ``close`` tells the client that no other request is taken.
    """
    try:
        title = HTTPStatus(refusal.status).phrase
    except ValueError:
        title = "Error"
    body = json.dumps(
        {
            "type": f"urn:slipway:problem:{refusal.reason}",
            "title": title,
            "status": refusal.status,
            "detail": refusal.detail,
            "reason": refusal.reason,
            "instance": f"urn:slipway:request:{request_id}",
        }
    ).encode()
    headers = [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-request-id", request_id),
        *refusal.headers.items(),
    ]
    if close:
        headers.append(("connection", "close"))
    out = parser.send(h11.Response(status_code=refusal.status, reason=title.encode(), headers=headers))
    if not bodiless:
        out += parser.send(h11.Data(data=body))
    return out + parser.send(h11.EndOfMessage())
