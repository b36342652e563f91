"""What all tests share: one real PostgreSQL for the run, and a migrated database of its own for each test."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import contracts
from tests.support.agents import Toolbox, make_toolbox
from tests.support.databases import SharedServer, shared_server

LONG = ("e2e", "demo", "shipping", "whole", "checkup")
"""Folders whose tests take seconds each, longest first: begun last, one of them would run on alone at the end."""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share, and no other run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def toolbox() -> Toolbox:
    """A seed, a warm build cache and a compiled agent: made once per machine."""
    return make_toolbox()


@pytest.fixture(scope="session")
def postgres(run_folder: Path) -> Iterator[SharedServer]:
    """The run's server: TEST_DATABASE_URL's, or one of our own that ends with the last process of the run."""
    with shared_server(run_folder) as server:
        yield server


@pytest.fixture
def database_url(postgres: SharedServer) -> Iterator[str]:
    """A database with the newest schema, of this test alone; dropped afterwards whoever is still connected."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def empty_database_url(postgres: SharedServer) -> Iterator[str]:
    """A database with nothing in it."""
    with postgres.database(migrated=False) as url:
        yield url


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--live NAME``: the contract suite, and nothing else, on the real account that the environment names."""
    parser.addoption("--live", metavar="PLATFORM", help="run the contract suite on a real account")


def pytest_configure(config: pytest.Config) -> None:
    """Let programs that tests start be interrupted; say what a live run lacks before it begins.

    What is loaded from here on is no garbage, and looking for some would take a third of the time until the first test.
    """
    gc.disable()
    # A shell starts what runs in its background with SIGINT ignored, and every child would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if live := config.getoption("live"):
        from tests.platforms.cloud import missing

        if lacks := missing(live):
            raise pytest.UsageError(f"--live {live}: set {', '.join(lacks)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what takes long first; keep what runs on the platform that a live run is about."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))
    if live := config.getoption("live"):
        from tests.platforms.cloud import TEST_SECONDS

        chosen = [i for i in items if isinstance(i, pytest.Function) and getattr(i.cls, "name", None) == live]
        for item in chosen:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))
        config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
        items[:] = chosen


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass by what has been loaded by now: a tenth of our processor time went to that."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what came of the checks against the platforms' contracts to the run's first process, which fails for what is wrong."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["contracts"] = contracts.RECORD.as_words()
    elif contracts.RECORD.wrong(contracts.folder()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it from one of them."""
    contracts.RECORD.add(getattr(node, "workeroutput", {}).get("contracts", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so: a run without the official contracts proves less."""
    for line in contracts.RECORD.told():
        terminalreporter.write_line(line)
    for problem in contracts.RECORD.wrong(contracts.folder()):
        terminalreporter.write_line(f"FAILED {problem}", red=True)
