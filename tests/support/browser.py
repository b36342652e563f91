"""Chromium without a window, from an npm package, told what to do over its DevTools protocol."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support import node
from tests.support.agents import machine_folder
from tests.support.processes import REPOSITORY
from tests.support.waiting import eventually

SOURCE = REPOSITORY / "tests/browser"
SECONDS = 20.0
FLAGS = (
    "--headless=shell",
    "--no-sandbox",  # which root can't have; it sees no pages but ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


@dataclass
class Page:
    """An open page. ``failed`` are its requests that came to nothing, as the protocol's ``Network.loadingFailed`` tells."""

    _socket: ClientConnection
    _session: str | None = None
    _sent: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of some JavaScript, awaited if it is a promise; AssertionError when it throws."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, one at a time."""
        self._sent += 1
        whom = {"sessionId": self._session} if self._session else {}
        await self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params} | whom))
        async with asyncio.timeout(SECONDS):
            while (message := json.loads(await self._socket.recv())).get("id") != self._sent:
                if message.get("method") == "Network.loadingFailed":
                    self.failed.append(message["params"])
        assert "error" not in message, f"{method}: {message}"
        return dict(message["result"])

    async def open(self, url: str) -> None:
        """Open an address and wait until it is there."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.call("Network.enable")
        await self.call("Page.navigate", url=url)

        async def there() -> bool:
            return bool(await self.evaluate(f"document.readyState == 'complete' && location.href == {json.dumps(url)}"))

        await eventually(there)


@contextlib.asynccontextmanager
async def page(url: str, profile: Path) -> AsyncIterator[Page]:
    """Open an address in a browser of its own, which keeps what it keeps in a new folder ``profile``."""
    program, libraries, fonts = await asyncio.to_thread(_install)
    environment = {"PATH": os.environ["PATH"], "HOME": str(profile), "FONTCONFIG_PATH": fonts}
    process = await asyncio.create_subprocess_exec(
        program, *FLAGS, f"--user-data-dir={profile}", "about:blank",
        env=environment | {"LD_LIBRARY_PATH": libraries}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with connect(await _address(process), proxy=None, max_size=None) as socket:
            opened = Page(socket)
            await opened.open(url)
            yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Return where the browser listens, as it says itself."""
    assert process.stderr is not None
    said = b""
    async with asyncio.timeout(SECONDS):
        async for line in process.stderr:
            said += line
            if line.startswith(b"DevTools listening on "):
                return line.split()[-1].decode()
    raise AssertionError(f"the browser did not start:\n{said.decode(errors='replace')}")


def _install() -> tuple[str, str, str]:
    """Return the program and its folders of libraries and fonts: unpacked once per machine and account."""
    if platform.machine() != "x86_64":  # for which there is no package
        if (program := shutil.which("chromium")) is None:
            pytest.fail(f"there is no packaged Chromium for {platform.machine()}: install Debian's package `chromium`")
        return program, "", ""
    names = ("package.json", "package-lock.json", "unpack.mjs")
    of = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in names)).hexdigest()
    folder = machine_folder() / f"chromium-{of[:16]}"
    with (machine_folder() / "chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = machine_folder() / "chromium.draft"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            for name in names:
                shutil.copy(SOURCE / name, draft)
            node.install_locked(draft)
            node.run(draft, "unpack.mjs")
            (draft / "unpacked").rename(folder)
            shutil.rmtree(draft)
    return str(folder / "chromium"), str(folder / "al2023/lib"), str(folder / "fonts")
