"""Reads the page that Prometheus reads."""

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from app import gauges
from app.context import Context

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Value = Callable[..., float]


def parsed(text: str) -> Samples:
    """Return every sample by its name and its labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def reader(text: str) -> Value:
    """Return what gives a sample of a page by its name and labels, 0 when there is none."""
    samples = parsed(text)

    def value(name: str, **labels: str) -> float:
        return samples.get((name, tuple(sorted(labels.items()))), 0.0)

    return value


async def scrape(context: Context) -> Value:
    """Read a fresh page of this process. Counters go on from test to test, so compare two pages."""
    return reader((await gauges.Page(context).render()).decode())
