"""
A node that finds its peers, its subnet and the overlay's VNI and port in a store.

    store  ->  control/lease.py: what to write, to have a subnet and to keep it
           ->  control/roster.py: who comes, changes and goes  ->  Tunnel.change_peers
    all that was learned  ->  disk, for a start while the store is away

The rules are in ``lease`` and ``roster``, the store is behind ``stores/base``; here are the clock
and the order of things. Without the store everything goes on with what is known, for however long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

from tunnel.cluster.lease import (
    Acquired,
    Claim,
    Delete,
    Doubled,
    Exhausted,
    LeaseEvent,
    Lost,
    Put,
    Read,
    Wait,
)
from tunnel.cluster.network import Network
from tunnel.cluster.record import Record
from tunnel.cluster.registry import config_key, open_store, subnets_directory
from tunnel.cluster.roster import LINGER, Difference, Roster
from tunnel.cluster.state import Identity, State
from tunnel.cluster.stores.base import Batch, Snapshot, Store
from tunnel.config.cluster import ClusterConfig
from tunnel.config.node import Config, differences
from tunnel.errors import (
    ConfigError,
    ConflictError,
    LeaseExpiredError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    TunnelError,
    WatchGapError,
)
from tunnel.events import StoreFound, StoreLost, SubnetsChanged, SubnetsLost
from tunnel.linux.interface import find_addresses
from tunnel.linux.netlink import Netlink
from tunnel.linux.underlay import OVERHEAD
from tunnel.status import StoreStatus
from tunnel.tunnel import Tunnel
from tunnel.types import Address, Endpoint, Peer, Prefix

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = 2.0  # seconds that the store has at the start, where we know enough without it
_SHORTEST, _LONGEST = 0.25, 10.0  # seconds between attempts to reach it, growing by the double
_CALM = 0.25  # seconds: what changes meanwhile is applied as one
_RETRY = 30.0  # seconds until who could not be a peer is tried again
_SAVE = 2.0  # seconds between writes of what is known to disk, at least


@dataclass(frozen=True)
class _Refusal:
    """A member that could not become a peer."""

    peer: Peer
    why: str
    due: float


class Cluster:
    """
    One member of a cluster, between entering and leaving its ``async with`` block. Leaving it, or
    cancelling the task inside, closes the tunnel; the record stays in the store until its lease
    ends, so that a node that comes again has what it had.

    Entering takes as long as it takes to get a subnet. Only where an earlier run has left on disk
    what it knew, that is used if the store does not answer within two seconds.

    Args:
        confined, user: As in :meth:`Tunnel.from_config`.
        store: Instead of the one that `config` names.

    Raises:
        ConfigError, DeviceError, UnderlayError: As :class:`Tunnel`.
        StoreRefused: Entering, where nothing is known without the store.

    Attributes:
        tunnel: Open within the block.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        confined: bool = False,
        user: str | None = None,
        store: Store | None = None,
    ) -> None:
        self.config = config
        self.tunnel = Tunnel.from_config(
            config.node, confined=confined, user=user, config_source=self
        )
        self._store = store or open_store(config)
        self._state = State(config.state_dir, name=config.node.name)
        self._prefix = f"{config.etcd_prefix}/"
        self._random = Random()
        self._stack = AsyncExitStack()
        self._keeping: asyncio.Task[None] | None = None
        # Of the store.
        self._connected: bool | None = None
        self._since = time.monotonic()
        self._why = "not asked yet"
        self._revision = 0
        # For whom waits.
        self._stirred = asyncio.Event()  # our own key may be another
        self._changed = asyncio.Event()  # peers or subnets are others than the tunnel's
        # What the tunnel is to become; None for a peer that is to go.
        self._pending: dict[Endpoint, Peer | None] = {}
        self._refused: dict[Endpoint, _Refusal] = {}
        self._applying = asyncio.Lock()
        self._unsaved = False
        self._saved = 0.0
        self._trouble = ""

    async def __aenter__(self) -> Self:
        try:
            await self.tunnel.__aenter__()
            await self._apply()
        except BaseException:
            await self.close()
            raise
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Does what leaving the block does."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        try:
            if self._unsaved:
                await self._save()
        finally:
            await self.tunnel.close()
            await self._stack.aclose()

    async def reload(self, config: ClusterConfig) -> None:
        """
        Applies what differs in the configured peers. Cancelled, it is still done.

        Raises:
            ConfigError: Something else differs, which takes a restart; nothing was changed.
            TunnelError: A peer cannot be one. The others are.
        """
        for word in differences(self.config.node, config.node):
            if word not in ("peer", "loop"):
                raise ConfigError(f"{word} cannot change while it runs (restart it)", key=(word,))
        if replace(config, node=self.config.node) != self.config:
            raise ConfigError("what is about the store cannot change while it runs (restart it)")
        self.config = config
        self._take(self._roster.configure(config.node.peers))
        await self._apply()
        for peer in config.node.peers:
            if peer.endpoint in self._refused:
                raise TunnelError(self._refused[peer.endpoint].why)

    # What the tunnel asks of where it comes from.

    def prepare(self, *, user: str | None) -> None:
        self._state.prepare(user=user)

    async def load(self) -> Config:
        """Our subnets, and all else that the store says, or has said when it was asked last."""
        self._identity = self._state.identity()
        await self._stack.enter_async_context(self._store)
        self._ours = await self._addresses()
        kept = self._kept()
        try:
            async with asyncio.timeout(None if kept is None else _PATIENCE):
                await self._meet(kept)
        except (TimeoutError, StoreRefusedError) as error:
            if kept is None:
                raise
            log.warning(
                "%s: begins with what it knew of the store: %s", self._name, str(error) or self._why
            )
            self._begin(self._network_in(kept), kept)
        subnets = self._claim.subnets or self._identity.subnets
        if not set(self.config.prefer) <= set(subnets):
            log.warning(
                "%s: has %s, not %s as it would like (that is taken or not of this network, or it "
                "had this one already)",
                self._name,
                _spell(subnets),
                _spell(self.config.prefer),
            )
        self._settle(subnets)
        return self._config(subnets)

    def status(self) -> StoreStatus:
        claim: Claim | None = getattr(self, "_claim", None)
        until = claim.until if claim else None
        troubles = self._roster.troubles if claim else ()
        now = time.monotonic()
        return StoreStatus(
            address=self._store.address,
            connected=bool(self._connected),
            state_age=now - self._since,
            why=self._why,
            revision=self._revision,
            key=claim.key if claim else None,
            lease_remaining=None if until is None else max(0.0, until - now),
            troubles=(*((self._trouble,) if self._trouble else ()), *troubles),
        )

    # The start.

    @property
    def _name(self) -> str:
        return self.config.node.name

    async def _addresses(self) -> dict[int, Address]:
        """Ours in the underlay, by family."""
        config, local = self.config, self.config.node.local
        async with Netlink() as netlink:
            return await find_addresses(
                netlink,
                iface=[str(local)] if local else config.iface,
                regex=config.iface_regex,
                can_reach=config.iface_can_reach,
            )

    def _kept(self) -> Snapshot | None:
        """What an earlier run has left, if it is enough to begin with."""
        kept = self._state.members()
        if kept is None:
            return None
        with suppress(ConfigError):
            if self._network_in(kept).fits(self._identity.subnets):
                return kept
        return None

    async def _meet(self, kept: Snapshot | None) -> None:
        """Until there is a network, and we have subnets of it."""
        failures, said = 0, ""
        while True:
            try:
                snapshot = await self._ask(self._store.read(self._prefix))
                network = self._network_in(snapshot)
                break
            except (StoreUnavailableError, ConfigError) as error:
                if said != (said := str(error)):
                    log.warning("%s: waits, and tries again: %s", self._name, error)
            await self._pause(failures)
            failures += 1
        self._begin(network, kept or snapshot)
        self._know(snapshot)  # older than what was kept, if it was put back from a backup
        self._learn(snapshot)
        while not self._claim.subnets:
            await self._advance()

    def _network_in(self, snapshot: Snapshot) -> Network:
        key = config_key(self.config.etcd_prefix)
        entry = snapshot.entries.get(key)
        if entry is None:
            raise ConfigError(
                f"there is no {key} in {self._store.address} yet "
                '(write it with "tunnel network init", or choose another --etcd-prefix)'
            )
        try:
            return Network.parse(entry.value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error

    def _begin(self, network: Network, known: Snapshot) -> None:
        self._network = network
        for remark in network.remarks:
            log.warning("%s: %s", self._name, remark)
        record, directory = self._record(), subnets_directory(self.config.etcd_prefix)
        self._claim = Claim(
            network,
            record,
            directory=directory,
            random=self._random,
            prefer=self.config.prefer or self._identity.subnets,
            ttl=self.config.ttl,
            margin=60.0 * self.config.margin,
        )
        self._roster = Roster(network, record, directory=directory, static=self.config.node.peers)
        self._revision = known.revision
        self._take(self._roster.read(known, now=time.monotonic()))

    def _record(self) -> Record:
        """What we say of ourselves."""
        config, mac = self.config, self.config.node.mac or self._identity.mac
        address: Any = config.public_ip or self._ours.get(4)
        address6: Any = config.public_ipv6 or self._ours.get(6)
        # As flannel has it: the other family is of no use to anybody.
        families = {network.version for network in self._network.prefixes}
        if address is not None and 6 not in families:
            address6 = None
        return Record(
            address=address,
            address6=address6,
            mac=mac if address else None,
            mac6=mac if address6 else None,
            vni=self._network.vni,
            node=self._identity.node,
        )

    def _config(self, subnets: tuple[Prefix, ...]) -> Config:
        node, network = self.config.node, self._network
        local = node.local or self._ours.get(4) or self._ours.get(6)
        mtu = node.mtu
        if mtu is None and network.mtu is not None and local is not None:
            mtu = network.mtu - OVERHEAD[local.version]
        return self.config.joined(
            subnets=subnets,
            networks=network.prefixes,
            vni=network.vni,
            port=network.port,
            local=local,
            mtu=mtu,
            mac=node.mac or self._identity.mac,
        )

    # The store.

    async def _keep(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._hold(), self._follow(), self._update()):
                    tasks.create_task(work)
        except* Exception as group:  # ours: packets go on, and an operator has to see it
            self._note(f"does not follow it any more: {group.exceptions[0]!r} (restart this node)")
            log.exception("%s: does not follow the store any more", self._name, exc_info=group)

    async def _ask(self, work: Awaitable[T]) -> T:
        """What the store answers, or how it fails; and notes whether it is there."""
        try:
            answer = await work
        except (StoreUnavailableError, StoreRefusedError) as error:
            self._note(str(error))
            raise
        except StoreError:
            self._note("")
            raise
        self._note("")
        return answer

    def _note(self, why: str) -> None:
        """The store answers, or does not, and why."""
        before, self._why, self._connected = self._connected, why, not why
        if self._connected == before:
            return
        self._since = time.monotonic()
        if why and before is None:
            return  # whoever asked first says so
        if why:
            log.warning("%s: goes on without the store: %s", self._name, why)
            self.tunnel.emit(StoreLost(self._store.address, why))
        else:
            log.info("%s: the store answers at %s", self._name, self._store.address)
            self.tunnel.emit(StoreFound(self._store.address))

    async def _pause(self, failures: int) -> None:
        """Nodes that lost the store together do not all come back together."""
        longest = min(_LONGEST, _SHORTEST * 2 ** min(failures, 16))
        await asyncio.sleep(longest * self._random.uniform(0.5, 1))

    async def _hold(self) -> None:
        """Keeps our subnets ours."""
        while True:
            await self._advance()

    async def _advance(self) -> None:
        """One step of the claim."""
        claim = self._claim
        self._stirred.clear()
        step = claim.step(now=time.monotonic())
        try:
            match step:
                case Wait(until):
                    await _wait(self._stirred, until=until)
                case Read():
                    self._learn(await self._ask(self._store.read(self._prefix)))
                case Put():
                    await self._put(step)
                case Delete(key, expect):
                    await self._ask(self._store.delete(key, expect=expect))
                    claim.deleted(step)
        except ConflictError:
            claim.conflict(now=time.monotonic())
        except (StoreUnavailableError, StoreRefusedError, LeaseExpiredError):
            claim.away(now=time.monotonic())

    async def _put(self, put: Put) -> None:
        lease = None
        if put.ttl is not None:
            lease = await self._ask(self._store.grant(put.ttl))
        try:
            revision = await self._ask(
                self._store.put(put.key, put.value, expect=put.expect, lease=lease)
            )
        except ConflictError:
            if lease is not None:
                with suppress(StoreError):
                    await self._ask(self._store.revoke(lease))
            raise
        self._hear(self._claim.wrote(put, revision))

    async def _follow(self) -> None:
        """Learns who comes and goes, as it happens or afterwards."""
        failures = 0
        while True:
            try:
                async with aclosing(self._store.watch(self._prefix, after=self._revision)) as news:
                    async for batch in news:
                        failures = 0
                        self._note("")
                        self._hear_of(batch)
            except WatchGapError as error:
                log.info("%s: %s", self._name, error)
            except (StoreUnavailableError, StoreRefusedError) as error:
                self._note(str(error))
            await self._pause(failures)
            failures += 1
            # Not only after a gap: an etcd that was put back from a backup has other revisions.
            with suppress(StoreUnavailableError, StoreRefusedError):
                self._know(await self._ask(self._store.read(self._prefix)))
                self._claim.missed()
                self._stirred.set()

    def _hear_of(self, batch: Batch) -> None:
        self._revision = batch.revision
        self._claim.changed(batch)
        self._stirred.set()
        now = time.monotonic()
        # After an outage the news begin with who could not renew because of it.
        until = None if self._is_settled(now) else now + LINGER
        self._take(self._roster.changed(batch, until=until))
        for change in batch.changes:
            if change.key == config_key(self.config.etcd_prefix):
                self._compare(change.entry.value if change.entry else None)

    def _learn(self, snapshot: Snapshot) -> None:
        """All that is in the store, in answer to the claim."""
        if snapshot.revision >= self._revision:  # else the watch has told more already
            self._know(snapshot)
        self._hear(self._claim.read(snapshot, now=time.monotonic()))

    def _know(self, snapshot: Snapshot) -> None:
        """All that is in the store: whole values are compared."""
        self._revision = snapshot.revision
        self._take(self._roster.read(snapshot, now=time.monotonic()))
        entry = snapshot.entries.get(config_key(self.config.etcd_prefix))
        self._compare(entry.value if entry else None)

    def _is_settled(self, now: float) -> bool:
        """Whether the store has been there for long enough for everybody to come back."""
        return bool(self._connected) and now >= self._since + LINGER

    def _compare(self, value: bytes | None) -> None:
        """The network's config is read at the start: another one is told, and not followed."""
        trouble = ""
        try:
            if value is None:
                trouble = "the network's config is gone from the store"
            elif Network.parse(value) != self._network:
                trouble = "the network's config is another now (restart this node)"
        except ConfigError as error:
            trouble = f"the network's config is wrong now: {error}"
        if trouble and trouble != self._trouble:
            log.warning("%s: %s", self._name, trouble)
        self._trouble = trouble

    def _hear(self, news: Iterable[LeaseEvent]) -> None:
        """What became of our subnets."""
        for one in news:
            match one:
                case Acquired(subnets, before):
                    log.info("%s: has %s", self._name, _spell(subnets))
                    self.tunnel.emit(SubnetsChanged(subnets, before))
                    self._settle(subnets)
                case Lost(subnets, why):
                    log.error("%s: lost %s: %s (acquires again)", self._name, _spell(subnets), why)
                    self.tunnel.emit(SubnetsLost(subnets, why))
                case Exhausted(why):
                    log.error("%s: %s", self._name, why)
                case Doubled(where):
                    log.error(
                        "%s: %s has the same node id, from a copy of %s (remove the copy: that "
                        "host is a new node then)",
                        self._name,
                        where,
                        self._state.identity_path,
                    )

    # What follows from it.

    def _settle(self, subnets: tuple[Prefix, ...]) -> None:
        self._take(self._roster.settle_in(subnets))
        if subnets != self._identity.subnets:
            self._identity = replace(self._identity, subnets=subnets)
            self._write_identity(self._identity)
        self._changed.set()

    def _write_identity(self, identity: Identity) -> None:
        try:
            self._state.save_identity(identity)
        except ConfigError as error:
            # It is no reason to be without a subnet now.
            log.error("%s: %s", self._name, error)

    def _take(self, difference: Difference) -> None:
        """Applied soon, with what else changes until then."""
        for trouble in difference.troubles:
            log.warning("%s: %s", self._name, trouble)
        self._pending |= dict.fromkeys(difference.remove)
        self._pending |= {one.endpoint: one for one in (*difference.change, *difference.add)}
        self._unsaved = True
        self._changed.set()

    async def _update(self) -> None:
        """Has the tunnel be what it is to be."""
        while True:
            await _wait(self._changed, until=self._due())
            now = time.monotonic()
            if self._is_settled(now):
                self._take(self._roster.tick(now=now))
            self._changed.clear()
            for endpoint, refusal in self._refused.items():
                if now >= refusal.due:
                    self._pending.setdefault(endpoint, refusal.peer)
            try:
                await self._apply()
            except TunnelError as error:
                log.error("%s: %s", self._name, error)
                await asyncio.sleep(_RETRY)
                self._changed.set()
            if self._unsaved and now >= self._saved + _SAVE:
                await self._save()
            await asyncio.sleep(_CALM)

    def _due(self) -> float | None:
        now = time.monotonic()
        due = [refusal.due for refusal in self._refused.values()]
        due += [self._saved + _SAVE] if self._unsaved else []
        tick = self._roster.next_tick(now) if self._connected else None
        if tick is not None:
            tick = max(tick, self._since + LINGER)
        return min([*due, *([] if tick is None else [tick])], default=None)

    async def _apply(self) -> None:
        async with self._applying:
            # Taken off when it is done, or was refused: what fails as a whole is tried again.
            pending = dict(self._pending)
            come = {end: peer for end, peer in pending.items() if peer is not None}
            gone = [endpoint for endpoint in pending if endpoint not in come]
            subnets = self._claim.subnets or self.tunnel.config.subnets
            if subnets != self.tunnel.config.subnets:
                # What is ours now was somebody's until now, and the other way round.
                gone += come.keys() & set(self.tunnel.peers)
                await self.tunnel.change_peers(remove=gone)
                await self._move(subnets)
            elif not pending:
                return
            refused = await self.tunnel.change_peers(add=come.values(), remove=gone)
            for endpoint, peer in pending.items():
                self._refused.pop(endpoint, None)
                if self._pending[endpoint] is peer:  # and not another by now
                    del self._pending[endpoint]
            for endpoint, error in refused.items():
                self._refuse(come[endpoint], str(error))

    async def _move(self, subnets: tuple[Prefix, ...]) -> None:
        before = self.tunnel.config.subnets
        await self.tunnel.renumber(self._config(subnets))
        log.warning(
            "%s: has %s now, not %s: containers with addresses of that have to be made again",
            self._name,
            _spell(subnets),
            _spell(before),
        )

    def _refuse(self, peer: Peer, why: str) -> None:
        before = self._refused.get(peer.endpoint)
        if before is None or before.why != why:
            log.warning("%s: peer %s is left out: %s", self._name, peer.endpoint, why)
        self._refused[peer.endpoint] = _Refusal(peer, why, time.monotonic() + _RETRY)

    async def _save(self) -> None:
        self._unsaved, self._saved = False, time.monotonic()
        try:
            await asyncio.to_thread(self._state.save_members, self._roster.snapshot)
        except ConfigError as error:
            log.error("%s: %s", self._name, error)


async def _wait(event: asyncio.Event, *, until: float | None) -> None:
    """Until it is set, or that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            await event.wait()


def _spell(subnets: Iterable[Prefix]) -> str:
    return " and ".join(map(str, subnets))
