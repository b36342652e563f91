"""The module phase, against a real module proxy."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from builder.orders import Orders, read_orders
from builder.outcome import Exit
from builder.toolchain import proxies, sumdb
from tests.builder.conftest import GO_MOD, MAIN, Bench
from tests.builder.servers import Proxy, module_proxy
from tests.builder.standin import ControlPlane

LIB = "example.org/lib"
USES = f'package main\n\nimport "{LIB}"\n\nfunc main() {{ println(lib.N) }}\n'
MODULE = {"go.mod": f"module {LIB}\n\ngo 1.21\n", "lib.go": "package lib\n\nconst N = 42\n"}
REQUIRES = f"{GO_MOD}\nrequire {LIB} v1.2.3\n"


@pytest.fixture
def proxy(bench: Bench) -> Iterator[Proxy]:
    with module_proxy() as serving:
        bench.plane.orders["modules"] = {"goproxy": f"{serving.url},direct", "gosumdb": None}
        yield serving


async def test_modules_come_from_the_proxy_and_are_named(bench: Bench, proxy: Proxy) -> None:
    sums = proxy.add(LIB, "v1.2.3", MODULE)
    bench.send({"go.mod": REQUIRES, "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.DONE
    assert bench.plane.completion is not None
    expected = {"path": LIB, "version": "v1.2.3", "sum": sums.split()[2]}
    assert bench.plane.completion["modules"] == [expected]
    assert f"/{LIB}/@v/v1.2.3.zip" in proxy.asked


async def test_a_replacement_goes_by_its_own_name(bench: Bench, proxy: Proxy) -> None:
    sums = proxy.add("example.org/fork", "v1.0.0", MODULE)
    bench.send({"go.mod": f"{REQUIRES}\nreplace {LIB} => example.org/fork v1.0.0\n", "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.DONE
    assert bench.plane.completion is not None
    assert bench.plane.completion["modules"][0]["path"] == "example.org/fork"


async def test_a_replacement_in_the_source_needs_no_proxy(bench: Bench, proxy: Proxy) -> None:
    local = {f"lib/{name}": text for name, text in MODULE.items()}
    bench.send({"go.mod": f"{REQUIRES}\nreplace {LIB} => ./lib\n", "main.go": USES, **local})
    assert await bench.run() == Exit.DONE
    assert proxy.asked == []


async def test_a_module_that_is_not_there_is_named(bench: Bench, proxy: Proxy) -> None:
    sums = Proxy().add(LIB, "v1.2.3", MODULE)
    bench.send({"go.mod": REQUIRES, "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "source_fetch"
    assert f"{LIB}@v1.2.3" in bench.message()
    assert "404" in bench.message()
    assert proxy.asked


@pytest.mark.parametrize("broken", [True, False])
async def test_a_proxy_in_trouble(bench: Bench, proxy: Proxy, broken: bool) -> None:
    sums = proxy.add(LIB, "v1.2.3", MODULE)
    proxy.broken = broken
    if not broken:
        bench.plane.orders["modules"] = {"goproxy": "http://127.0.0.1:1", "gosumdb": None}
    bench.send({"go.mod": REQUIRES, "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.NETWORK
    assert bench.reason() == "source_fetch"
    assert LIB in bench.message()


async def test_a_module_that_was_changed_is_rejected(bench: Bench, proxy: Proxy) -> None:
    sums = proxy.add(LIB, "v1.2.3", MODULE)
    proxy.add(LIB, "v1.2.3", {**MODULE, "lib.go": "package lib\n\nconst N = 666\n"})
    bench.send({"go.mod": REQUIRES, "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_rejected"
    assert "checksum mismatch" in bench.message()


async def test_a_go_sum_that_lacks_the_module(bench: Bench, proxy: Proxy) -> None:
    proxy.add(LIB, "v1.2.3", MODULE)
    bench.send({"go.mod": REQUIRES, "go.sum": "", "main.go": USES})
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "source_invalid"
    assert "go mod tidy" in bench.message()


async def test_vendored_modules_are_used_as_they_are(bench: Bench, proxy: Proxy) -> None:
    bench.send(
        {
            "go.mod": REQUIRES,
            "main.go": USES,
            "vendor/modules.txt": f"# {LIB} v1.2.3\n## explicit; go 1.21\n{LIB}\n",
            f"vendor/{LIB}/lib.go": MODULE["lib.go"],
        }
    )
    assert await bench.run() == Exit.DONE
    assert proxy.asked == []
    assert bench.plane.completion is not None
    assert bench.plane.completion["modules"] == [{"path": LIB, "version": "v1.2.3", "sum": None}]


async def test_a_module_for_a_newer_go(bench: Bench, proxy: Proxy) -> None:
    newer = {**MODULE, "go.mod": f"module {LIB}\n\ngo 1.99\n"}
    sums = proxy.add(LIB, "v1.2.3", newer)
    bench.send({"go.mod": REQUIRES, "go.sum": sums, "main.go": USES})
    assert await bench.run() == Exit.SOURCE
    assert bench.reason() == "toolchain_mismatch"


async def test_a_source_without_modules_asks_for_none(bench: Bench, proxy: Proxy) -> None:
    bench.send({"go.mod": GO_MOD, "main.go": MAIN})
    assert await bench.run() == Exit.DONE
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("direct", "off"),
        ("https://a,direct", "https://a"),
        ("https://a|direct", "https://a"),
        ("direct|https://a,https://b", "https://a,https://b"),
        ("https://a|direct,https://b", "https://a,https://b"),
        ("off", "off"),
        ("", "off"),
    ],
)
def test_direct_is_never_a_proxy(given: str, kept: str) -> None:
    assert proxies(given) == kept


def test_the_checksum_database_is_the_public_proxys_or_none() -> None:
    orders: Orders = read_orders(ControlPlane().answer())
    assert sumdb(replace(orders, goproxy="https://proxy.golang.org,direct")) == "sum.golang.org"
    assert sumdb(replace(orders, goproxy="https://proxy.internal")) == "off"
    assert sumdb(replace(orders, goproxy="https://proxy.golang.org", gosumdb="off")) == "off"
