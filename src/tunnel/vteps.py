"""
The VTEPs of the peers: which MAC each has, and what stands on that.

    a control frame, an ARP or NDP message, a tick  ->  control/neighbours.py  ->  questions, MACs
    TAP mode: a MAC, a prefix  ->  neighbour entry, FDB entry, kernel route, as flannel has them
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from tunnel._native import Fdb
from tunnel.control import arp
from tunnel.control.frames import Letter
from tunnel.control.neighbours import Known, Neighbours, gateway
from tunnel.kernel import Kernel
from tunnel.types import (
    Address,
    Endpoint,
    Interface,
    Mac,
    MacSource,
    Neighbour,
    Peer,
    Prefix,
)
from tunnel.workers import Workers

_ROUNDING = 1e-3  # seconds; uvloop rounds to milliseconds, and too soon is in vain


class Ask(Protocol):
    """Asks a peer for the MAC of an overlay address, from `source`, which is ours."""

    def __call__(
        self, endpoint: Endpoint, address: Address, /, *, source: Address | None
    ) -> None: ...


class Vteps:
    """
    Those of one tunnel's peers. What is async changes what the kernel has: one at a time.

    Args:
        mac: Ours.
        own: Our overlay addresses, until :meth:`move` tells others.
        fdb: In TAP mode.
        kernel: None for a tunnel without a device.
        sent: Packets sent to each peer so far.
        known: Called with a MAC that is new, or that another source has told.
    """

    def __init__(
        self,
        *,
        mac: Mac,
        own: Iterable[Interface],
        workers: Workers,
        fdb: Fdb | None,
        kernel: Kernel | None,
        ask: Ask,
        sent: Callable[[], Mapping[Endpoint, int]],
        known: Callable[[Known], None],
    ) -> None:
        self._mac, self._own = mac, list(own)
        self._workers, self._fdb, self._kernel = workers, fdb, kernel
        self._ask, self._sent, self._known = ask, sent, known
        self._neighbours = Neighbours(mac=mac, unique=fdb is not None)
        self._owners: dict[Prefix, Endpoint] = {}
        self._entries: dict[Endpoint, Mac] = {}  # of the FDB
        self._routed: set[Prefix] = set()
        self._gateways: dict[Prefix, Address] = {}  # of the kernel routes in TAP mode
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._answer()

    def claim(self, peer: Peer) -> None:
        """Its prefixes may be routed from now on, wherever it is."""
        self._owners.update(dict.fromkeys(peer.prefixes, peer.endpoint))

    def add(self, peer: Peer) -> None:
        """A peer that can be asked: at its first address, or at another one than before."""
        self._neighbours.add(peer, now=time.monotonic())
        self._wake()

    def remove(self, endpoint: Endpoint) -> None:
        """One that is about to go: nothing that it says is heard any more."""
        self._neighbours.remove(endpoint)
        self._wake()

    def close(self) -> None:
        """Nobody is asked any more."""
        self._closed = True
        self._wake()

    def get(self, endpoint: Endpoint) -> Neighbour:
        return self._neighbours.get(endpoint, now=time.monotonic())

    def used(self, peer: Peer) -> Mac | None:
        """
        The MAC that packets for a peer get, None for any node's.

        A node of ours gets that in TUN mode: should it come back with another MAC, which its
        next control frame tells, it accepts what is sent until then.
        """
        found = self.get(peer.endpoint)
        if self._fdb is None and found.source is MacSource.CONTROL:
            return None
        return peer.mac or found.mac

    def via(self, prefix: Prefix) -> Address | None:
        """The gateway of a prefix's kernel route, None where it has none."""
        return self._gateways.get(prefix)

    def owner(self, mac: Mac) -> Endpoint | None:
        """The peer whose VTEP's entry in the FDB this is: it stays as long as the peer."""
        return next((end for end, own in self._entries.items() if own == mac), None)

    def move(self, own: Iterable[Interface]) -> None:
        """Our overlay addresses are others now."""
        self._own = list(own)
        self._answer()

    # Who has which MAC.

    def heard(self, endpoint: Endpoint, mac: bytes) -> None:
        """A control frame came from this MAC."""
        if not mac[0] & 1 and any(mac):
            self._learn(self._neighbours.heard(endpoint, Mac(mac), now=time.monotonic()))

    def told(self, letter: Letter, *, senders: Iterable[Endpoint]) -> None:
        """ARP or NDP from one of the peers at its outer address, which are `senders`."""
        _, _, ethertype, _, body = letter
        said = arp.parse(ethertype, body)
        if said is None:
            return
        for endpoint in senders:
            self._learn(self._neighbours.told(endpoint, *said, now=time.monotonic()))
        self._wake()

    def silent(self, endpoint: Endpoint) -> None:
        """A peer answers no echoes any more."""
        self._neighbours.doubt(endpoint, now=time.monotonic())
        self._wake()

    def _learn(self, news: Iterable[Known]) -> None:
        for known in news:
            self._known(known)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        due = None if self._closed else self._neighbours.next_tick(now)
        self._timer = None
        if due is not None:
            self._timer = self._loop.call_later(due - now + _ROUNDING, self._tick)

    def _tick(self) -> None:
        for ask in self._neighbours.tick(self._sent, now=time.monotonic()):
            self._ask(ask.endpoint, ask.address, source=self._source(ask.address))
        self._wake()

    def _source(self, address: Address) -> Address | None:
        """Ours that a question for an address comes from: of the same subnet, else any."""
        ours = [one for one in self._own if one.version == address.version]
        ours.sort(key=lambda one: address not in one.network)
        return ours[0].ip if ours else None

    def _answer(self) -> None:
        """Tells the packet path to which questions we know the answer: peers' for our addresses,
        and in TAP mode the device's for their VTEPs'."""
        if self._fdb is None:
            pairs = {one.ip: self._mac for one in self._own}
        else:
            pairs = dict(self._vteps())
        self._workers.set_neighbours([(one.packed, mac.packed) for one, mac in pairs.items()])

    def _vteps(self) -> Iterator[tuple[Address, Mac]]:
        for prefix, endpoint in self._owners.items():
            mac = self._entries.get(endpoint)
            via = gateway(prefix, mac)
            if mac is not None and via is not None:
                yield via, mac

    # What stands on it.

    async def route(self, prefix: Prefix) -> None:
        """
        Has the kernel send a peer's prefix to the device, in TAP mode by way of its VTEP.

        Raises:
            DeviceError: The kernel has another route for it.
        """
        if self._kernel is None:
            return
        if self._fdb is None:
            await self._kernel.add_route(prefix)
            return
        self._routed.add(prefix)
        mac = self._entries.get(self._owners[prefix])
        via = gateway(prefix, mac)
        if via is None:  # not before its MAC is known
            return
        self._gateways[prefix] = via
        if mac is not None:
            await self._kernel.put_neighbour(via, mac)
        # Without a MAC the kernel asks for it as for any neighbour's.
        await self._kernel.add_route(prefix, via=via)

    async def unroute(self, prefix: Prefix) -> None:
        """Nothing of it goes to the device any more."""
        self._routed.discard(prefix)
        if self._kernel is not None:
            await self._kernel.remove_route(prefix)

    async def follow(self, peer: Peer, index: int) -> None:
        """
        Has the kernel and the FDB know the MAC that a peer has now, in TAP mode. The new is there
        before the old goes.

        Raises:
            DeviceError: The kernel refuses.
        """
        before, mac = self._entries.get(peer.endpoint), self.used(peer)
        if self._fdb is None or mac is None or mac == before:
            return
        self._fdb.put(mac.packed, None, index)
        self._entries[peer.endpoint] = mac
        for prefix in self._routed.intersection(peer.prefixes):
            await self._lead(prefix, mac)
        if before is not None:
            self._fdb.remove(before.packed, None)
        self._answer()

    async def _lead(self, prefix: Prefix, mac: Mac) -> None:
        """To the VTEP that has this MAC now."""
        assert self._kernel is not None
        before, after = self._gateways.get(prefix), gateway(prefix, mac)
        if before is not None and before == after:
            await self._kernel.put_neighbour(before, mac)
            return
        if before is not None:
            await self._kernel.remove_route(prefix)
            await self._kernel.remove_neighbour(before)
        await self.route(prefix)

    async def forget(self, peer: Peer) -> None:
        """Takes away what is left of one whose prefixes are not routed any more."""
        mac = self._entries.pop(peer.endpoint, None)
        if self._fdb is not None and mac is not None:
            self._fdb.remove(mac.packed, None)
        for prefix in peer.prefixes:
            via = self._gateways.pop(prefix, None)
            if self._kernel is not None and via is not None:
                await self._kernel.remove_neighbour(via)
            self._owners.pop(prefix, None)
        self._answer()
