"""
Who is a peer, under which index the packet path knows it, and where it is now.

    add, remove, resolved, tick  ->  actions, which whoever owns the packet path applies in order

An index is used again only after its peer was forgotten. Routes never point to an index that
is not there: peers are put before the routes that name them and forgotten after.
"""

from __future__ import annotations

import heapq
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from tunnel.config.rules import conflicts
from tunnel.errors import ConfigError, PeerNotFoundError, UnderlayError
from tunnel.types import Address, Endpoint, Peer, Prefix

log = logging.getLogger(__name__)

SILENCE = 30.0
"""Seconds without a packet after which the name of a peer is resolved again."""

LONGEST_RETRY = 60.0
"""Seconds; failed names are tried again after 1, 2, 4 ... up to this."""

_LISTED = 8  # peers that the text of a PeerNotFoundError names at most


@dataclass(frozen=True)
class PutPeer:
    """Puts or replaces a peer; without an address (its name is not resolved) it gets nothing."""

    index: int
    peer: Peer
    address: Address | None


@dataclass(frozen=True)
class ForgetPeer:
    index: int


@dataclass(frozen=True)
class PutRoutes:
    """The whole route table, prefix to peer index."""

    routes: tuple[tuple[Prefix, int], ...]


@dataclass(frozen=True)
class AddKernelRoute:
    prefix: Prefix


@dataclass(frozen=True)
class RemoveKernelRoute:
    prefix: Prefix


@dataclass(frozen=True)
class Resolve:
    """Asks for the address of a name; each is answered by :meth:`PeerTable.resolved`."""

    endpoint: Endpoint


Action = PutPeer | ForgetPeer | PutRoutes | AddKernelRoute | RemoveKernelRoute | Resolve


@dataclass(eq=False)
class _Member:
    """A peer and, where it goes by a name, what we know about that name."""

    index: int
    peer: Peer
    address: Address | None
    due: float | None = None
    """When to resolve unless it was heard; None for an address and while an answer is awaited."""
    heard: int = 0
    retry: float = 1.0
    trouble: str = ""
    """Why its name is of no use, as far as that was said."""


