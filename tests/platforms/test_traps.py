"""README.md beside this file names tests that exist, in the files of their platform or of all platforms."""

import ast
import functools
from pathlib import Path

import pytest

from app.imitations.base import COMMON
from app.imitations.fly import FlyImitation
from app.imitations.koyeb import KoyebImitation
from app.imitations.northflank import NorthflankImitation
from app.imitations.railway import RailwayImitation
from tests.docs import pages

HERE = Path(__file__).parent
PAGE = pages.read("tests/platforms/README.md")
SHARED = (HERE / "contract.py", HERE / "test_http.py", *(HERE.parent / "whole").glob("test_*.py"))
COLUMNS = ("fly", "koyeb", "northflank", "railway", "local")
IMITATIONS = (FlyImitation, KoyebImitation, NorthflankImitation, RailwayImitation)


@functools.cache
def names_in(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name[:5] == "test_"}


def known_to(platform: str) -> set[str]:
    """Return the names of a platform's tests, those of its contract and of its imitation among them."""
    own = [*HERE.glob(f"test_{platform}*.py"), *(HERE.parent / "imitations").glob(f"test_{platform}.py")]
    own += (HERE.parent / "local").glob("test_*.py") if platform == "local" else []
    return set().union(*map(names_in, (*own, *SHARED)))


def named(cell: str) -> set[str]:
    return {word for word in pages.words(cell) if word.startswith("test_")}


@pytest.mark.parametrize("column", range(5), ids=COLUMNS)
def test_each_trap_has_a_test_or_a_reason_on_each_platform(column: int) -> None:
    known, rows = known_to(COLUMNS[column]), list(pages.rows(pages.section(PAGE, "Traps of more than one platform")))
    assert len(rows) > 15
    for trap, *cells in rows:
        assert named(cells[column]) <= known, trap
        assert named(cells[column]) or len(cells[column].split()) > 2, trap


def test_the_traps_of_one_platform_have_tests() -> None:
    for platform, trap, cell in pages.rows(pages.section(PAGE, "Traps of one platform")):
        found = named(cell)
        assert found, trap
        assert found <= known_to(pages.words(platform)[0]), trap


def test_a_test_that_is_none_is_noticed() -> None:
    assert "test_of_nothing" not in known_to("fly")
    assert named("`test_of_nothing`, `fly`") == {"test_of_nothing"}


@pytest.mark.parametrize("imitation", IMITATIONS, ids=lambda one: one.name)
def test_every_misbehaviour_is_sprung_by_a_test(imitation: type[FlyImitation]) -> None:
    """A misbehaviour that no test asks for guards nothing; a family of them may be asked for by its first word."""
    files = [*HERE.glob(f"test_{imitation.name}*.py"), *(HERE.parent / "imitations").glob(f"test_{imitation.name}.py")]
    files += (HERE.parent / "checkup").glob("test_*.py")
    text = "".join(file.read_text() for file in files)
    unasked = {name for name in {*imitation.misbehaviours, *imitation.quirks} if f'"{name}"' not in text}
    families = {name for name in unasked if f'startswith("{name.split(":")[0]}")' in text}
    assert unasked - families == set()


def test_what_any_platform_may_do_is_sprung_somewhere() -> None:
    text = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    assert {name for name in COMMON if f'"{name}"' not in text} == set()
