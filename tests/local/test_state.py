"""What lies on disk sealed opens again after the secret keys were rotated, and only then."""

import pytest

from app.platforms.base import Misconfigured, Phase, ServiceRef, ServiceSpec
from app.platforms.local.state import Seal
from tests.local.support import Machine
from tests.support.agents import KEY

OLD, NEW = b"o" * 32, b"n" * 32


def test_a_new_first_key_still_opens_what_the_old_one_sealed() -> None:
    sealed = Seal(OLD).close("the spec", name="rel-1")

    assert Seal(NEW, OLD).open(sealed, name="rel-1") == "the spec"
    with pytest.raises(Misconfigured, match="sealed under another secret key"):
        Seal(NEW).open(sealed, name="rel-1")
    with pytest.raises(Misconfigured, match="sealed under another secret key"):
        Seal(OLD).open(sealed, name="rel-2")


def test_it_is_sealed_anew_with_the_first_key_and_only_where_another_did() -> None:
    sealed = Seal(OLD).close("the spec", name="rel-1")
    assert Seal(OLD, NEW).renew(sealed, name="rel-1") is None
    renewed = Seal(NEW, OLD).renew(sealed, name="rel-1")
    assert renewed is not None
    assert Seal(NEW).open(renewed, name="rel-1") == "the spec"
    assert Seal(NEW).renew(sealed, name="rel-1") is None, "nobody can open it; it is left as it is"


async def test_a_start_under_a_new_first_key_renews_what_is_deployed(machine: Machine, service: ServiceSpec) -> None:
    await machine.platform.services.deploy(service)
    await machine.platform.services.sleep(ServiceRef(service=service.service, release=service.release))
    machine.keys = (NEW, KEY)
    await machine.restart()
    machine.keys = (NEW,)
    restarted = await machine.restart()
    ref = ServiceRef(service=service.service, release=service.release)
    await restarted.services.wake(ref)
    assert (await restarted.services.inspect(ref)).phase == Phase.RUNNING
