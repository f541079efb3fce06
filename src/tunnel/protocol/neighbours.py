"""
Which MAC each peer's VTEP has, who said so, and asking for those that nobody has told.

    add, heard, told, tick  ->  Ask, Known

What is configured holds. A node of ours says its MAC in every control frame. Any other, like a
kernel vxlan device, is asked by ARP and NDP for the overlay addresses that it owns, three times a
second apart as Linux does, and again as long as packets go to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tunnel.protocol.arp import link_local
from tunnel.status import MacSource, Neighbour
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Mac, Peer, Prefix

log = logging.getLogger(__name__)

TRIES = 3
PAUSE = 1.0
"""Seconds between them."""

RETRY = 5.0
"""Seconds until one that did not answer is asked again, if packets go to it."""

CONFIRM = 30.0
"""Seconds until one that did is."""

_MOST_ASKED = 8  # addresses of one peer
_FIRST_HOSTS = 3  # of a prefix, its network address included


@dataclass(frozen=True)
class SendSolicitation:
    """Asks a peer for the MAC that one of its addresses has."""

    endpoint: Endpoint
    address: Address


@dataclass(frozen=True)
class MacLearned:
    """
    A peer's MAC, new or from another source; `before` is what it was, None where nobody knew."""

    endpoint: Endpoint
    mac: Mac
    before: Mac | None


@dataclass
class _Vtep:
    peer: Peer
    asked: tuple[Address, ...]
    """Those that tell the VTEP's MAC; where several do and differ, the first."""
    mac: Mac | None
    source: MacSource
    confirmed: float
    due: float | None
    tries: int
    """How many are left; while there are none it rests."""
    address: Address | None = None
    """Whose answer `mac` is; None as well where that one answers no more."""
    sent: int = 0
    refused: Mac | None = None

    def believes(self, address: Address) -> bool:
        """Whether what this address tells counts: of several hosts behind a VTEP only the first
        is it."""
        if self.address in (None, address):
            return True
        order = [one for one in self.asked if one in (address, self.address)]
        return order[:1] == [address]


