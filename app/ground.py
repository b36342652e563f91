"""What a process needs before it can start: memory that nobody else reads, a port of its own, a database with our schema."""

import contextlib
import ctypes
import gc
import socket

from sqlalchemy.exc import SQLAlchemyError

from app import db

PR_SET_DUMPABLE = 4  # linux/prctl.h


class SetupError(Exception):
    """The process can't start as it is set up; the text says what to do."""


def harden() -> None:
    """Keep other processes of this account out of this one's memory and environment: keys and tokens are in there.

    See PR_SET_DUMPABLE in prctl(2). A program that is started from here is not affected.
    """
    with contextlib.suppress(OSError, AttributeError):  # a system without the call
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def settle() -> None:
    """Take what was imported out of garbage collection: to go through it all stops everything for a tenth of a second."""
    gc.collect()
    gc.freeze()


def bind(host: str, port: int, name: str) -> socket.socket:
    """Bind a listening socket before anything else starts; SetupError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise SetupError(
            f"{name}: can't listen on {host}:{port} ({e.strerror}); choose another by SLIPWAY_{name}"
        ) from e
    listener.setblocking(False)
    return listener


async def check_schema(url: str) -> None:
    """Raise SetupError unless the database answers and has the newest schema."""
    engine = db.create_engine(url, pool_size=1)
    try:
        async with db.create_sessions(engine)() as session:
            current = await db.schema_is_current(session)
    except (SQLAlchemyError, OSError) as e:
        raise SetupError(f"the database can't be reached: {str(e) or type(e).__name__}") from e
    finally:
        await engine.dispose()
    if not current:
        raise SetupError("the database's schema is not current; run `slipway migrate` first")
