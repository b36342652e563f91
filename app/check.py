"""``python -m app.check WHAT``: exit code 0 when a process of ours is well, 1 and one line when it isn't.

For the health checks of containers, which run every few seconds: it imports nothing but a little of the standard library.
WHAT is ``http://host:port/path``, well when the answer is below 500 (the gateway answers 404 for a host that nobody has), or
the file that a worker touches while its database answers.
"""

import http.client
import os
import sys
import time

CALL_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A worker touches its file every few seconds; past this it hangs or has lost its database."""


def trouble(what: str) -> str | None:
    """Return what is wrong, None when all is well."""
    try:
        if what.startswith("http://"):
            host, _, path = what.removeprefix("http://").partition("/")
            return _http(host, f"/{path}")
        age = time.time() - os.stat(what).st_mtime  # noqa: PTH116 - pathlib costs more than all the rest
    except (OSError, http.client.HTTPException) as error:
        return f"{what}: {str(error) or type(error).__name__}"
    return f"{what}: last touched {age:.0f} s ago" if age > STALE_SECONDS else None


def _http(host: str, path: str) -> str | None:
    connection = http.client.HTTPConnection(host, timeout=CALL_SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    finally:
        connection.close()
    return f"{path} answers {status}" if status >= 500 else None


def main(words: list[str]) -> int:
    """Check each of ``words``; the first that is not well decides."""
    if not words:
        sys.stderr.write("usage: python -m app.check URL|FILE…\n")
        return 2
    for what in words:
        if wrong := trouble(what):
            sys.stderr.write(f"{wrong}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
