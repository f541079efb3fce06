"""
What this node adds to the kernel for its device: addresses, neighbour entries and routes.

    a change by this node  ->  netlink;  another program removes an entry  ->  it is added again

The reconciler knows each entry that should exist. What this node removes is no longer among
them, so its own notifications repair nothing. Only where the kernel does not notify, or
notifications are lost, are the kernel's tables read and compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from tunnel.errors import DeviceError
from tunnel.linux.device_watch import (
    AddressAdded,
    AddressRemoved,
    Change,
    DeviceWatch,
    LinkChanged,
    NeighbourRemoved,
    NotificationsLost,
    RouteRemoved,
)
from tunnel.linux.netlink import Netlink
from tunnel.supervise import Supervisor
from tunnel.types import Address, InterfaceAddress, Mac, Prefix

log = logging.getLogger(__name__)

TASK = "reconciler"
"""Its name under the supervisor."""

_GATHER = 0.1  # seconds to wait for more notifications: one removal seldom comes alone
_PAUSE = 1.0  # seconds between two repairs at least: another program may remove them each time
_RETRY = 10.0  # seconds, after a repair that failed
_COMPARED_AT_ONCE = 512  # routes: half a millisecond


class Reconciler:
    """
    The entries of one device, repaired between :meth:`start` and :meth:`close`.

    Of a cancelled method, the change may or may not have been made.

    Args:
        supervisor: Runs the repairs.

    Raises:
        DeviceError: The kernel refuses.
    """

    def __init__(self, netlink: Netlink, *, index: int, name: str, supervisor: Supervisor) -> None:
        self._netlink, self._index, self._name = netlink, index, name
        self._supervisor = supervisor
        self._addresses: dict[InterfaceAddress, None] = {}
        self._neighbours: dict[Address, Mac] = {}
        self._routes: dict[Prefix, Address | None] = {}
        self._lost_neighbours: set[Address] = set()
        self._lost_routes: set[Prefix] = set()
        self._compare = self._read_addresses = False
        self._up = True
        self._reported: list[InterfaceAddress] = []
        self._changed = asyncio.Event()
        self._changing = asyncio.Lock()
        self._watch: DeviceWatch | None = None

    async def start(self, *, addresses_changed: Callable[[list[InterfaceAddress]], None]) -> None:
        """`addresses_changed` is called with the device's addresses, now and at each change."""
        self._addresses_changed = addresses_changed
        self._watch = DeviceWatch(self._index, ignored_port=self._netlink.port, changed=self._note)
        self._supervisor.start(TASK, self._run)
        await self._report_addresses()

    async def close(self) -> None:
        """Ends the repairs. The entries stay; they go with the device."""
        if self._watch is not None:
            self._watch.close()
        await self._supervisor.stop([TASK])

    # Changes that this node makes.

    async def add_address(self, address: InterfaceAddress) -> None:
        async with self._changing:
            await self._netlink.add_address(self._index, address)
            self._addresses[address] = None

    async def remove_address(self, address: InterfaceAddress) -> None:
        async with self._changing:
            self._addresses.pop(address, None)
            await self._netlink.remove_address(self._index, address)

    async def set_neighbours(self, macs: Mapping[Address, Mac]) -> None:
        async with self._changing:
            await self._netlink.set_neighbours(self._index, macs)
            self._neighbours.update(macs)

    async def remove_neighbours(self, addresses: Iterable[Address]) -> None:
        async with self._changing:
            own = [one for one in addresses if self._neighbours.pop(one, None)]
            await self._netlink.remove_neighbours(self._index, own)

    async def add_routes(
        self, routes: Mapping[Prefix, Address | None]
    ) -> dict[Prefix, DeviceError]:
        """Adds a route of each prefix, by way of its gateway if there is one. Returns why prefixes
        were refused."""
        async with self._changing:
            new = {one: via for one, via in routes.items() if one not in self._routes}
            refused = await self._netlink.add_routes(self._index, new)
            self._routes.update({one: via for one, via in new.items() if one not in refused})
            return refused

    async def remove_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Removes this node's routes; ignores a prefix without one, because adding it failed."""
        async with self._changing:
            own = [one for one in prefixes if one in self._routes]
            for prefix in own:
                del self._routes[prefix]
            await self._netlink.remove_routes(self._index, own)

    # Changes that others make.

    def _note(self, change: Change) -> None:
        """Notes what to repair; ignores this node's own changes."""
        match change:
            case RouteRemoved(prefix) if prefix in self._routes:
                self._lost_routes.add(prefix)
            case NeighbourRemoved(address) if address in self._neighbours:
                self._lost_neighbours.add(address)
            case AddressAdded():
                self._read_addresses = True
            case AddressRemoved() | NotificationsLost():
                self._compare = True
            case LinkChanged(up):
                self._compare = self._compare or (up and not self._up)
                self._up = up
                if not self._compare:
                    return
            case _:
                return
        self._changed.set()

    async def _run(self) -> None:
        """Repairs until it is cancelled. An unexpected error ends it, and the supervisor starts it
        again; by then notes may be lost, so that everything is compared."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(_GATHER)
                self._changed.clear()
                if await self._try_repair():
                    await asyncio.sleep(_PAUSE)
        except Exception:
            self._compare = True
            self._changed.set()
            raise

    async def _try_repair(self) -> bool:
        """Whether anything was restored."""
        try:
            async with self._changing:
                restored = await self._repair()
        except DeviceError as error:
            log.warning("%s: kernel entries not restored: %s", self._name, error)
            self._compare = True
            asyncio.get_running_loop().call_later(_RETRY, self._changed.set)
            return False
        if any(restored):
            log.warning(
                "%s: restored what another program removed (addresses %d, neighbour entries %d, "
                "kernel routes %d)",
                self._name,
                *restored,
            )
        return any(restored)

    async def _repair(self) -> tuple[int, int, int]:
        """Returns how many addresses, neighbour entries and routes were missing and are
        restored. While the device is down it does nothing: the kernel reports when it is up."""
        self._up = await self._netlink.is_up(self._index)
        if not self._up:
            return 0, 0, 0
        addresses = await self._repair_addresses()
        if self._compare:
            await self._find_lost()
        return addresses, await self._repair_neighbours(), await self._repair_routes()

    async def _repair_addresses(self) -> int:
        if not (self._compare or self._read_addresses):
            return 0
        self._read_addresses = False
        found = await self._report_addresses()
        lost = self._addresses.keys() - set(found)
        for address in lost:
            await self._netlink.add_address(self._index, address)
        if lost:
            await self._report_addresses()
        return len(lost)

    async def _find_lost(self) -> None:
        """Compares the neighbour entries and routes that should exist with the kernel's."""
        found = await self._netlink.neighbours(self._index)
        self._lost_neighbours = {
            address for address, mac in self._neighbours.items() if found.get(address) != mac
        }
        self._lost_routes = set(self._routes)
        for number, prefix in enumerate(await self._netlink.routes(self._index)):
            self._lost_routes.discard(prefix)
            if number % _COMPARED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._compare = False

    async def _repair_neighbours(self) -> int:
        lost, self._lost_neighbours = self._lost_neighbours, set()
        macs = {one: self._neighbours[one] for one in lost if one in self._neighbours}
        return await self._netlink.restore_neighbours(self._index, macs)

    async def _repair_routes(self) -> int:
        lost, self._lost_routes = self._lost_routes, set()
        routes = {one: self._routes[one] for one in lost if one in self._routes}
        restored, refused = await self._netlink.restore_routes(self._index, routes)
        for error in refused.values():
            log.warning("%s: %s", self._name, error)
        return restored

    async def _report_addresses(self) -> list[InterfaceAddress]:
        found = await self._netlink.addresses(self._index)
        if found != self._reported:
            self._reported = found
            self._addresses_changed(found)
        return found
