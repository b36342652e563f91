"""What ``GET /v1/platforms`` says of each platform, and that it is true at the time."""

from app import breaker
from app.api.schemas import PlatformOut
from app.budgets import SharedBudget
from app.capabilities import usual
from app.platforms import catalog
from tests.support.world import World


async def test_it_says_what_each_can_do_and_how_it_is_doing(here: World) -> None:
    settings = here.context.settings.model_copy(update={"fly": usual().fly, "northflank": usual().northflank})
    object.__setattr__(here.context, "settings", settings)
    here.context.catalog.entries = catalog.entries(settings)
    for entry in here.context.catalog.entries.values():
        if entry.name in {"fly", "northflank"}:
            budget = SharedBudget(here.context.sessions, catalog.REMOTE[entry.name].allowance(settings))
            await budget.acquire("call", operation="create machine", key="an app")
    for _ in range(breaker.FAILURES):
        await breaker.failed(here.context.sessions, "fly", "iad", breaker.LAUNCH, "no room")
    await breaker.failed(here.context.sessions, "northflank", "", breaker.DEPLOY, "no answer")

    answer = (await here.http.get("/v1/platforms")).json()["items"]
    found = {item["name"]: PlatformOut.model_validate(item) for item in answer}
    assert {n for n, p in found.items() if p.configured} == {"fly", "northflank"}

    fly = found["fly"]
    assert (fly.capabilities.scale_to_zero, fly.capabilities.own_registry) == ("automatic", "registry.fly.io")
    assert fly.capabilities.exit_codes
    assert fly.proof == "imitated"
    assert fly.budget is not None
    assert (fly.budget.account, fly.budget.limit.requests, fly.budget.limit.per_object) == ("main", 1, True)
    assert fly.budget.left <= 3
    assert [(b.region, b.operation, b.state, b.failures) for b in fly.breakers] == [("iad", "launch", "open", 5)]
    assert 0 < fly.breakers[0].seconds <= breaker.OPEN_SECONDS

    northflank = found["northflank"]
    assert northflank.capabilities.scale_to_zero == "manual"
    assert northflank.budget is not None
    assert 998 < northflank.budget.left <= 1000
    assert [(b.region, b.state) for b in northflank.breakers] == [(None, "closed")]

    assert found["koyeb"].budget is None
    assert found["koyeb"].missing == ["SLIPWAY_KOYEB__ENABLED", "SLIPWAY_KOYEB__TOKEN"]
    assert "sale" in found["koyeb"].traits.remarks[0]
    assert found["local"].proof == "native"
    assert found["local"].budget is None
