"""Slipway: build agents in ephemeral builders, run them as services that sleep when nobody calls."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("slipway")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
