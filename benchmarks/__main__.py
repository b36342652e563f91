"""``make bench [BENCH="gateway lifecycle"]``: run the benchmarks one after the other."""

import asyncio
import importlib
import sys

import uvloop

from app.ground import settle

ALL = ("gateway", "embedded", "lifecycle", "latency", "requests")


def main() -> None:
    for name in sys.argv[1:] or ALL:
        print(f"{name}:", flush=True)
        benchmark = importlib.import_module(f"benchmarks.{name}")
        settle()  # as the commands do: a collection of ours is no latency of theirs
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(benchmark.run())


if __name__ == "__main__":
    main()
