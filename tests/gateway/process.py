"""One gateway as a process of its own: ``python -m tests.gateway.process <database url> <home> <platform port>``.

Prints its port, and runs until its standard input ends.
"""

import asyncio
import sys
from pathlib import Path

from app.gateway.run import serve_gateway
from tests.gateway.machines import manual_context


async def main(database_url: str, home: str, platform_port: str) -> None:
    loop = asyncio.get_running_loop()
    async with (
        manual_context(database_url, Path(home), int(platform_port)) as context,
        serve_gateway(context, host="127.0.0.1", port=0, grace_seconds=1.0) as server,
    ):
        print(server.port, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
