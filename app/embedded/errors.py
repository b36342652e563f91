"""What can go wrong with the embedded default; each text is meant for the person at the terminal."""

from pathlib import Path


class EmbeddedError(Exception):
    """The embedded server can't be had as things are; says what to do."""


class ReachError(EmbeddedError):
    """The dropped account can't use what it needs."""


class HomeInUseError(EmbeddedError):
    """Another process owns the home; ``pid`` is None when it has not written it down yet."""

    def __init__(self, home: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{home} is in use by {who}; stop that one, or set SLIPWAY_HOME to another folder")
        self.home, self.pid = home, pid


class WrongVersionError(EmbeddedError):
    """The data is of another major version of PostgreSQL; the text has the commands that carry it over."""


class ServerDiedError(EmbeddedError):
    """The server ended although nobody asked it to; the text has the end of its log."""
