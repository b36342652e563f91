"""Several wishes for one service: which of them wins, and what an interruption leaves behind."""

from app.models import Artifact, Build, Release, Service
from tests.support.world import World


async def newest(here: World, service: str) -> Release:
    releases = await here.rows(Release, service_id=(await here.service(service)).id)
    return max(releases, key=lambda r: r.number)


async def test_an_older_slower_build_does_not_undo_a_newer_one(here: World) -> None:
    older = await here.submit("echo", env={"V": "1"})
    await here.jobs()
    _, _, live = await here.deployed("echo", env={"V": "2"})
    await (await here.builder(older)).finish()
    await here.jobs()
    older = await here.one(Build, id=older.id)
    assert (older.status, older.reason) == ("failed", "superseded")
    assert (await here.one(Artifact, id=older.artifact_id)).status == "available"
    assert (await here.live("echo")).id == live.id
    assert (await here.live("echo")).config["env"] == {"V": "2"}


async def test_one_release_deploys_at_a_time_and_the_newest_is_next(here: World) -> None:
    first = await here.built("echo", env={"V": "1"})
    gate = here.yard.gate("deploy")
    async with here.working():
        await gate.reached()
        for n in (2, 3):
            build = await here.submit("echo", env={"V": str(n)})
            await here.sql("update build set next_check_at = now()")
            async with here.working():
                pass
            await (await here.builder(build)).finish()
        await here.jobs()
        now = {r.config["env"]["V"]: r.status for r in await here.rows(Release)}
        assert now == {"1": "deploying", "2": "pending", "3": "pending"}
        gate.go.set()
    await here.jobs()
    releases = {r.config["env"]["V"]: (r.status, r.reason) for r in await here.rows(Release)}
    assert releases == {"1": ("superseded", None), "2": ("failed", "superseded"), "3": ("live", None)}
    assert (await here.one(Build, id=first.id)).status == "succeeded"


async def test_a_patch_and_a_slow_build_keep_both_wishes(here: World) -> None:
    await here.deployed("echo", env={"A": "1"})
    slow = await here.submit("echo", env={"A": "2"})
    await here.jobs()
    patched = await here.http.patch("/v1/services/echo", json={"env": {"A": "3"}})
    assert patched.status_code == 202
    await here.jobs()
    await (await here.builder(slow)).finish()
    await here.jobs()
    live = await here.live("echo")
    assert live.build_id == slow.id, "the build's artifact is newer"
    assert live.config["env"] == {"A": "3"}, "the patch's config is newer"


async def test_a_patch_before_a_newer_build_is_replaced_by_it(here: World) -> None:
    await here.deployed("echo", env={"A": "1"})
    await here.http.patch("/v1/services/echo", json={"env": {"A": "2", "B": "2"}})
    await here.jobs()
    await here.deployed("echo", env={"A": "3"})
    assert (await here.live("echo")).config["env"] == {"A": "3"}


async def test_a_patch_is_applied_to_what_is_live_by_then(here: World) -> None:
    """It was asked for while another release was on its way."""
    await here.deployed("echo", env={"A": "1"})
    build = await here.built("echo", env={"A": "2"}, port=9000)
    gate = here.yard.gate("deploy")
    async with here.working():
        await gate.reached()
        assert (await here.http.patch("/v1/services/echo", json={"env": {"B": "x"}})).status_code == 202
        gate.go.set()
    await here.jobs()
    live = await here.live("echo")
    assert (live.kind, live.config["env"], live.config["port"]) == ("config", {"A": "2", "B": "x"}, 9000)
    assert live.artifact_id == (await here.one(Build, id=build.id)).artifact_id


async def test_canceled_while_deploying(here: World) -> None:
    _, _, old = await here.deployed("echo")
    build = await here.built("echo", env={"V": "2"})
    gate = here.yard.gate("deploy")
    async with here.working():
        await gate.reached()
        answer = await here.http.post(f"/v1/builds/{build.id}/cancel")
        assert answer.json()["status"] == "canceled"
        gate.go.set()
    await here.jobs()
    service = await here.service("echo")
    assert service.live_release_id == old.id
    release = await newest(here, "echo")
    assert (release.status, release.reason) == ("failed", "canceled_by_user")
    assert len(here.yard.units) == 1, "what was canceled was left on the platform"


async def test_canceling_lets_the_next_one_begin(here: World) -> None:
    first = await here.built("echo", env={"V": "1"})
    gate = here.yard.gate("deploy")
    async with here.working():
        await gate.reached()
        second = await here.built_beside("echo", env={"V": "2"})
        await here.http.post(f"/v1/builds/{first.id}/cancel")
        gate.go.set()
    await here.jobs()
    assert (await here.one(Build, id=second.id)).status == "succeeded", "it waited for reconcile"


async def test_the_service_is_deleted_while_deploying(here: World) -> None:
    await here.deployed("echo")
    build = await here.built("echo", env={"V": "2"})
    gate = here.yard.gate("deploy")
    async with here.working():
        await gate.reached()
        assert (await here.http.delete("/v1/services/echo")).status_code == 202
        gate.go.set()
    await here.jobs()
    build = await here.one(Build, id=build.id)
    assert build.status == "canceled"
    assert (await here.service("echo")).status == "deleted"
    assert here.yard.units == {}


async def test_the_switch_is_one_transaction(here: World) -> None:
    """What the API tells never mixes old and new."""
    await here.deployed("echo", env={"V": "1"})
    build, service, release = await here.deployed("echo", env={"V": "2"})
    rows = await here.sql(
        "select count(distinct xid) as n from event where kind in ('release.live', 'service.running', "
        "'release.superseded') and (release_id = :r or service_id = :s) and id > (select max(id) from event e "
        "where e.kind = 'release.deploying')",
        r=release.id,
        s=service.id,
    )
    assert rows[0].n == 1
    assert service.url == "http://echo.localhost:8081"
    detail = (await here.http.get(f"/v1/builds/{build.id}")).json()
    assert (detail["url"], detail["release"]["number"]) == (service.url, 2)


async def test_another_project_s_service_of_the_same_name_is_another(here: World) -> None:
    _, other = await here.project("acme")
    async with other:
        await here.deployed("echo")
        assert (await other.post("/v1/builds", json=here.order("echo"))).status_code == 202
        hosts = {s.host for s in await here.rows(Service)}
        assert hosts == {"echo", "echo--acme"}
        assert (await other.get("/v1/services/echo")).json()["status"] == "pending"
