"""Where each platform stands: proven on the real thing on a day, or only on our imitation of it.

``proven.json`` is the record, kept with the code: ``slipway check NAME --record`` writes it, lists and the README show it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(__file__).with_name("proven.json")


def standing(name: str, file: Path = FILE) -> str:
    """Return ``live <date>`` for a platform that was proven on that day, else ``imitated``."""
    day = json.loads(file.read_text()).get(name)
    return f"live {day}" if day else "imitated"


def record(name: str, file: Path = FILE) -> None:
    """Note that a platform was proven today; OSError where the file can't be written."""
    known = json.loads(file.read_text()) | {name: datetime.now(UTC).date().isoformat()}
    file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
