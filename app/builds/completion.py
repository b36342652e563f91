"""What a builder's last word looks like, how it is signed, and what is made of it."""

import base64
import hashlib
import hmac
import time
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, FiniteFloat

from app.errors import invalid, unauthorized
from app.fields import Int, Received
from app.lifecycle import Reason

SKEW_SECONDS = 300
BUILDER_REASONS = frozenset(
    {
        Reason.SOURCE_FETCH,
        Reason.SOURCE_INVALID,
        Reason.SOURCE_REJECTED,
        Reason.NOT_A_PROGRAM,
        Reason.TOOLCHAIN_MISMATCH,
        Reason.COMPILE_ERROR,
        Reason.OUT_OF_MEMORY,
        Reason.PUSH_FAILED,
        Reason.REGISTRY_UNAVAILABLE,
        Reason.TIMEOUT,
        Reason.INTERNAL_ERROR,
    }
)


class Lenient(Received):
    """From a builder: fields that we don't know yet are ignored, so that a newer builder can talk to us."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


def _without_nul(value: object) -> object:
    """What a compiler prints may hold NUL, which PostgreSQL takes neither as text nor in JSON."""
    return value.replace("\x00", "�") if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_without_nul)]
Count = Annotated[Int, Field(ge=0, le=2**53)]


class BuiltImage(Lenient):
    """Where the image was pushed."""

    repository: Text = Field(max_length=255)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: Count


class BuiltSource(Lenient):
    """What was really built."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")


class Diagnostic(Lenient):
    """One message of the compiler."""

    file: Text = Field("", max_length=1024)
    line: Count | None = None
    column: Count | None = None
    message: Text = Field(max_length=4096)


class Module(Lenient):
    """One module that was compiled in."""

    path: Text = Field(max_length=1024)
    version: Text = Field("", max_length=256)
    sum: Text | None = Field(None, max_length=256)


class Completion(Lenient):
    """A builder's last word."""

    instance: str = Field(min_length=1, max_length=128)
    status: Literal["succeeded", "failed"]
    reason: str | None = Field(None, max_length=64)
    message: Text | None = Field(None, max_length=16384)
    exit_code: Annotated[Int, Field(ge=-(2**31), lt=2**31)] | None = None
    image: BuiltImage | None = None
    source: BuiltSource | None = None
    toolchain: dict[Text, Text] = Field(default_factory=dict)
    isolation: Literal["netns", "goproxy_off", "none"] | None = None
    modules: list[Module] = Field(default_factory=list, max_length=2000)
    diagnostics: list[Diagnostic] = Field(default_factory=list, max_length=200)
    timings: dict[Text, FiniteFloat] = Field(default_factory=dict)


def verify_signature(token: str, message_id: str, timestamp: str, signature: str, body: bytes) -> None:
    """Check a completion's Standard Webhooks signature; 401 when it isn't good or its time is off.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    try:
        skew = abs(time.time() - int(timestamp))
    except ValueError:
        raise unauthorized("webhook-timestamp must be Unix seconds.") from None
    if skew > SKEW_SECONDS:
        raise unauthorized(f"webhook-timestamp is {skew:.0f} seconds off; at most {SKEW_SECONDS} are taken.")
    signed = f"{message_id}.{timestamp}.".encode() + body
    good = "v1," + base64.b64encode(hmac.digest(token.encode(), signed, hashlib.sha256)).decode()
    if not any(hmac.compare_digest(good.encode(), s.encode()) for s in signature.split()):
        raise unauthorized("webhook-signature does not match.")


def verdict(completion: Completion) -> Reason | None:
    """Return why it failed, None for a success; a reason that is not a builder's to give counts as our own fault."""
    if completion.status == "succeeded":
        if completion.image is None or completion.source is None:
            raise invalid("image", "a successful completion names image and source")
        return None
    try:
        reason = Reason(completion.reason or "")
    except ValueError:
        return Reason.INTERNAL_ERROR
    return reason if reason in BUILDER_REASONS else Reason.INTERNAL_ERROR


def sbom(completion: Completion) -> dict[str, Any]:
    """Return the modules compiled in as CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/)."""
    components = [
        {
            "type": "library",
            "name": m.path,
            "version": m.version,
            "purl": f"pkg:golang/{m.path}@{m.version}",
        }
        for m in completion.modules
    ]
    toolchain = completion.toolchain.get("go", "")
    components.append(
        {
            "type": "library",
            "name": "std",
            "version": toolchain,
            "purl": f"pkg:golang/std@{toolchain.removeprefix('go')}",
        }
    )
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}
