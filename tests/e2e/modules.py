"""A module proxy with a door: behind it requests wait until the test opens it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.builder.servers import Proxy, listening
from tests.e2e.programs import MOD

WAIT_SECONDS = 60.0


@dataclass
class Door:
    """``modules`` are those on offer. While it is shut, whoever asks for one waits for ``opened``."""

    modules: Proxy = field(default_factory=Proxy)
    opened: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def needing(self, files: dict[str, str], module: str) -> dict[str, str]:
        """Return a source that needs a module besides, which is offered from now on."""
        name = module.rpartition("/")[2]
        sums = self.modules.add(
            module,
            "v1.0.0",
            {"go.mod": f"module {module}\n", f"{name}.go": f"package {name}\n\nconst Word = `{name}`\n"},
        )
        used = f'package main\n\nimport "{module}"\n\nfunc init() {{ _ = {name}.Word }}\n'
        return files | {"go.mod": f"{MOD}\nrequire {module} v1.0.0\n", "go.sum": sums, "needs.go": used}


@contextmanager
def door() -> Iterator[Door]:
    """Serve a proxy for the length of the block, shut at first; at its end nobody is kept waiting."""
    it = Door()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            it.modules.asked.append(self.path)
            if "slow" in self.path and not it.opened.wait(WAIT_SECONDS):
                return
            body = it.modules.files.get(self.path)
            with suppress(ConnectionError):  # who asked may have been ended meanwhile
                self.send_response(404 if body is None else 200)
                self.send_header("content-length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    with listening(Handler) as port:
        it.url = f"http://127.0.0.1:{port}"
        try:
            yield it
        finally:
            it.opened.set()
