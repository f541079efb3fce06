"""
The MAC of each peer's VTEP: configured, received in control frames, or resolved by ARP and NDP.

    add, received_frame, received_address, tick  ->  MacLearned, SendSolicitation

A configured MAC is never changed. A node of this program sends its MAC in every control frame. The
MAC of any other peer, like a kernel vxlan device, is resolved by ARP or NDP for the overlay
addresses that it owns: three times, a second apart, as Linux does, and again as long as packets are
sent to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tunnel.protocol.arp import link_local
from tunnel.status import MacSource, Neighbour
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Mac, Peer, Prefix

log = logging.getLogger(__name__)

TRIES = 3
"""Solicitations in a row."""

PAUSE = 1.0
"""Seconds between solicitations in a row."""

RETRY = 5.0
"""Seconds until a peer that did not answer is solicited again, if packets are sent to it."""

CONFIRM = 30.0
"""Seconds until a peer that answered is solicited again, if packets are sent to it."""

_MOST_SOLICITED = 8  # addresses of one peer
_FIRST_HOSTS = 3  # addresses of a prefix, the network address included


@dataclass(frozen=True)
class SendSolicitation:
    """Solicits the MAC of an overlay address from the peer that owns it."""

    endpoint: Endpoint
    address: Address


@dataclass(frozen=True)
class MacLearned:
    """The MAC of a peer, new or from another source; `before` is None if there was none."""

    endpoint: Endpoint
    mac: Mac
    before: Mac | None


@dataclass
class _Vtep:
    peer: Peer
    solicited: tuple[Address, ...]
    """Addresses whose MAC is the VTEP's. If their MACs differ, the first one counts."""
    mac: Mac | None
    source: MacSource
    confirmed: float
    due: float | None
    tries: int
    """Solicitations left in this row; 0 between two rows."""
    address: Address | None = None
    """The address that `mac` was resolved for, None if it does not answer any more."""
    sent: int = 0
    """Packets to the peer when the last row was due."""
    refused: Mac | None = None
    """The last MAC that was logged as unusable."""

    def is_authoritative(self, address: Address) -> bool:
        """Whether the MAC of `address` is the VTEP's: of several hosts behind a VTEP the first of
        `solicited` counts."""
        if self.address in (None, address):
            return True
        order = [one for one in self.solicited if one in (address, self.address)]
        return order[:1] == [address]


