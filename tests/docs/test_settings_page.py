"""docs/settings.md names every setting with its variables and its default."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.settings import Settings, default_home
from tests.docs import pages

PAGE = {tuple(pages.words(cells[0])): cells[1:] for cells in pages.rows(pages.read("docs/settings.md"))}


def variables(name: str, info: FieldInfo) -> tuple[str, ...]:
    """Return the variables a field is read from, the first one first."""
    alias = info.validation_alias
    return tuple(str(c) for c in alias.choices) if isinstance(alias, AliasChoices) else (f"SLIPWAY_{name.upper()}",)


def nested(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that has variables of its own, such as those of one platform."""
    kinds = (info.annotation, *get_args(info.annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def fields() -> dict[tuple[str, ...], Any]:
    """Return the default of every setting by its variables; nested models are taken apart."""
    found: dict[tuple[str, ...], Any] = {}
    for name, info in Settings.model_fields.items():
        if model := nested(info):
            inner = {n: i.get_default(call_default_factory=True) for n, i in model.model_fields.items()}
            found |= {(f"SLIPWAY_{name.upper()}__{n.upper()}",): default for n, default in inner.items()}
        elif info.default_factory is None:
            found[variables(name, info)] = info.default
    return found


def shown(default: object) -> str:
    """Return a default as the page writes it."""
    if default is None or default is PydanticUndefined or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_every_setting_is_there_and_no_other() -> None:
    assert set(PAGE) == set(fields()) | {("SLIPWAY_HOME",)}


@pytest.mark.parametrize("names", fields(), ids=lambda names: names[0])
def test_the_default_is_the_code_s(names: tuple[str, ...]) -> None:
    assert PAGE[names][0] == shown(fields()[names])


@pytest.mark.parametrize("names", PAGE, ids=lambda names: names[0])
def test_it_says_what_it_means(names: tuple[str, ...]) -> None:
    assert len(PAGE[names][1].split()) > 1


@pytest.mark.parametrize("uid", [0, 1000])
def test_home_is_where_the_page_says(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    path = str(default_home())
    if uid:
        path = path.replace(str(Path.home()), "~")
    assert pages.words(PAGE["SLIPWAY_HOME",][0])[uid == 0] == path
