"""Which of the kernel's entries are repaired, and which are not even read."""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import pytest

from tunnel.errors import DeviceError
from tunnel.linux.device_watch import (
    AddressAdded,
    AddressRemoved,
    Change,
    LinkChanged,
    NeighbourRemoved,
    NotificationsLost,
    RouteRemoved,
)
from tunnel.linux.netlink import Netlink
from tunnel.node import reconciler
from tunnel.node.reconciler import Reconciler
from tunnel.supervise import Supervisor
from tunnel.types import Address, InterfaceAddress, Mac, Prefix

ADDRESS = ipaddress.ip_interface("10.1.0.1/32")
NEIGHBOUR, MAC = ipaddress.ip_address("10.2.0.0"), Mac(bytes([2, 0, 0, 0, 0, 1]))
ROUTES: list[Prefix] = [ipaddress.ip_network(f"10.{number}.0.0/16") for number in range(2, 5)]


class FakeNetlink:
    """The kernel's tables of one device, which notify of nothing."""

    port = 1

    def __init__(self) -> None:
        self.kernel_addresses: set[InterfaceAddress] = set()
        self.kernel_neighbours: dict[Address, Mac] = {}
        self.kernel_routes: set[Prefix] = set()
        self.foreign: set[Prefix] = set()
        self.up = True
        self.calls: Counter[str] = Counter()
        self.failures: list[Exception] = []

    async def is_up(self, _: int) -> bool:
        self.calls["is_up"] += 1
        if self.failures:
            raise self.failures.pop()
        return self.up

    async def addresses(self, _: int) -> list[InterfaceAddress]:
        self.calls["addresses"] += 1
        return sorted(self.kernel_addresses)

    async def add_address(self, _: int, address: InterfaceAddress) -> None:
        self.kernel_addresses.add(address)

    async def neighbours(self, _: int) -> dict[Address, Mac]:
        self.calls["neighbours"] += 1
        return self.kernel_neighbours

    async def set_neighbours(self, _: int, macs: Mapping[Address, Mac]) -> None:
        self.kernel_neighbours |= macs

    async def restore_neighbours(self, _: int, macs: Mapping[Address, Mac]) -> int:
        missing = macs.keys() - self.kernel_neighbours.keys()
        self.kernel_neighbours |= macs
        return len(missing)

    async def remove_neighbours(self, _: int, addresses: list[Address]) -> None:
        for address in addresses:
            self.kernel_neighbours.pop(address, None)

    async def routes(self, _: int) -> list[Prefix]:
        self.calls["routes"] += 1
        return list(self.kernel_routes)

    async def add_routes(self, index: int, routes: Mapping[Prefix, Any]) -> dict[Prefix, Any]:
        return (await self.restore_routes(index, routes))[1]

    async def restore_routes(
        self, _: int, routes: Mapping[Prefix, Any]
    ) -> tuple[int, dict[Prefix, DeviceError]]:
        refused = routes.keys() & self.foreign
        missing = routes.keys() - self.kernel_routes - refused
        self.kernel_routes |= missing
        return len(missing), {one: DeviceError(f"{one} exists already") for one in refused}

    async def remove_routes(self, _: int, prefixes: list[Prefix]) -> None:
        self.kernel_routes -= set(prefixes)


class FakeWatch:
    """Hands over changes that a test makes up."""

    notify: Callable[[Change], None]

    def __init__(self, index: int, *, ignored_port: int, changed: Callable[[Change], None]) -> None:
        FakeWatch.notify = changed

    def close(self) -> None:
        pass


@pytest.fixture
def kernel() -> FakeNetlink:
    return FakeNetlink()


@pytest.fixture
async def one(
    kernel: FakeNetlink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Reconciler]:
    """One that has an address, a neighbour and three routes, and has read no table since."""
    monkeypatch.setattr(reconciler, "DeviceWatch", FakeWatch)
    monkeypatch.setattr(reconciler, "_GATHER", 0.001)
    monkeypatch.setattr(reconciler, "_PAUSE", 0.001)
    monkeypatch.setattr(reconciler, "_RETRY", 0.01)
    monkeypatch.setattr("tunnel.supervise.SHORTEST", 0.01)
    caplog.set_level(logging.WARNING)
    supervisor = Supervisor("tunnel1")
    made = Reconciler(cast(Netlink, kernel), index=1, name="tunnel1", supervisor=supervisor)
    await made.start(addresses_changed=lambda _: None)
    await made.add_address(ADDRESS)
    await made.set_neighbours({NEIGHBOUR: MAC})
    await made.add_routes(dict.fromkeys(ROUTES))
    kernel.calls.clear()
    yield made
    await made.close()
    await supervisor.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_nodes_own_removals_are_ignored(one: Reconciler, kernel: FakeNetlink) -> None:
    await one.remove_routes(ROUTES)
    await one.remove_neighbours([NEIGHBOUR])
    for prefix in ROUTES:
        FakeWatch.notify(RouteRemoved(prefix))
    FakeWatch.notify(NeighbourRemoved(NEIGHBOUR))
    FakeWatch.notify(LinkChanged(up=True))
    await asyncio.sleep(0.05)
    assert not kernel.calls


