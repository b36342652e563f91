"""The kinds of values that requests are made of. What is refused is described too, so that generated clients can tell."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SecretStr,
    Strict,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema


class Received(BaseModel):
    """What comes as JSON, to which 2.0 is an integer: JSON Schema, "Validation", section 6.1.1."""

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in given.items()}


def _storable(value: str | SecretStr) -> str | SecretStr:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode (a lone surrogate is not)") from None
    return value


@dataclass(frozen=True)
class Storable:
    """Text that can be kept: PostgreSQL's JSON holds neither NUL nor half a surrogate pair, and no path could.

    Comes after a pattern, which the description would lose behind it, and which has to leave NUL out itself.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic, "Types", "Custom types"."""
        return core_schema.no_info_after_validator_function(_storable, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """See pydantic, "JSON Schema", "Customizing JSON Schema generation"."""
        return {"pattern": r"^[^\x00]*$"} | handler(core)


STORABLE = Storable()
Str = Annotated[str, STORABLE]
Secret = Annotated[SecretStr, STORABLE]

Int = Annotated[int, Strict()]
"""Left alone, pydantic takes true for 1 and "2" for 2."""
Float = Annotated[float, Strict()]


def _rfc3339(value: object) -> object:
    # Left alone, pydantic takes a number for seconds or milliseconds, whichever is likelier.
    if isinstance(value, str) and _TIME.fullmatch(value):
        return value
    raise ValueError("must be a time such as 2026-01-02T03:04:05Z")


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _utc(at: datetime) -> datetime:
    """An offset may lead out of the calendar, which has the years 1 to 9999: to its first or last moment, then."""
    try:
        return at.astimezone(UTC)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if at.year == 1 else datetime.max.replace(tzinfo=UTC)


Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc)]
"""RFC 3339, "Internet Date/Time Format": with an offset, so that it means one moment."""


@dataclass(frozen=True)
class Names:
    """Describes an object's names by ``propertyNames``: generators of clients make nothing of ``patternProperties``.

    ``reserved`` is a pattern of names that are refused, ``most`` how many there may be; the code sees to both elsewhere.
    """

    reserved: str | None = None
    most: int | None = None

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """See pydantic, "JSON Schema", "Customizing JSON Schema generation"."""
        schema = handler(core)
        ((pattern, values),) = schema.pop("patternProperties").items()
        names = schema.get("propertyNames", {}) | {"pattern": pattern}
        if self.reserved is not None:
            names["not"] = {"pattern": f"^({self.reserved})$"}
        if self.most is not None:
            schema["maxProperties"] = self.most
        return schema | {"additionalProperties": values, "propertyNames": names}
