"""
The peers, the index of each in the packet path, and its current address.

    add, remove, change, resolved, tick  ->  actions, to be applied in order

The lowest free index is assigned, and an index is free only after :class:`ForgetPeer`. Routes never
name an index that does not exist: a peer is put before the routes that name it, and removed after
those routes.
"""

from __future__ import annotations

import heapq
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from tunnel.config.rules import conflicts
from tunnel.errors import ConfigError, PeerNotFoundError, TunnelError, UnderlayError
from tunnel.types import Address, Endpoint, Peer, Prefix

log = logging.getLogger(__name__)

SILENCE = 30.0
"""Seconds without a packet from a peer after which its name is resolved again."""

LONGEST_RETRY = 60.0
"""Seconds. The pause before a name without an address is resolved again doubles up to this."""

_LISTED = 8  # peers that the text of a PeerNotFoundError names at most


@dataclass(frozen=True)
class PutPeer:
    """Adds or replaces a peer. It receives nothing while its address is None (not resolved)."""

    index: int
    peer: Peer
    address: Address | None


@dataclass(frozen=True)
class ForgetPeer:
    """Removes a peer; its index may be assigned again."""

    index: int


RouteRow = tuple[bytes, int, int]
"""Packed network address, prefix length, peer index."""


@dataclass(frozen=True)
class PutRoutes:
    """Replaces the route table by these rows."""

    rows: tuple[RouteRow, ...]


@dataclass(frozen=True)
class AddKernelRoute:
    """Adds a kernel route for a prefix to the device."""

    prefix: Prefix


@dataclass(frozen=True)
class RemoveKernelRoute:
    """Removes the kernel route of a prefix."""

    prefix: Prefix


@dataclass(frozen=True)
class Resolve:
    """Resolves the name of a peer. Each is answered by :meth:`PeerTable.resolved`."""

    endpoint: Endpoint


Action = PutPeer | ForgetPeer | PutRoutes | AddKernelRoute | RemoveKernelRoute | Resolve


@dataclass(eq=False)
class _Member:
    """A peer and, if its host is a name, the state of resolving that."""

    index: int
    peer: Peer
    address: Address | None
    due: float | None = None
    """When to resolve the name unless packets came; None for an address, and while an answer is
    awaited."""
    received: int = 0
    """Packets at the last tick that was due."""
    retry: float = 1.0
    trouble: str = ""
    """Why the last answer could not be used, as it was logged."""
    rows: tuple[RouteRow, ...] = ()
    """Its routes. Kept, so that removing one of very many peers costs little."""

    def replace(self, peer: Peer) -> None:
        self.peer = peer
        self.rows = tuple(
            (prefix.network_address.packed, prefix.prefixlen, self.index)
            for prefix in peer.prefixes
        )


