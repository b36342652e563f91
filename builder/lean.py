"""Import this before httpx: without it httpx loads its command line, and click and rich with it, where they are installed.

That is a tenth of a second that every build would wait for nothing.
"""

import sys

sys.modules.setdefault("click", None)  # type: ignore[arg-type]  # what Python itself takes as "can't be imported"
