"""``python -m benchmarks.process api|worker``: one process of the lifecycle benchmark, with the no-op platform in it."""

import asyncio
import sys

import uvloop

from app import jobs, logs
from app.ground import bind
from app.main import create_app, ensure_key, open_context
from app.serving import Up, api_part, until_stopped
from app.settings import Settings
from benchmarks import noop


async def main(kind: str) -> None:
    settings = Settings()
    logs.configure("error", "json")
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    async with open_context(settings, url, hold_local=False) as context:
        server = await noop.join(context.catalog)

        def ready() -> None:
            print("ready", flush=True)

        if kind == "api":
            async with context.sessions.begin() as session:
                await ensure_key(session, settings)
            with bind(settings.host, settings.port, "PORT") as listener:
                await until_stopped({"api": api_part(create_app(context), listener, Up(1, ready))})
        else:
            up = asyncio.Event()
            task = asyncio.create_task(up.wait())
            task.add_done_callback(lambda _: ready())
            await until_stopped({"worker": jobs.work(context, url, ready=up)})
        server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
