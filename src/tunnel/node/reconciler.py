"""
What the kernel has of ours on the device: put there, and kept there until we take it away.

    addresses, neighbour entries, kernel routes  ->  netlink;  somebody removes one  ->  again
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from tunnel.errors import DeviceError
from tunnel.linux.netlink import DeviceWatch, Netlink
from tunnel.types import Address, InterfaceAddress, Mac, Prefix

log = logging.getLogger(__name__)

_CALM = 0.1  # seconds: what goes seldom goes alone
_PAUSE = 1.0  # seconds between two repairs at least: somebody may be set against us


class Reconciler:
    """
    Of one device. It is kept between :meth:`start` and :meth:`close`. Cancelled, a change may or
    may not have been made.

    Raises:
        DeviceError: The kernel refuses.
    """

    def __init__(self, netlink: Netlink, *, index: int, name: str) -> None:
        self._netlink, self._index, self._name = netlink, index, name
        self._addresses: dict[InterfaceAddress, None] = {}
        self._neighbours: dict[Address, Mac] = {}
        self._routes: dict[Prefix, Address | None] = {}
        self._seen: list[InterfaceAddress] = []
        self._changed = asyncio.Event()
        self._changing = asyncio.Lock()
        self._watch: DeviceWatch | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def start(self, *, moved: Callable[[list[InterfaceAddress]], None]) -> None:
        """`moved` is called with the device's addresses, now and when they have changed."""
        self._moved = moved
        self._watch = DeviceWatch(self._index, changed=self._changed.set)
        self._keeping = asyncio.create_task(self._keep())
        await self._look()

    async def close(self) -> None:
        """Nothing is put back any more; what there is goes with the device."""
        if self._watch is not None:
            self._watch.close()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

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
            ours = [one for one in addresses if self._neighbours.pop(one, None)]
            await self._netlink.remove_neighbours(self._index, ours)

    async def add_routes(
        self, routes: Mapping[Prefix, Address | None]
    ) -> dict[Prefix, DeviceError]:
        """Prefixes with their gateways, where they have one. Returns what was refused."""
        async with self._changing:
            new = {one: via for one, via in routes.items() if one not in self._routes}
            refused = await self._netlink.add_routes(self._index, new)
            self._routes.update({one: via for one, via in new.items() if one not in refused})
            return refused

    async def remove_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Removes our routes; where there is none, because adding it failed, that is fine."""
        async with self._changing:
            ours = [one for one in prefixes if one in self._routes]
            for prefix in ours:
                del self._routes[prefix]
            await self._netlink.remove_routes(self._index, ours)

    async def _keep(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_CALM)  # more may go with it
            self._changed.clear()
            try:
                async with self._changing:
                    restored = await self._netlink.is_up(self._index) and await self._restore()
                    await self._look()
            except DeviceError as error:
                # The next change is the next occasion; if the device is gone there is none.
                log.warning("%s: %s", self._name, error)
                restored = True
            if restored:
                await asyncio.sleep(_PAUSE)

    async def _restore(self) -> bool:
        """Whether anything was missing."""
        netlink, index = self._netlink, self._index
        addresses = self._addresses.keys() - set(await netlink.addresses(index))
        there, routed = await netlink.neighbours(index), set(await netlink.routes(index))
        neighbours = {one: mac for one, mac in self._neighbours.items() if there.get(one) != mac}
        routes = {one: via for one, via in self._routes.items() if one not in routed}
        for address in addresses:
            with self._logged():
                await netlink.add_address(index, address)
        with self._logged():
            await netlink.set_neighbours(index, neighbours)
        for error in (await netlink.add_routes(index, routes)).values():
            log.warning("%s: %s", self._name, error)
        missing = bool(addresses or neighbours or routes)
        if missing:
            log.warning(
                "%s: put back what was taken away (addresses %d, neighbour entries %d, kernel "
                "routes %d)",
                self._name,
                len(addresses),
                len(neighbours),
                len(routes),
            )
        return missing

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """What cannot be put back is said, and keeps nothing else from being put back."""
        try:
            yield
        except DeviceError as error:
            log.warning("%s: %s", self._name, error)

    async def _look(self) -> None:
        seen = await self._netlink.addresses(self._index)
        if seen != self._seen:
            self._seen = seen
            self._moved(seen)