class PeerTable:
    """
    The peers of one node. `now` is monotonic seconds throughout.

    Args:
        subnets: The subnets of this node. No peer may have a prefix that overlaps them.
        local: Endpoints of this node. No peer may have one of them.
        mode: ``tun``, where each peer needs a prefix, or ``tap``.

    Attributes:
        indices: The index of each peer. A view, which changes with the table.
    """

    def __init__(
        self, *, subnets: Iterable[Prefix], local: Iterable[Endpoint] = (), mode: str = "tun"
    ) -> None:
        self._mode = mode
        self._subnets = tuple(subnets)
        self._local = frozenset(local)
        self._members: dict[Endpoint, _Member] = {}
        self._indices: dict[Endpoint, int] = {}
        self._free: list[int] = []  # a heap
        self._holders: dict[Address, dict[int, Endpoint]] = {}  # by address and port
        self.indices: Mapping[Endpoint, int] = MappingProxyType(self._indices)

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._members

    # Queries.

    def peer(self, endpoint: Endpoint) -> Peer:
        """Returns a peer. Raises PeerNotFoundError."""
        return self._member(endpoint).peer

    def address(self, endpoint: Endpoint) -> Address | None:
        """Returns a peer's address, None while its name is not resolved. Raises
        PeerNotFoundError."""
        return self._member(endpoint).address

    def index(self, endpoint: Endpoint) -> int:
        """Returns a peer's index. Raises PeerNotFoundError."""
        return self._member(endpoint).index

    def find(self, peer: str | Endpoint) -> Endpoint:
        """
        Returns the endpoint of the peer that `peer` names: its endpoint, its host alone if no
        other peer has that host, or an overlay address that it owns.

        Raises:
            PeerNotFoundError: There is no such peer.
        """
        if isinstance(peer, Endpoint):
            return self._member(peer).peer.endpoint
        with suppress(ConfigError):
            meant = Endpoint.parse(peer)
            if meant in self._members:
                return meant
            same = [one for one in self._members if one.host == meant.host]
            if len(same) == 1 and _is_host_alone(peer):
                return same[0]
        with suppress(ValueError):
            address = ipaddress.ip_address(peer)
            for member in self._members.values():
                if any(address in prefix for prefix in member.peer.prefixes):
                    return member.peer.endpoint
        raise self._not_found(peer)

    def find_sender(self, address: Address, port: int) -> Endpoint | None:
        """Returns the peer at an underlay address. The port matters only if several peers are
        there: behind a NAT it may differ from the port that the peer knows."""
        holders = self._holders.get(address, {})
        return next(iter(holders.values())) if len(holders) == 1 else holders.get(port)

    def find_all_at(self, address: Address) -> tuple[Endpoint, ...]:
        """Returns the peers at an underlay address."""
        return tuple(self._holders.get(address, {}).values())

    # Checks.

    def set_subnets(self, subnets: Iterable[Prefix]) -> None:
        """Replaces the subnets of this node. Raises ConfigError if a peer's prefix overlaps them,
        and changes nothing then."""
        before, self._subnets = self._subnets, tuple(subnets)
        for error in self._find_faults(one.peer for one in self._members.values()).values():
            self._subnets = before
            raise error

    def find_conflicts(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint] = ()
    ) -> dict[Endpoint, ConfigError]:
        """Returns which of the peers to add or change conflict with each other, with this node or
        with the peers that stay."""
        new = {peer.endpoint: peer for peer in add if not self._has_prefixes_of(peer)}
        if not new:
            return {}
        replaced = {*remove, *new}
        stay = [one.peer for endpoint, one in self._members.items() if endpoint not in replaced]
        found: dict[Endpoint, ConfigError] = {}
        # A rejected peer may have hidden another overlap of the same prefix.
        while more := self._find_faults([*stay, *new.values()]):
            found |= more
            new = {endpoint: peer for endpoint, peer in new.items() if endpoint not in more}
        return found

    def check(self, wanted: Iterable[Peer]) -> None:
        """Raises ConfigError unless `wanted` could be the peers. The error's key has the position
        of the one at fault."""
        for error in self._find_faults(wanted).values():
            raise error

    # Changes.

    def add(self, peers: Iterable[Peer], *, now: float) -> list[Action]:
        """Adds all of `peers`, or none and raises ConfigError."""
        new = list(peers)
        for peer in new:
            if (member := self._members.get(peer.endpoint)) is not None:
                raise _exists_already(member.peer, peer)
        for error in self._find_faults(
            [*(one.peer for one in self._members.values()), *new]
        ).values():
            raise error
        return self.change(add=new, remove=(), now=now)

    def remove(self, endpoint: Endpoint, *, now: float) -> list[Action]:
        """Removes one peer. Raises PeerNotFoundError."""
        return self.change(add=(), remove=(endpoint,), now=now)

    def change(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint], now: float
    ) -> list[Action]:
        """
        Removes some peers and adds others at once. A peer in `add` that exists keeps its index and
        address, also if it is in `remove`, and gets the new prefixes and MAC.

        Args:
            add: Without those that :meth:`find_conflicts` returns.

        Raises:
            PeerNotFoundError: A peer to remove does not exist.
        """
        new = list(add)
        kept = {peer.endpoint for peer in new}
        leaving = [self._member(endpoint) for endpoint in remove if endpoint not in kept]
        before = {prefix: one for one in leaving for prefix in one.peer.prefixes}
        for member in leaving:
            self._delete(member)
        members = []
        for peer in new:
            existing = self._members.get(peer.endpoint)
            if existing is None:
                member = self._insert(peer, following=len(self._members) + len(leaving))
            else:
                member = existing
                before |= dict.fromkeys(member.peer.prefixes, member)
                member.replace(peer)
            members.append(member)
        for member in leaving:
            # Only now, so that no new peer gets an index that packets in flight still use.
            heapq.heappush(self._free, member.index)
        if not (members or leaving):
            return []
        after = {prefix: member for member in members for prefix in member.peer.prefixes}
        return [
            *(RemoveKernelRoute(prefix) for prefix in before if prefix not in after),
            *(PutPeer(member.index, member.peer, member.address) for member in members),
            *([] if before == after else [self._put_routes()]),
            *(AddKernelRoute(one) for one in after if before.get(one) is not after[one]),
            *(ForgetPeer(member.index) for member in leaving),
            *(Resolve(one.peer.endpoint) for one in members if one.address is None),
        ]

    # Names.

    def resolved(
        self, endpoint: Endpoint, answer: Address | UnderlayError, *, now: float
    ) -> list[Action]:
        """
        Takes the answer to :class:`Resolve`: an address, or why there is none.

        The peer keeps its address until another can be used. Each reason is logged once, and so is
        its end.
        """
        member = self._members.get(endpoint)
        if member is None:  # removed in the meantime
            return []
        trouble = self._find_trouble(endpoint, answer)
        if isinstance(answer, UnderlayError) or trouble:
            self._retry(member, trouble, now=now)
            return []
        if member.trouble or answer != member.address:
            log.info("peer %s: its name resolves to %s", endpoint, answer)
        member.trouble, member.retry, member.due = "", 1.0, now + SILENCE
        if answer == member.address:
            return []
        self._set_address(member, answer)
        return [PutPeer(member.index, member.peer, answer)]

    def revert(
        self, endpoint: Endpoint, address: Address | None, error: TunnelError, *, now: float
    ) -> list[Action]:
        """Gives a peer its earlier `address` back, because `error` kept the packet path from using
        the resolved one. Its name is resolved again later."""
        member = self._members.get(endpoint)
        if member is None:
            return []
        self._retry(member, f"its name resolves to {member.address}: {error}", now=now)
        self._set_address(member, address)
        return [PutPeer(member.index, member.peer, address)]

    def tick(self, received: Mapping[int, int], *, now: float) -> list[Resolve]:
        """
        Returns the names that are due: those of peers from which no packet came.

        A tick sees packets only when it is due, so a peer counts as silent 30 to 60 s after its
        last packet.

        Args:
            received: Packets received so far, by index.
        """
        actions = []
        for endpoint, member in self._members.items():
            if member.due is None or now < member.due:
                continue
            count = received.get(member.index, 0)
            if count != member.received:
                member.received, member.retry, member.due = count, 1.0, now + SILENCE
            else:
                member.due = None
                actions.append(Resolve(endpoint))
        return actions

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, `now` at the earliest; None if none is, as for peers
        that all have addresses."""
        due = [member.due for member in self._members.values() if member.due is not None]
        return max(now, min(due)) if due else None

    # Members.

    def _member(self, endpoint: Endpoint) -> _Member:
        member = self._members.get(endpoint)
        if member is None:
            raise self._not_found(str(endpoint))
        return member

    def _not_found(self, peer: str) -> PeerNotFoundError:
        some = ", ".join(str(one) for one in islice(self._members, _LISTED)) or "none"
        more = ", ..." if len(self._members) > _LISTED else ""
        return PeerNotFoundError(f"peer {peer} does not exist (peers: {some}{more})")

    def _insert(self, peer: Peer, *, following: int) -> _Member:
        # Used, free and leaving indices together are always 0 ... n-1.
        index = heapq.heappop(self._free) if self._free else following
        member = _Member(index, peer, None)
        member.replace(peer)
        self._members[peer.endpoint], self._indices[peer.endpoint] = member, index
        self._set_address(member, peer.endpoint.address)
        return member

    def _delete(self, member: _Member) -> None:
        self._set_address(member, None)
        del self._members[member.peer.endpoint], self._indices[member.peer.endpoint]

    def _set_address(self, member: _Member, address: Address | None) -> None:
        endpoint = member.peer.endpoint
        if member.address is not None:
            holders = self._holders[member.address]
            del holders[endpoint.port]
            if not holders:
                del self._holders[member.address]
        member.address = address
        if address is not None:
            self._holders.setdefault(address, {})[endpoint.port] = endpoint

    def _put_routes(self) -> PutRoutes:
        return PutRoutes(tuple([row for one in self._members.values() for row in one.rows]))

    def _retry(self, member: _Member, trouble: str, *, now: float) -> None:
        level = logging.DEBUG if trouble == member.trouble else logging.WARNING
        log.log(level, "peer %s: %s", member.peer.endpoint, trouble)
        member.trouble, member.due = trouble, now + member.retry
        member.retry = min(2 * member.retry, LONGEST_RETRY)

    # Faults.

    def _has_prefixes_of(self, peer: Peer) -> bool:
        member = self._members.get(peer.endpoint)
        return member is not None and member.peer.prefixes == peer.prefixes

    def _find_faults(self, peers: Iterable[Peer]) -> dict[Endpoint, ConfigError]:
        """Returns which of `peers` cannot be peers together."""
        everyone = dict(enumerate(peers))
        endpoints = {peer.endpoint for peer in everyone.values()}
        found: dict[Endpoint, ConfigError] = {}
        for conflict in conflicts(
            everyone, subnets=self._subnets, local=self._local, mode=self._mode
        ):
            found.setdefault(everyone[int(conflict.key[1])].endpoint, conflict)
        for index, peer in everyone.items():
            holder = self._holder(peer.endpoint.address, peer.endpoint.port)
            if holder != peer.endpoint and holder in endpoints:
                error = ConfigError(
                    f"peer {peer.endpoint} has the address that the name of {holder} resolves to "
                    "(remove that first)",
                    key=("peer", index),
                )
                found.setdefault(peer.endpoint, error)
        return found

    def _holder(self, address: Address | None, port: int) -> Endpoint | None:
        return None if address is None else self._holders.get(address, {}).get(port)

    def _find_trouble(self, endpoint: Endpoint, answer: Address | UnderlayError) -> str:
        """Returns why an answer cannot be used, empty if it can. An address of this node or of
        another peer cannot: their packets would look alike. A later answer may be usable."""
        if isinstance(answer, UnderlayError):
            return str(answer)
        try:
            place = Endpoint(str(answer), endpoint.port)
        except ConfigError as error:
            return str(error)
        holder = "this node" if place in self._local else self._holder(answer, place.port)
        if holder in (None, endpoint):
            return ""
        return f"its name resolves to {place}, which is {holder}"


def _exists_already(before: Peer, after: Peer) -> ConfigError:
    if before == after:
        return ConfigError(f"peer {after.endpoint} exists already")
    prefixes = ", ".join(map(str, before.prefixes)) or "no prefix"
    return ConfigError(
        f"peer {after.endpoint} exists already, with {prefixes} "
        "(use change_peers to replace it, or remove it first)"
    )


def _is_host_alone(text: str) -> bool:
    """Whether an endpoint's text has no port."""
    return text.count(":") != 1 and "]:" not in text
