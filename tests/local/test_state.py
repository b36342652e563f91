"""What lies on disk sealed opens again after the secret keys were rotated, and only then."""

import pytest

from app.platforms.base import Misconfigured
from app.platforms.local.state import Seal


def test_a_new_first_key_still_opens_what_the_old_one_sealed() -> None:
    old, new = b"o" * 32, b"n" * 32
    sealed = Seal(old).close("the spec", name="rel-1")

    assert Seal(new, old).open(sealed, name="rel-1") == "the spec"
    with pytest.raises(Misconfigured, match="sealed under another secret key"):
        Seal(new).open(sealed, name="rel-1")
    with pytest.raises(Misconfigured, match="sealed under another secret key"):
        Seal(old).open(sealed, name="rel-2")
