"""``python -m benchmarks.process api|worker|bare``: one process of a benchmark, with the no-op platform in it.

``bare`` is what the API is held against: a route that checks the same body and makes three INSERTs.
"""

import asyncio
import sys

import asyncpg
import uvicorn
import uvloop
from fastapi import FastAPI

from app import jobs, logs
from app.ground import bind, settle
from app.main import create_app, ensure_key, open_context
from app.requests import BuildRequest
from app.serving import Up, api_part, until_stopped
from app.settings import Settings
from benchmarks import noop


def bare_app(pool: asyncpg.Pool) -> FastAPI:
    app = FastAPI()

    @app.post("/builds", status_code=202)
    async def create(body: BuildRequest) -> dict[str, int]:
        data = body.model_dump_json()
        async with pool.acquire() as connection, connection.transaction():
            made = await connection.fetchval("insert into one (data) values ($1) returning id", data)
            await connection.execute("insert into two (data) values ($1)", data)
            await connection.execute("insert into three (data) values ($1)", data)
        return {"id": made}

    return app


async def bare(settings: Settings, url: str) -> None:
    async with asyncpg.create_pool(url) as pool:
        with bind(settings.host, settings.port, "PORT") as listener:
            config = uvicorn.Config(
                bare_app(pool), log_config=None, access_log=False, lifespan="off", timeout_keep_alive=75
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            print("ready", flush=True)
            await serving


async def main(kind: str) -> None:
    settings = Settings()
    logs.configure("error", "json")
    settle()  # as the commands do
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    if kind == "bare":
        await bare(settings, url)
        return
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
