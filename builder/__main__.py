"""``python -m builder``: read the environment, do the run, end with a code of the protocol page."""

import asyncio
import signal
import sys

from builder import lean
from builder.harden import harden
from builder.orders import BadEnvironment, read_environment, take_environment
from builder.outcome import Exit
from builder.run import run


async def _main() -> int:
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    try:
        environment = read_environment(take_environment())
    except BadEnvironment as error:
        sys.stderr.write(f"slipway builder: {error}\n")
        return Exit.BUILDER
    return await run(environment, terminated)


if __name__ == "__main__":
    assert lean.__doc__  # imported for what it does to the imports after it
    harden()
    sys.exit(asyncio.run(_main()))
