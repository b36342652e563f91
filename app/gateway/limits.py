"""Bounds of the gateway: seconds, bytes and counts, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All times in seconds. A body that flows has no time limit, so that event streams and uploads may last."""

    idle: float = 75.0
    """A client's connection without a request."""
    head: float = 10.0
    """From a request head's first byte to its last."""
    body: float = 60.0
    """Silence of a client inside a request body."""
    connect: float = 3.0
    """To an upstream that is said to listen; it is on this machine or near."""
    answer: float = 300.0
    """From a whole request to the head of its answer."""
    stall: float = 60.0
    """A peer that takes nothing of what is written to it."""
    half_closed: float = 2.0
    """A client that closed its half gets its answer if it comes so soon; most such clients have left for good."""
    half_open_tunnel: float = 60.0
    """An upgraded connection of which one side has ended."""
    linger: float = 1.0
    """Reading on after a refusal, so that the client sees the answer before the reset."""
    connections: int = 2048
    """Clients at once; more get 503 and are closed. Bounds memory: each holds two buffers of 64 KiB at most, plus one
    receive of 256 KiB."""
    waiting: int = 512
    """Requests of one service that wait for it to wake; more get 503."""
    pooled: int = 32
    """Idle upstream connections kept per instance."""
    pooled_idle: float = 4.0
    """How long one is kept: less than the keep-alive of the usual servers (uvicorn and Node: 5 s)."""
    pooled_unsafe: float = 1.0
    """A request that can't be repeated takes only a connection that was in use so recently."""
