"""What anybody outside can do: call the API with a key, and call a service at its public address."""

import gzip
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from app.demo.server import NotSeen, Server
from app.imitations.base import LOOK_PATH
from app.platforms.address import request_for

CALL_SECONDS = 60.0
LOOK_SECONDS = 0.05

Json = dict[str, Any]


class Client:
    """The public API of one server and the services' addresses, over HTTP alone."""

    def __init__(self, server: Server) -> None:
        self._http = httpx.Client(timeout=CALL_SECONDS, trust_env=False)
        self._api, self._key = server.url, {"Authorization": f"Bearer {server.api_key}"}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Json:
        """Call the API and return its JSON; NotSeen on anything but a 2xx."""
        answer = self._send(method, f"{self._api}{path}", headers=self._key, **options)
        if not answer.is_success:
            raise NotSeen(f"{method} {path} to be accepted", f"{answer.status_code} {answer.text[:500]}")
        return dict(answer.json()) if answer.content else {}

    def look(self, stand_in: str) -> Json:
        """Return what is on an imitated platform, as the stand-in itself tells."""
        return dict(self._send("GET", f"{stand_in}{LOOK_PATH}").json())

    def ask(self, url: str) -> Json:
        """GET a service's ``/`` and return its JSON.

        ``*.localhost`` does not resolve everywhere, so the connection goes to 127.0.0.1 and the name into the Host header.
        """
        base, headers = request_for(url)
        answer = self._send("GET", f"{base}/", headers=headers)
        if answer.status_code != 200:
            raise NotSeen(f"200 from {url}", f"{answer.status_code} {answer.text[:500]}")
        return dict(answer.json())

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, **options)
        except httpx.HTTPError as error:
            raise NotSeen(f"an answer to {method} {url}", f"{type(error).__name__}: {error}") from error


def until(expected: str, seconds: float, look: Callable[[], tuple[bool, str]]) -> None:
    """Look again and again until it is so; NotSeen with the last look's words when it is not in ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        good, seen = look()
        if good:
            return
        if time.monotonic() > deadline:
            raise NotSeen(f"{expected} within {seconds:.0f} s", seen)
        time.sleep(LOOK_SECONDS)


def inline(folder: Path) -> Json:
    """Return a folder as an inline source."""
    files = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {"kind": "files", "files": files}


def archive(folder: Path) -> bytes:
    """Return a folder as the tar.gz that POST /v1/sources takes."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            tar.add(path, arcname=str(path.relative_to(folder)))
    return out.getvalue()
