"""``make bench [BENCH="gateway lifecycle"]``: run the benchmarks one after the other."""

import asyncio
import importlib
import sys

import uvloop

ALL = ("gateway", "embedded", "lifecycle", "latency", "requests")


def main() -> None:
    for name in sys.argv[1:] or ALL:
        print(f"{name}:", flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(importlib.import_module(f"benchmarks.{name}").run())


if __name__ == "__main__":
    main()
