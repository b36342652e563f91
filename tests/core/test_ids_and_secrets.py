"""Names that sort and can be read back; secrets that only the right key opens for the right row."""

import base64
import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import db
from app.ids import is_id, new_id, parse_remote_name, remote_name
from app.main import load_keyring, open_context
from app.secrets import Keyring, KeysError, Sealed, home_keys, make_keys, parse_keys
from app.settings import Settings
from tests.support.world import test_settings


def test_ids_sort_by_the_time_they_were_made() -> None:
    ids = [new_id("bld") for _ in range(2000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2000
    assert all(is_id(i, "bld") and not is_id(i, "run") for i in ids)


@pytest.mark.parametrize(
    "word",
    ["", "bld_", "bld_" + "0" * 25, "bld_" + "0" * 27, "bld_" + "w" * 26, "bld_" + "0" * 25 + "A", "bld-" + "0" * 26],
)
def test_what_is_no_id(word: str) -> None:
    assert not is_id(word, "bld")


def test_remote_names_are_read_back_and_others_are_not() -> None:
    row = new_id("rel")
    name = remote_name("ab12cd", row)
    assert parse_remote_name(name) == ("ab12cd", row)
    assert len(name) == 41
    for wrong in (
        name[:-1],
        name + "0",
        name.upper(),
        "x" + name,
        name.replace("slp", "web"),
        f"slp-ab12c-{name[11:]}",
    ):
        assert parse_remote_name(wrong) is None, wrong


@given(st.text(max_size=60))
def test_nothing_else_is_taken_for_a_remote_name(word: str) -> None:
    parsed = parse_remote_name(word)
    assert parsed is None or remote_name(*parsed) == word


@given(st.text(max_size=200), st.text(max_size=40))
def test_a_secret_opens_for_its_row_alone(value: str, row: str) -> None:
    ring = Keyring("k", {"k": b"k" * 32})
    try:
        value.encode(), row.encode()
    except UnicodeEncodeError:
        return
    sealed = ring.seal(value, about=row)
    assert ring.open(sealed, about=row) == value
    with pytest.raises(KeysError):
        ring.open(sealed, about=row + "x")


def test_a_secret_is_not_opened_when_anything_is_off() -> None:
    one, two = parse_keys(make_keys()), parse_keys(make_keys())
    sealed = one.seal("value", about="sec_1")
    assert b"value" not in sealed.ciphertext
    with pytest.raises(KeysError, match="is not in SLIPWAY_SECRET_KEYS"):
        two.open(sealed, about="sec_1")
    other_value = Keyring(one.active, {one.active: os.urandom(32)})
    with pytest.raises(KeysError, match="can't be decrypted"):
        other_value.open(sealed, about="sec_1")
    flipped = bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:]
    for tampered in (Sealed(sealed.key_id, sealed.nonce, flipped), dataclasses.replace(sealed, nonce=os.urandom(12))):
        with pytest.raises(KeysError):
            one.open(tampered, about="sec_1")


def test_equal_values_are_sealed_unlike() -> None:
    ring = parse_keys(make_keys())
    assert ring.seal("v", about="a").ciphertext != ring.seal("v", about="a").ciphertext


def test_keys_are_changed_by_putting_a_new_one_first() -> None:
    old, new = make_keys(), make_keys()
    sealed = parse_keys(old).seal("value", about="sec_1")
    both = parse_keys(f"{new}, {old}")
    assert both.open(sealed, about="sec_1") == "value"
    assert both.seal("x", about="y").key_id == new.partition(":")[0]


def test_each_use_has_a_key_of_its_own() -> None:
    ring = parse_keys(make_keys())
    uses = [ring.derive(p) for p in ("secret-version", "run-token", "registry-token", "local-records", "key-check")]
    assert len({*uses, ring.keys[ring.active]}) == 6


def test_a_run_token_is_the_same_each_time_and_of_one_run() -> None:
    ring = parse_keys(make_keys())
    assert ring.run_token("run_1", ring.active) == ring.run_token("run_1", ring.active)
    assert ring.run_token("run_1", ring.active) != ring.run_token("run_2", ring.active)


GOOD = base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(
    "given_keys",
    [
        "",
        " , ",
        "k",
        "k:",
        f":{GOOD}",
        "k:c2hvcnQ=",
        "k:!!!",
        f"k:{GOOD},k:{GOOD}",
        f"{'k' * 65}:{GOOD}",
        f"k:{GOOD[:-4]}",
    ],
)
def test_wrong_keys_are_refused_without_being_shown(given_keys: str) -> None:
    with pytest.raises(KeysError) as error:
        parse_keys(given_keys)
    assert GOOD[:20] not in str(error.value)


def test_the_embedded_default_keeps_its_keys_at_home(tmp_path: Path) -> None:
    first = home_keys(tmp_path / "home")
    assert home_keys(tmp_path / "home") == first
    file = tmp_path / "home/secret-keys"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["secret-keys"]
    assert repr(first).count("b'") == 0


def test_an_outside_database_wants_keys(tmp_path: Path) -> None:
    settings = test_settings("postgresql://x/y", tmp_path, secret_keys=None)
    with pytest.raises(KeysError, match="slipway secret-keys"):
        load_keyring(settings)


async def test_a_statement_s_error_does_not_tell_its_values(database_url: str) -> None:
    engine = db.create_engine(database_url)
    try:
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError) as raised:
                await connection.execute(text("select 1 / (length(:value) - 12)"), {"value": "hunter2-word"})
        assert "division" in str(raised.value)
        assert "hunter2" not in str(raised.value)
    finally:
        await engine.dispose()


async def test_processes_with_unlike_keys_don_t_start(database_url: str, tmp_path: Path) -> None:
    mine, yours = make_keys(), make_keys()

    async def start(keys: str) -> None:
        settings = test_settings(database_url, tmp_path, secret_keys=keys)
        async with open_context(settings, database_url, hold_local=False):
            pass

    await start(mine)
    await start(mine)
    with pytest.raises(KeysError, match="none of the secret keys is known"):
        await start(yours)
    same_id = f"{mine.partition(':')[0]}:{yours.partition(':')[2]}"
    with pytest.raises(KeysError, match="differs"):
        await start(same_id)
    await start(f"{yours},{mine}")
    await start(yours)


async def test_of_two_that_start_at_once_with_unlike_keys_one_is_refused(database_url: str) -> None:
    engine = db.create_engine(database_url, pool_size=2)
    sessions = db.create_sessions(engine)
    one, two = parse_keys(make_keys()), parse_keys(make_keys())
    try:
        async with sessions.begin() as first:
            await db.installation(first, one)
            async with sessions.begin() as probe:
                locked = await probe.execute(text("select id from installation for update skip locked"))
                assert locked.all() == [], "the second would not see what the first is writing"
        with pytest.raises(KeysError):
            async with sessions.begin() as second:
                await db.installation(second, two)
    finally:
        await engine.dispose()


def test_settings_refuse_plain_http_to_the_world(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must be https"):
        Settings(home=tmp_path, public_url="http://example.com")
    assert Settings(home=tmp_path, public_url="http://127.0.0.1:1").public_url == "http://127.0.0.1:1"