class Neighbours:
    """
    Those of one tunnel. `now` is monotonic seconds throughout.

    Args:
        mac: Ours, which nobody else can have.
        unique: Whether no two peers can have one MAC: it is by their MACs that they are found.
    """

    def __init__(self, *, mac: Mac, unique: bool) -> None:
        self._mac, self._unique = mac, unique
        self._vteps: dict[Endpoint, _Vtep] = {}
        self._holders: dict[Mac, Endpoint] = {}

    def add(self, peer: Peer, *, now: float) -> None:
        """A peer, or one that is at another address now. What was known holds until it is known
        otherwise."""
        before = self._vteps.get(peer.endpoint)
        mac = peer.mac or (before.mac if before else None)
        source = MacSource.RESOLVED if mac else MacSource.UNKNOWN
        asked = () if peer.mac else tuple(_askable(peer.prefixes))
        self._vteps[peer.endpoint] = _Vtep(
            peer=peer,
            asked=asked,
            mac=mac,
            source=MacSource.CONFIGURED if peer.mac else source,
            confirmed=before.confirmed if before else now,
            due=now if asked else None,
            tries=TRIES,
        )
        if mac is not None:
            self._holders[mac] = peer.endpoint

    def remove(self, endpoint: Endpoint) -> None:
        vtep = self._vteps.pop(endpoint, None)
        if vtep is not None:
            self._release(vtep)

    def get(self, endpoint: Endpoint, *, now: float) -> Neighbour:
        """What is known of a peer; nothing of one that is at no address yet."""
        vtep = self._vteps.get(endpoint)
        if vtep is None:
            return Neighbour(None, MacSource.UNKNOWN, 0.0)
        configured = vtep.source is MacSource.CONFIGURED
        return Neighbour(vtep.mac, vtep.source, 0.0 if configured else now - vtep.confirmed)

    def heard(self, endpoint: Endpoint, mac: Mac, *, now: float) -> list[MacLearned]:
        """A control frame came from this MAC."""
        vtep = self._vteps.get(endpoint)
        if vtep is None or vtep.source is MacSource.CONFIGURED or not self._can_be(vtep, mac):
            return []
        vtep.address, vtep.due = None, None
        return self._learn(vtep, mac, source=MacSource.CONTROL, now=now)

    def told(
        self, endpoint: Endpoint, address: Address, mac: Mac, *, now: float
    ) -> list[MacLearned]:
        """A peer has said that it has an address: because it was asked, or in asking us."""
        vtep = self._vteps.get(endpoint)
        if vtep is None or vtep.source in (MacSource.CONFIGURED, MacSource.CONTROL):
            return []
        if not any(address in prefix for prefix in vtep.peer.prefixes):
            if vtep.mac is None and vtep.asked and not vtep.tries:
                # It is there, and asks by an address of the link.
                vtep.due, vtep.tries = now, TRIES
            return []
        if not vtep.believes(address) or not self._can_be(vtep, mac):
            return []
        vtep.address = address
        vtep.due, vtep.tries = (now + CONFIRM if vtep.asked else None), 0
        return self._learn(vtep, mac, source=MacSource.RESOLVED, now=now)

    def doubt(self, endpoint: Endpoint, *, now: float) -> None:
        """A node of ours has fallen silent: what is there now may be something else."""
        vtep = self._vteps.get(endpoint)
        if vtep is not None and vtep.source is MacSource.CONTROL:
            vtep.source, vtep.tries = MacSource.RESOLVED, TRIES
            vtep.due = now if vtep.asked else None

    def tick(
        self, sent: Callable[[], Mapping[Endpoint, int]], *, now: float
    ) -> list[SendSolicitation]:
        """Whom to ask now; `sent` tells how many packets went to each peer so far."""
        due = [vtep for vtep in self._vteps.values() if vtep.due is not None and vtep.due <= now]
        resting = any(not vtep.tries for vtep in due)
        packets = sent() if resting else {}
        return [ask for vtep in due for ask in self._look(vtep, packets, now=now)]

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due; None where everybody's MAC is known for good."""
        due = [vtep.due for vtep in self._vteps.values() if vtep.due is not None]
        return max(now, min(due)) if due else None

    def _look(
        self, vtep: _Vtep, sent: Mapping[Endpoint, int], *, now: float
    ) -> Iterable[SendSolicitation]:
        if not vtep.tries:
            packets = sent.get(vtep.peer.endpoint, 0)
            flows, vtep.sent = packets != vtep.sent, packets
            vtep.tries = TRIES if flows else 0
        if not vtep.tries:
            vtep.due = now + (RETRY if vtep.address is None else CONFIRM)
            return ()
        vtep.tries -= 1
        vtep.due = now + (PAUSE if vtep.tries else RETRY)
        if not vtep.tries:
            vtep.address = None  # as far as we know; whoever answers next is believed
        return (SendSolicitation(vtep.peer.endpoint, address) for address in vtep.asked)

    def _can_be(self, vtep: _Vtep, mac: Mac) -> bool:
        holder = self._holders.get(mac, vtep.peer.endpoint)
        if mac == self._mac:
            whose = "this node's own"
        elif mac == ANY_VTEP_MAC:
            whose = "any node's"
        elif self._unique and holder != vtep.peer.endpoint:
            whose = f"that of peer {holder}"
        else:
            return True
        if vtep.refused != mac:
            vtep.refused = mac
            log.warning("peer %s: its MAC %s is %s", vtep.peer.endpoint, mac, whose)
        return False

    def _learn(self, vtep: _Vtep, mac: Mac, *, source: MacSource, now: float) -> list[MacLearned]:
        before, vtep.confirmed = vtep.mac, now
        if (mac, source) == (before, vtep.source):
            return []
        self._release(vtep)
        vtep.mac, vtep.source, self._holders[mac] = mac, source, vtep.peer.endpoint
        return [MacLearned(vtep.peer.endpoint, mac, before)]

    def _release(self, vtep: _Vtep) -> None:
        if vtep.mac is not None and self._holders.get(vtep.mac) == vtep.peer.endpoint:
            del self._holders[vtep.mac]


def gateway(prefix: Prefix, mac: Mac | None) -> Address | None:
    """
    The next hop of a peer's prefix: its VTEP's address, which is the network address, as flannel
    has it. Where that is none, as in a default route, it is the link-local IPv6 address that a
    device of the VTEP's MAC has, for IPv4 as well; None as long as the MAC is not known.
    """
    if _is_host(prefix.network_address):
        return prefix.network_address
    return None if mac is None else link_local(mac)


def _is_host(address: Address) -> bool:
    # 0.0.0.0/8 is "this network" (RFC 1122, 3.2.1.3).
    zeroes = 24 if address.version == 4 else 0
    return bool(int(address) >> zeroes) and not address.is_multicast


def _askable(prefixes: Iterable[Prefix]) -> Iterator[Address]:
    """The addresses of its own that a VTEP is likely to have, the likeliest first."""
    ordinary = [prefix for prefix in prefixes if _is_host(prefix.network_address)]
    ordinary.sort(key=lambda prefix: prefix.num_addresses > 1)
    firsts = (
        prefix[number]
        for prefix in ordinary
        for number in range(min(_FIRST_HOSTS, prefix.num_addresses))
    )
    return islice(firsts, _MOST_ASKED)
