"""Folders that PostgreSQL's account may or may not enter."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter, as the default home of root is."""
    folder = Path(tempfile.mkdtemp(prefix="slipway-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that only its owner may enter, as the home of root is."""
    folder = Path(tempfile.mkdtemp(prefix="slipway-closed-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home for several tests, so that its data is made once."""
    folder = Path(tempfile.mkdtemp(prefix="slipway-home-"))
    yield folder / "home"
    shutil.rmtree(folder)
