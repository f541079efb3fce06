"""
The VTEPs of the peers: which MAC each has, and what stands on that.

    a control frame, an ARP or NDP message, a tick  ->  control/neighbours.py  ->  questions, MACs
    TAP mode: a MAC, a prefix  ->  neighbour entry, FDB entry, kernel route, as flannel has them
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from tunnel._native import Fdb
from tunnel.errors import DeviceError
from tunnel.node.reconciler import Reconciler
from tunnel.node.workers import Workers
from tunnel.protocol import arp
from tunnel.protocol.control_frames import ControlMessage
from tunnel.protocol.neighbours import MacLearned, Neighbours, gateway
from tunnel.status import MacSource, Neighbour
from tunnel.types import Address, Endpoint, InterfaceAddress, Mac, Peer, Prefix

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
        own: Iterable[InterfaceAddress],
        workers: Workers,
        fdb: Fdb | None,
        kernel: Reconciler | None,
        ask: Ask,
        sent: Callable[[], Mapping[Endpoint, int]],
        known: Callable[[MacLearned], None],
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

    def claim(self, peers: Iterable[Peer]) -> None:
        """Their prefixes may be routed from now on, wherever they are."""
        for peer in peers:
            self._owners.update(dict.fromkeys(peer.prefixes, peer.endpoint))

    def add(self, peers: Iterable[Peer]) -> None:
        """Peers that can be asked: at their first address, or at another one than before."""
        for peer in peers:
            self._neighbours.add(peer, now=time.monotonic())
        self._wake()

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Those that are about to go: nothing that they say is heard any more."""
        for endpoint in endpoints:
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

    def peer(self, prefix: Prefix) -> Endpoint:
        """Whose prefix it is."""
        return self._owners[prefix]

    def owner(self, mac: Mac) -> Endpoint | None:
        """The peer whose VTEP's entry in the FDB this is: it stays as long as the peer."""
        return next((end for end, own in self._entries.items() if own == mac), None)

    def move(self, own: Iterable[InterfaceAddress]) -> None:
        """Our overlay addresses are others now."""
        self._own = list(own)
        self._answer()

    # Who has which MAC.

    def heard(self, endpoint: Endpoint, mac: bytes) -> None:
        """A control frame came from this MAC."""
        if not mac[0] & 1 and any(mac):
            self._learn(self._neighbours.heard(endpoint, Mac(mac), now=time.monotonic()))

    def told(self, letter: ControlMessage, *, senders: Iterable[Endpoint]) -> None:
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

    def _learn(self, news: Iterable[MacLearned]) -> None:
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

    async def route(self, prefixes: Iterable[Prefix]) -> dict[Prefix, DeviceError]:
        """
        Has the kernel send peers' prefixes to the device, in TAP mode by way of their VTEPs.
        Returns what it refused: it has another route for that.
        """
        if self._kernel is None:
            return {}
        if self._fdb is None:
            return await self._kernel.add_routes(dict.fromkeys(prefixes))
        prefixes = tuple(prefixes)
        self._routed.update(prefixes)
        macs = {prefix: self._entries.get(self._owners[prefix]) for prefix in prefixes}
        # Without a MAC the kernel asks for it as for any neighbour's; some have no gateway before.
        vias = {one: via for one, mac in macs.items() if (via := gateway(one, mac)) is not None}
        before = self._gateways
        await self._leave([one for one, via in vias.items() if before.get(one, via) != via])
        await self._kernel.set_neighbours(
            {via: mac for one, via in vias.items() if (mac := macs[one]) is not None}
        )
        refused = await self._kernel.add_routes(vias)
        self._gateways.update({one: via for one, via in vias.items() if one not in refused})
        return refused

    async def unroute(self, prefixes: Iterable[Prefix]) -> None:
        """Nothing of these goes to the device any more."""
        prefixes = tuple(prefixes)
        self._routed.difference_update(prefixes)
        await self._leave(prefixes)
        for prefix in prefixes:
            self._owners.pop(prefix, None)
        self._answer()

    async def _leave(self, prefixes: Sequence[Prefix]) -> None:
        """Takes the kernel's routes to these away, and the gateways that they had."""
        if self._kernel is not None and prefixes:
            await self._kernel.remove_routes(prefixes)
            vias = [self._gateways.pop(one) for one in prefixes if one in self._gateways]
            await self._kernel.remove_neighbours(vias)

    async def follow(self, peers: Mapping[int, Peer]) -> dict[Prefix, DeviceError]:
        """
        Has the kernel and the FDB know the MACs that peers, by index, have now, in TAP mode. The
        new is there before the old goes. Returns the prefixes that the kernel refused.
        """
        if self._fdb is None:
            return {}
        led: list[Prefix] = []
        left: set[Mac] = set()
        for index, peer in peers.items():
            before, mac = self._entries.get(peer.endpoint), self.used(peer)
            if mac is None or mac == before:
                continue
            self._fdb.put(mac.packed, None, index)
            self._entries[peer.endpoint] = mac
            left |= {before} if before else set()
            led += [one for one in peer.prefixes if one in self._routed]
        refused = await self.route(led) if led else {}
        self._free(left)
        self._answer()
        return refused

    def forget(self, endpoints: Iterable[Endpoint]) -> None:
        """Takes the FDB's entries of those that have gone."""
        self._free({mac for one in endpoints if (mac := self._entries.pop(one, None)) is not None})

    def _free(self, macs: set[Mac]) -> None:
        """Of MACs that one peer had: another may have them now."""
        for mac in macs.difference(self._entries.values()):
            assert self._fdb is not None
            self._fdb.remove(mac.packed, None)