class PeerTable:
    """
    The peers of one tunnel. `now` is monotonic seconds throughout.

    Args:
        subnets: Ours; no peer may claim any of them.
        local: Ours; no peer may be at one of them.
        mode: ``"tun"``, where a peer has to own something, or ``"tap"``.
    """

    def __init__(
        self, *, subnets: Iterable[Prefix], local: Iterable[Endpoint] = (), mode: str = "tun"
    ) -> None:
        self._mode = mode
        self._subnets = tuple(subnets)
        self._local = frozenset(local)
        self._members: dict[Endpoint, _Member] = {}
        self._free: list[int] = []
        self._places: dict[Address, dict[int, Endpoint]] = {}  # by address, port

    @property
    def peers(self) -> Mapping[Endpoint, int]:
        """The index of each peer."""
        return {endpoint: member.index for endpoint, member in self._members.items()}

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._members

    def peer(self, endpoint: Endpoint) -> Peer:
        """Raises PeerNotFoundError if there is none at `endpoint`."""
        return self._member(endpoint).peer

    def address(self, endpoint: Endpoint) -> Address | None:
        """Where it is now, None as long as its name is not resolved. Raises PeerNotFoundError."""
        return self._member(endpoint).address

    def index(self, endpoint: Endpoint) -> int:
        """Under which index the packet path knows it. Raises PeerNotFoundError."""
        return self._member(endpoint).index

    def find(self, peer: str | Endpoint) -> Endpoint:
        """
        Returns the endpoint of the peer that is meant: by its endpoint, by its host alone if no
        other peer is there, or by an overlay address that it owns.

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

    def at(self, address: Address, port: int) -> Endpoint | None:
        """Who is there now. Where only one peer is at an address, the port does not matter: it may
        have another one for us than it has for itself, behind a NAT."""
        there = self._places.get(address, {})
        return next(iter(there.values())) if len(there) == 1 else there.get(port)

    def all_at(self, address: Address) -> tuple[Endpoint, ...]:
        """Whoever is there now."""
        return tuple(self._places.get(address, {}).values())

    def own(self, subnets: Iterable[Prefix]) -> None:
        """Ours are these now. Raises ConfigError where a peer has one, and changes nothing."""
        before, self._subnets = self._subnets, tuple(subnets)
        for error in self._faults(member.peer for member in self._members.values()).values():
            self._subnets = before
            raise error

    def refuse(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint] = ()
    ) -> dict[Endpoint, ConfigError]:
        """Who of those that come, or come again as others than they were, cannot be together
        with those that stay."""
        new = {peer.endpoint: peer for peer in add if not self._owns(peer)}
        if not new:
            return {}
        leaving = {*remove, *new}
        stay = [one.peer for endpoint, one in self._members.items() if endpoint not in leaving]
        refused: dict[Endpoint, ConfigError] = {}
        # What overlaps the prefix of one that is refused may overlap another's as well.
        while found := self._faults([*stay, *new.values()]):
            refused |= found
            new = {endpoint: peer for endpoint, peer in new.items() if endpoint not in found}
        return refused

    def _owns(self, peer: Peer) -> bool:
        """Whether it is there and has these prefixes: then it can."""
        member = self._members.get(peer.endpoint)
        return member is not None and member.peer.prefixes == peer.prefixes

    def check(self, wanted: Iterable[Peer]) -> None:
        """Raises ConfigError where these cannot be the peers; its key says which one, by number."""
        for error in self._faults(wanted).values():
            raise error

    def _faults(self, peers: Iterable[Peer]) -> dict[Endpoint, ConfigError]:
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
                    f"peer {peer.endpoint} is where {holder} leads (remove that first)",
                    key=("peer", index),
                )
                found.setdefault(peer.endpoint, error)
        return found

    def add(self, peers: Iterable[Peer], *, now: float) -> list[Action]:
        """Takes in all of `peers`, or none and raises ConfigError."""
        new = list(peers)
        for peer in new:
            if (member := self._members.get(peer.endpoint)) is not None:
                raise _exists_already(member.peer, peer)
        everyone = [*(member.peer for member in self._members.values()), *new]
        for error in self._faults(everyone).values():
            raise error
        return self.change(add=new, remove=(), now=now)

    def remove(self, endpoint: Endpoint, *, now: float) -> list[Action]:
        """Lets one peer go. Raises PeerNotFoundError if there is none at `endpoint`."""
        return self.change(add=(), remove=(endpoint,), now=now)

    def change(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint], now: float
    ) -> list[Action]:
        """
        Lets some go and takes others in, all at once; who is there already keeps index and
        address, and gets other prefixes or another MAC. Who comes was not to be refused.

        Raises:
            PeerNotFoundError: One that is to go is not there.
        """
        going = [self._member(endpoint) for endpoint in remove]
        before = {prefix: one for one in going for prefix in one.peer.prefixes}
        for member in going:
            del self._members[member.peer.endpoint]
            self._leave(member)
        members = []
        for peer in add:
            if peer.endpoint in self._members:
                member = self._members[peer.endpoint]
                before |= dict.fromkeys(member.peer.prefixes, member)
                member.peer = peer
            else:
                member = self._admit(peer, room=len(self._members) + len(going))
            members.append(member)
        for member in going:
            # Not before others got theirs: packets may still be on their way by this one.
            heapq.heappush(self._free, member.index)
        after = {prefix: member for member in members for prefix in member.peer.prefixes}
        if not (members or going):
            return []
        return [
            *(RemoveKernelRoute(prefix) for prefix in before if prefix not in after),
            *(PutPeer(member.index, member.peer, member.address) for member in members),
            *([] if before == after else [self._routes()]),
            *(AddKernelRoute(one) for one in after if before.get(one) is not after[one]),
            *(ForgetPeer(member.index) for member in going),
            *(Resolve(one.peer.endpoint) for one in members if one.address is None),
        ]

    def resolved(
        self, endpoint: Endpoint, answer: Address | UnderlayError, *, now: float
    ) -> list[Action]:
        """The answer to Resolve, or why there is none. A peer keeps its old address until a usable
        new one is found. The log has each trouble once, and its end."""
        member = self._members.get(endpoint)
        if member is None:  # removed in the meantime
            return []
        before, member.trouble = member.trouble, self._trouble(endpoint, answer)
        if isinstance(answer, UnderlayError) or member.trouble:
            level = logging.DEBUG if member.trouble == before else logging.WARNING
            log.log(level, "peer %s: %s", endpoint, member.trouble)
            member.due = now + member.retry
            member.retry = min(2 * member.retry, LONGEST_RETRY)
            return []
        if before or answer != member.address:
            log.info("peer %s: its name leads to %s", endpoint, answer)
        member.retry = 1.0
        member.due = now + SILENCE
        if answer == member.address:
            return []
        self._leave(member)
        member.address = answer
        self._settle(member)
        return [PutPeer(member.index, member.peer, answer)]

    def tick(self, inbound: Mapping[int, int], *, now: float) -> list[Action]:
        """
        Looks which of the named peers have fallen silent.

        `inbound` is how many packets came from each index so far. Ticks are all that is seen
        of traffic, so a peer's silence is noticed 30 to 60 s after its last packet.
        """
        actions: list[Action] = []
        for endpoint, member in self._members.items():
            if member.due is None or now < member.due:
                continue
            heard = inbound.get(member.index, 0)
            if heard != member.heard:
                member.heard, member.retry, member.due = heard, 1.0, now + SILENCE
            else:
                member.due = None
                actions.append(Resolve(endpoint))
        return actions

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None while nothing is waited for,
        so that a node whose peers all have addresses sleeps."""
        due = [member.due for member in self._members.values() if member.due is not None]
        return max(now, min(due)) if due else None

    def _member(self, endpoint: Endpoint) -> _Member:
        member = self._members.get(endpoint)
        if member is None:
            raise self._not_found(str(endpoint))
        return member

    def _not_found(self, peer: str) -> PeerNotFoundError:
        some = ", ".join(str(one) for one in islice(self._members, _LISTED)) or "none"
        more = ", ..." if len(self._members) > _LISTED else ""
        return PeerNotFoundError(f"peer {peer} is not there (there are: {some}{more})")

    def _admit(self, peer: Peer, *, room: int) -> _Member:
        # Used, free and leaving indices together are always 0 ... n-1.
        index = heapq.heappop(self._free) if self._free else room
        member = _Member(index, peer, peer.endpoint.address)
        self._members[peer.endpoint] = member
        self._settle(member)
        return member

    def _settle(self, member: _Member) -> None:
        if member.address is not None:
            there = self._places.setdefault(member.address, {})
            there[member.peer.endpoint.port] = member.peer.endpoint

    def _leave(self, member: _Member) -> None:
        if member.address is not None:
            there = self._places[member.address]
            del there[member.peer.endpoint.port]
            if not there:
                del self._places[member.address]

    def _holder(self, address: Address | None, port: int) -> Endpoint | None:
        return None if address is None else self._places.get(address, {}).get(port)

    def _routes(self) -> PutRoutes:
        return PutRoutes(
            tuple(
                (prefix, member.index)
                for member in self._members.values()
                for prefix in member.peer.prefixes
            )
        )

    def _trouble(self, endpoint: Endpoint, answer: Address | UnderlayError) -> str:
        """Why packets for the name cannot go there, empty where they can: not back to us, and not
        to where another peer is, for then theirs could not be told apart. What a name says may
        get better."""
        if isinstance(answer, UnderlayError):
            return str(answer)
        try:
            place = Endpoint(str(answer), endpoint.port)
        except ConfigError as error:
            return str(error)
        holder = "this node" if place in self._local else self._holder(answer, place.port)
        if holder in (None, endpoint):
            return ""
        return f"its name leads to {place}, where {holder} is"


def _exists_already(before: Peer, after: Peer) -> ConfigError:
    if before == after:
        return ConfigError(f"peer {after.endpoint} is there already")
    prefixes = ", ".join(map(str, before.prefixes)) or "no prefix"
    return ConfigError(
        f"peer {after.endpoint} is there already, with {prefixes} "
        "(use change_peers to replace it, or remove it first)"
    )


def _is_host_alone(text: str) -> bool:
    """Whether an endpoint's text has no port."""
    return text.count(":") != 1 and "]:" not in text