class Neighbours:
    """
    The VTEPs of all peers. `now` is monotonic seconds throughout.

    Args:
        mac: The MAC of this node, which no peer may have.
        unique: Whether each peer needs a MAC of its own, as in TAP mode, where the FDB finds peers
            by MAC.
    """

    def __init__(self, *, mac: Mac, unique: bool) -> None:
        self._mac, self._unique = mac, unique
        self._vteps: dict[Endpoint, _Vtep] = {}
        self._holders: dict[Mac, Endpoint] = {}

    def add(self, peer: Peer, *, now: float) -> None:
        """Adds a peer, or updates one whose address or prefixes changed. A known MAC stays until
        another is received."""
        before = self._vteps.get(peer.endpoint)
        mac = peer.mac or (before.mac if before else None)
        source = MacSource.RESOLVED if mac else MacSource.UNKNOWN
        solicited = () if peer.mac else tuple(_addresses_to_solicit(peer.prefixes))
        self._vteps[peer.endpoint] = _Vtep(
            peer=peer,
            solicited=solicited,
            mac=mac,
            source=MacSource.CONFIGURED if peer.mac else source,
            confirmed=before.confirmed if before else now,
            due=now if solicited else None,
            tries=TRIES,
        )
        if mac is not None:
            self._holders[mac] = peer.endpoint

    def remove(self, endpoint: Endpoint) -> None:
        """Removes a peer; does nothing if it was not added."""
        vtep = self._vteps.pop(endpoint, None)
        if vtep is not None:
            self._release(vtep)

    def get(self, endpoint: Endpoint, *, now: float) -> Neighbour:
        """Returns the VTEP of a peer, without a MAC if the peer was not added."""
        vtep = self._vteps.get(endpoint)
        if vtep is None:
            return Neighbour(None, MacSource.UNKNOWN, 0.0)
        configured = vtep.source is MacSource.CONFIGURED
        return Neighbour(vtep.mac, vtep.source, 0.0 if configured else now - vtep.confirmed)

    def received_frame(self, endpoint: Endpoint, mac: Mac, *, now: float) -> list[MacLearned]:
        """Takes the source MAC of a control frame."""
        vtep = self._vteps.get(endpoint)
        if vtep is None or vtep.source is MacSource.CONFIGURED or not self._is_usable(vtep, mac):
            return []
        vtep.address, vtep.due = None, None
        return self._learn(vtep, mac, source=MacSource.CONTROL, now=now)

    def received_address(
        self, endpoint: Endpoint, address: Address, mac: Mac, *, now: float
    ) -> list[MacLearned]:
        """Takes an overlay address and its MAC from an ARP or NDP message of a peer."""
        vtep = self._vteps.get(endpoint)
        if vtep is None or vtep.source in (MacSource.CONFIGURED, MacSource.CONTROL):
            return []
        if not any(address in prefix for prefix in vtep.peer.prefixes):
            if vtep.mac is None and vtep.solicited and not vtep.tries:
                # The peer answers, but with an address of the link.
                vtep.due, vtep.tries = now, TRIES
            return []
        if not vtep.is_authoritative(address) or not self._is_usable(vtep, mac):
            return []
        vtep.address = address
        vtep.due, vtep.tries = (now + CONFIRM if vtep.solicited else None), 0
        return self._learn(vtep, mac, source=MacSource.RESOLVED, now=now)

    def set_silent(self, endpoint: Endpoint, *, now: float) -> None:
        """Resolves the MAC of a peer that sent control frames before and is silent now: something
        else may have its address."""
        vtep = self._vteps.get(endpoint)
        if vtep is not None and vtep.source is MacSource.CONTROL:
            vtep.source, vtep.tries = MacSource.RESOLVED, TRIES
            vtep.due = now if vtep.solicited else None

    def tick(self, sent: Mapping[Endpoint, int], *, now: float) -> list[SendSolicitation]:
        """
        Returns the solicitations that are due.

        Args:
            sent: Packets sent to each peer so far.
        """
        due = [vtep for vtep in self._vteps.values() if vtep.due is not None and vtep.due <= now]
        return [one for vtep in due for one in self._solicit(vtep, sent, now=now)]

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, `now` at the earliest; None if every MAC is known."""
        due = [vtep.due for vtep in self._vteps.values() if vtep.due is not None]
        return max(now, min(due)) if due else None

    def _solicit(
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
            vtep.address = None  # the next answer counts, for any address
        return (SendSolicitation(vtep.peer.endpoint, address) for address in vtep.solicited)

    def _is_usable(self, vtep: _Vtep, mac: Mac) -> bool:
        holder = self._holders.get(mac, vtep.peer.endpoint)
        if mac == self._mac:
            owner = "this node's own"
        elif mac == ANY_VTEP_MAC:
            owner = "the one that every node accepts"
        elif self._unique and holder != vtep.peer.endpoint:
            owner = f"that of peer {holder}"
        else:
            return True
        if vtep.refused != mac:
            vtep.refused = mac
            log.warning("peer %s: ignoring MAC %s, which is %s", vtep.peer.endpoint, mac, owner)
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
    Returns the next hop of a peer's prefix: the address of its VTEP, which is the network address,
    as with flannel. If that is not a host's address, as in a default route, it is the link-local
    IPv6 address that belongs to the VTEP's MAC, for IPv4 as well; None while the MAC is not known.
    """
    if _is_host(prefix.network_address):
        return prefix.network_address
    return None if mac is None else link_local(mac)


def _is_host(address: Address) -> bool:
    # 0.0.0.0/8 is "this network" (RFC 1122, 3.2.1.3).
    zeroes = 24 if address.version == 4 else 0
    return bool(int(address) >> zeroes) and not address.is_multicast


def _addresses_to_solicit(prefixes: Iterable[Prefix]) -> Iterator[Address]:
    """Returns the addresses that the VTEP is likely to have itself, the likeliest first."""
    ordinary = [prefix for prefix in prefixes if _is_host(prefix.network_address)]
    ordinary.sort(key=lambda prefix: prefix.num_addresses > 1)
    firsts = (
        prefix[number]
        for prefix in ordinary
        for number in range(min(_FIRST_HOSTS, prefix.num_addresses))
    )
    return islice(firsts, _MOST_SOLICITED)
