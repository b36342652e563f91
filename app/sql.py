"""Plain SQL, for what every build goes through.

SQLAlchemy's session costs more there than PostgreSQL does. So the busy verbs write their statements out and send them by
asyncpg itself, and what is shared with the others takes both kinds of ``Session``. Values are ``$1``, ``$2`` …; JSON goes in
as text and comes back parsed, as it does on SQLAlchemy's connections. Rows come back as objects of the models' classes with
no session behind them: changing one changes nothing in the database.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, TypeVar

import asyncpg
from pydantic_core import to_json
from sqlalchemy import ClauseElement, ColumnElement, Enum, Table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import class_mapper

from app.models import Base

M = TypeVar("M", bound=Base)
Record = Mapping[str, Any]
Pool = asyncpg.Pool

_DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]


class Transaction:
    """One transaction on a connection of asyncpg's; ``info`` holds its outbox, as a session's does.

    Its first statement begins it. One that consists of nothing but its ``last`` needs neither BEGIN nor COMMIT.
    """

    def __init__(self, connection: Any) -> None:
        self.info: dict[Any, Any] = {}
        self._connection = connection
        self._begun: Any = None

    async def fetch(self, statement: str, *values: Any, last: bool = False) -> Sequence[Record]:
        """Run a statement and return its rows."""
        if self._begun is None and not last:
            begun = self._connection.transaction()
            await begun.__aenter__()
            self._begun = begun
        rows: Sequence[Record] = await self._connection.fetch(statement, *values)
        return rows

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._begun is not None:
            await self._begun.__aexit__(*error)


Session = AsyncSession | Transaction


@dataclass(frozen=True, slots=True)
class Expression:
    """A piece of SQL to use as a value or a condition; each ``?`` in it takes the next of ``values``."""

    text: str
    values: tuple[Any, ...] = ()


NOW = Expression("now()")


def after(seconds: float) -> Expression:
    """Return the time so many seconds after the transaction's begin."""
    return Expression("now() + make_interval(secs => ?)", (float(seconds),))


# --------------------------------------------------------------------------------------------------- statements


async def fetch(session: Session, statement: str, *values: Any) -> Sequence[Record]:
    """Run a statement in the session's transaction and return its rows."""
    if isinstance(session, Transaction):
        return await session.fetch(statement, *values)
    result = await (await session.connection()).exec_driver_sql(statement, values)
    return result.mappings().all() if result.returns_rows else []  # type: ignore[return-value]


async def fetch_one(session: Session, statement: str, *values: Any) -> Record | None:
    """Run a statement and return its first row; None when there is none."""
    rows = await fetch(session, statement, *values)
    return rows[0] if rows else None


async def insert(session: Session, model: type[M], **values: Any) -> M:
    """Insert a row and return it whole, with what the database filled in."""
    row = await insert_unless(session, model, None, **values)
    assert row is not None
    return row


async def insert_unless(session: Session, model: type[M], taken: str | None, **values: Any) -> M | None:
    """Do the same, unless there is such a row; ``taken`` names the unique index by its columns and its condition."""
    bound = _Bound(model)
    marks = ", ".join(bound.mark(name, value) for name, value in values.items())
    rest = f"on conflict {taken} do nothing returning *" if taken else "returning *"
    statement = f"insert into {model.__tablename__} ({', '.join(values)}) values ({marks}) {rest}"  # noqa: S608 - our own names
    row = await fetch_one(session, statement, *bound.values)
    return load(model, row) if row else None


async def insert_all(
    session: Session,
    model: type[M],
    rows: Sequence[Mapping[str, Any]],
    *,
    taken: str | None = None,
    computed: Mapping[str, str] | None = None,
    values: Sequence[Any] = (),
) -> list[M]:
    """Insert rows with the same columns, none of them bytes, by one statement; returns what ``taken`` did not keep out.

    ``computed`` are columns by expressions, over the given row as ``r`` and ``values``, the first of which is ``$2``.
    """
    computed = computed or {}
    names = ", ".join([*rows[0], *computed])
    what = ", ".join([*(f"r.{name}" for name in rows[0]), *computed.values()])
    rest = f"on conflict {taken} do nothing returning *" if taken else "returning *"
    table = model.__tablename__
    statement = (
        f"insert into {table} ({names}) select {what} from jsonb_populate_recordset(null::{table}, $1) as r {rest}"  # noqa: S608 - our own names
    )
    found = await fetch(session, statement, as_json(rows), *values)
    return [load(model, row) for row in found]


