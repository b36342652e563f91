"""A thousand messages to a receiver that fails three times in ten, by the real loop; Node's reference library reads them."""

import asyncio
import json
import random
from collections import defaultdict
from pathlib import Path

import pytest

from app.webhooks.courier import Courier
from app.webhooks.send import Policy
from tests.support import node
from tests.support.receiver import Received, Receiver, Reply, reply
from tests.support.waiting import eventually
from tests.webhooks.conftest import Hooks

KINDS = [f"build.step_{n}" for n in range(10)]


@pytest.fixture
def clients(run_folder: Path) -> Path:
    return node.install(run_folder)


def flaky(it: Receiver) -> None:
    """Fail three times in ten: by status, by leaving without an answer, and by losing the answer to what was taken."""
    chance = random.Random(7)

    def answer(request: Received) -> Reply:
        match chance.random():
            case x if x < 0.1:
                return reply(500)
            case x if x < 0.15:
                return reply(429, retry_after="0")
            case x if x < 0.25:
                raise ConnectionError("left without an answer")
            case x if x < 0.3:
                it.taken.append(request)
                raise ConnectionError("took it, and the answer got lost")
        return reply()

    it.answer = answer


def read_by_node(folder: Path, secret: str, requests: list[Received]) -> dict[str, object]:
    lines = (json.dumps({"secret": secret, "headers": r.headers, "body": r.body.decode()}) for r in requests)
    return dict(json.loads(node.run(folder, "verify.mjs", given="\n".join(lines))))


@pytest.mark.parametrize("builds", [10, pytest.param(100, marks=pytest.mark.volume)])
async def test_each_message_is_delivered_in_order_and_verified_in_another_language(
    hooks: Hooks, clients: Path, builds: int
) -> None:
    count = builds * len(KINDS)
    hook = await hooks.add()
    flaky(hooks.receiver)
    await asyncio.gather(*(hooks.happen(*KINDS, build=f"bld_{n}") for n in range(builds)))
    # All pauses are over at once; how long they really are is another test's business.
    courier = Courier(hooks.here.context, hooks.client, Policy(retry_seconds=(0.0,) * 50))
    task = asyncio.create_task(courier.run())
    try:

        async def all_delivered() -> bool:
            if task.done():
                task.result()
            (row,) = await hooks.here.sql("select count(*) as n from webhook_delivery where status = 'delivered'")
            return bool(row.n == count)

        await eventually(all_delivered, 60, every=0.2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    taken = hooks.receiver.taken
    assert len({r.id for r in taken}) == count
    assert len(hooks.receiver.got) > count * 1.15, "the receiver was kinder than it should be"
    by_build = defaultdict(list)
    for request in taken:
        by_build[request.message["data"]["build_id"]].append(request.kind)
    assert all(list(dict.fromkeys(kinds)) == KINDS for kinds in by_build.values()), (
        "a build's messages overtook each other"
    )
    assert len(by_build) == builds
    found = await asyncio.to_thread(read_by_node, clients, hook["secret"], taken)
    assert found == {"verified": len(taken), "refused": []}
    forged = await asyncio.to_thread(read_by_node, clients, "whsec_" + "A" * 43 + "=", taken[:3])
    assert forged["verified"] == 0