async def test_what_another_removes_is_added_without_a_dump(
    one: Reconciler, kernel: FakeNetlink, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.kernel_routes.discard(ROUTES[0])
    kernel.kernel_neighbours.clear()
    FakeWatch.notify(RouteRemoved(ROUTES[0]))
    FakeWatch.notify(NeighbourRemoved(NEIGHBOUR))
    await until(lambda: "restored" in caplog.text)
    assert kernel.kernel_routes == set(ROUTES)
    assert kernel.kernel_neighbours == {NEIGHBOUR: MAC}
    assert set(kernel.calls) == {"is_up"}
    assert "(addresses 0, neighbour entries 1, kernel routes 1)" in caplog.text


async def test_present_entries_are_not_reported(
    one: Reconciler, kernel: FakeNetlink, caplog: pytest.LogCaptureFixture
) -> None:
    FakeWatch.notify(RouteRemoved(ROUTES[0]))
    FakeWatch.notify(NeighbourRemoved(NEIGHBOUR))
    FakeWatch.notify(NotificationsLost())
    await until(lambda: kernel.calls["routes"])
    await asyncio.sleep(0.02)
    assert not caplog.text


async def test_a_route_that_another_has_now_is_reported_and_not_counted(
    one: Reconciler, kernel: FakeNetlink, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.kernel_routes.clear()
    kernel.foreign = {ROUTES[0]}
    for prefix in ROUTES:
        FakeWatch.notify(RouteRemoved(prefix))
    await until(lambda: "restored" in caplog.text)
    assert f"{ROUTES[0]} exists already" in caplog.text
    assert "kernel routes 2)" in caplog.text


@pytest.mark.parametrize("change", [AddressRemoved(), NotificationsLost(), "down and up"])
async def test_what_the_kernel_does_not_report_is_found(
    one: Reconciler, kernel: FakeNetlink, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.kernel_addresses.clear()
    kernel.kernel_neighbours.clear()
    kernel.kernel_routes.clear()
    if change == "down and up":
        kernel.up = False
        FakeWatch.notify(LinkChanged(up=False))
        await asyncio.sleep(0.02)
        assert not kernel.kernel_routes
        kernel.up = True
        change = LinkChanged(up=True)
    FakeWatch.notify(change)
    await until(lambda: "restored" in caplog.text)
    assert kernel.kernel_addresses == {ADDRESS}
    assert kernel.kernel_neighbours == {NEIGHBOUR: MAC}
    assert kernel.kernel_routes == set(ROUTES)
    assert "(addresses 1, neighbour entries 1, kernel routes 3)" in caplog.text


async def test_a_new_address_is_reported_and_reads_no_routes(
    kernel: FakeNetlink, one: Reconciler
) -> None:
    seen: list[list[InterfaceAddress]] = []
    one._addresses_changed = seen.append
    kernel.kernel_addresses.add(ipaddress.ip_interface("10.1.0.2/32"))
    FakeWatch.notify(AddressAdded())
    await until(lambda: seen)
    assert len(seen[0]) == 2
    assert set(kernel.calls) == {"is_up", "addresses"}


@pytest.mark.parametrize("error", [DeviceError("no answer"), OSError("a surprise")])
async def test_a_repair_that_fails_is_made_later(
    one: Reconciler, kernel: FakeNetlink, error: Exception
) -> None:
    kernel.failures = [error]
    kernel.kernel_routes.clear()
    FakeWatch.notify(RouteRemoved(ROUTES[0]))
    await until(lambda: kernel.kernel_routes == set(ROUTES))
    await until(lambda: one._supervisor.healthy)
    (task,) = one._supervisor.tasks
    assert task.failures == (0 if isinstance(error, DeviceError) else 1)


async def test_closed_it_repairs_nothing(one: Reconciler, kernel: FakeNetlink) -> None:
    await one.close()
    kernel.kernel_routes.clear()
    FakeWatch.notify(RouteRemoved(ROUTES[0]))
    await asyncio.sleep(0.02)
    assert not kernel.kernel_routes