async def update(
    session: Session,
    model: type[M],
    where: Mapping[str, Any],
    *conditions: Expression | ColumnElement[bool],
    returning: Sequence[str] = (),
    **values: Any,
) -> Record | None:
    """Update the row that meets ``where`` and all ``conditions``; None when none did.

    Returns its id, what the database worked out of ``values``, and what else was asked for.
    """
    computed = [n for n, v in values.items() if isinstance(v, Expression | ClauseElement)]
    statement, bound = compose_update(model, where, conditions, values, returning=[*returning, *computed])
    return await fetch_one(session, statement, *bound)


def compose_update(
    model: type[Base],
    where: Mapping[str, Any],
    conditions: Sequence[Expression | ColumnElement[bool]],
    values: Mapping[str, Any],
    *,
    returning: Sequence[str] = (),
    first: int = 1,
) -> tuple[str, list[Any]]:
    """Return the text of an update and its values, the first of which is ``$first``."""
    bound = _Bound(model, first)
    sets = ", ".join([f"{name} = {bound.mark(name, value)}" for name, value in values.items()])
    meets = [f"{name} = {bound.mark(name, value)}" for name, value in where.items()]
    meets += [bound.expression(condition) for condition in conditions]
    back = ", ".join(["id", *returning])
    text = f"update {model.__tablename__} set {sets} where {' and '.join(meets)} returning {back}"  # noqa: S608 - our own names
    return text, bound.values


class _Bound:
    """Gathers the values of a statement and gives each its mark, ``$1`` and so on."""

    def __init__(self, model: type[Base], first: int = 1) -> None:
        self.values: list[Any] = []
        self._before = first - 1
        self._json = _json_columns(model)

    def mark(self, column: str, value: Any) -> str:
        if isinstance(value, Expression | ClauseElement):
            return self.expression(value)
        if column in self._json and value is not None:
            value = as_json(value)
        self.values.append(value)
        return f"${self._before + len(self.values)}"

    def expression(self, value: Expression | ClauseElement) -> str:
        if isinstance(value, ClauseElement):  # for what is not busy: compiling costs more than running it
            return str(value.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
        text = value.text
        for given in value.values:
            self.values.append(given)
            text = text.replace("?", f"${self._before + len(self.values)}", 1)
        return text


def as_json(value: Any) -> str:
    """Return a value as a JSON column takes it here."""
    return to_json(value).decode()


# --------------------------------------------------------------------------------------------------- rows


def load(model: type[M], record: Record, prefix: str = "") -> M:
    """Return a whole row as an object of its model's class; ``prefix`` is that of its columns among others."""
    row: M = class_mapper(model).class_manager.new_instance()
    plain, converted = _columns(model)
    values = row.__dict__
    for name in plain:
        values[name] = record[prefix + name]
    for name, convert in converted:
        value = record[prefix + name]
        values[name] = None if value is None else convert(value)
    return row


def columns(model: type[Base], alias: str, prefix: str) -> str:
    """Return what to select for ``load`` to find the columns of an aliased table under a prefix."""
    return ", ".join(f"{alias}.{c.name} as {prefix}{c.name}" for c in model.__table__.columns)


@cache
def _columns(model: type[Base]) -> tuple[tuple[str, ...], tuple[tuple[str, Callable[[Any], Any]], ...]]:
    plain: list[str] = []
    converted: list[tuple[str, Callable[[Any], Any]]] = []
    for column in model.__table__.columns:
        if isinstance(column.type, Enum) and column.type.enum_class is not None:
            converted.append((column.name, column.type.enum_class))
        else:
            plain.append(column.name)
    return tuple(plain), tuple(converted)


@cache
def _json_columns(model: type[Base]) -> frozenset[str]:
    table = model.__table__
    assert isinstance(table, Table)
    return frozenset(c.name for c in table.columns if isinstance(c.type, JSONB))
