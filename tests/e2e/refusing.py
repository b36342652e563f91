"""A cloud platform that has nothing and makes nothing: every list is empty, and every wish is refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

EMPTY = {"apps": [], "services": [], "secrets": [], "deployments": [], "instances": [], "count": 0}
NO = {"status": 400, "code": "invalid_argument", "message": "nothing is made here", "fields": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, EMPTY)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer(400, NO)

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def refusing() -> Iterator[dict[str, str]]:
    """Serve it; gives the settings by which it is somebody's Koyeb."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield {
                "SLIPWAY_KOYEB__ENABLED": "true",
                "SLIPWAY_KOYEB__TOKEN": "token",
                "SLIPWAY_KOYEB__API_URL": f"http://127.0.0.1:{server.server_port}",
                "SLIPWAY_BUILDER_IMAGE": f"images.example.com/builder@sha256:{'b' * 64}",
            }
        finally:
            server.shutdown()
            thread.join()
