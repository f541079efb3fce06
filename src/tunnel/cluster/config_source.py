"""
Joins a cluster: from the options of a node to the whole configuration of its tunnel.

    ClusterConfig  ->  addresses of this host, identity on disk, network in the store
                   ->  a subnet  ->  Config, and the Membership of the running node

A node starts without the store only if an earlier run left the members on disk: after two seconds
without an answer it uses those.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.lease import Claim
from tunnel.cluster.lease_keeper import LeaseKeeper
from tunnel.cluster.network import Network, join_prefixes
from tunnel.cluster.record import Record
from tunnel.cluster.registry import config_key, subnets_directory
from tunnel.cluster.roster import Roster
from tunnel.cluster.state import Identity, State
from tunnel.cluster.stores.base import Snapshot
from tunnel.cluster.updater import Update
from tunnel.config.cluster import ClusterConfig
from tunnel.config.node import Config
from tunnel.errors import ConfigError, StoreRefusedError, StoreUnavailableError
from tunnel.linux.interface import find_addresses
from tunnel.linux.netlink import Netlink
from tunnel.linux.underlay import OVERHEAD
from tunnel.status import StoreStatus
from tunnel.types import Address, Prefix

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds that the store has at the start, if the disk has enough without it


@dataclass(frozen=True)
class Membership:
    """
    The state of a node that has joined its cluster.

    Attributes:
        addresses: The node's underlay addresses, by IP version.
        identity: The node's identity, as on disk.
        revision: The state of the store that `roster` knows.
        updates: The changes to apply to the tunnel.
    """

    config: ClusterConfig
    network: Network
    addresses: dict[int, Address]
    identity: Identity
    keeper: LeaseKeeper
    roster: Roster
    updates: asyncio.Queue[Update]

    def configure(self, subnets: tuple[Prefix, ...]) -> Config:
        """The configuration of a tunnel with these subnets."""
        node, network = self.config.node, self.network
        local = node.local or self.addresses.get(4) or self.addresses.get(6)
        mtu = node.mtu
        if mtu is None and network.mtu is not None and local is not None:
            mtu = network.mtu - OVERHEAD[local.version]
        return self.config.complete(
            subnets=subnets,
            networks=network.prefixes,
            vni=network.vni,
            port=network.port,
            local=local,
            mtu=mtu,
            mac=node.mac or self.identity.mac,
        )


class StoreConfigSource:
    """
    The :class:`tunnel.node.config_source.ConfigSource` of a node whose configuration is in a store.

    Attributes:
        membership: None until the node has joined.
    """

    def __init__(self, config: ClusterConfig, *, connection: StoreConnection, state: State) -> None:
        self.membership: Membership | None = None
        self._config, self._connection, self._state = config, connection, state
        self._name = config.node.name
        self._prefix = f"{config.etcd_prefix}/"
        self._is_entered = False
        self._waits_for = ""

    def prepare(self, *, user: str | None) -> None:
        """Makes the state directory writable for `user`."""
        self._state.prepare(user=user)

    async def load(self) -> Config:
        """The configuration of the tunnel, once there is a network and a subnet for this node.
        If cancelled, a subnet may have been acquired; the next start finds it."""
        identity = await asyncio.to_thread(self._state.identity)
        await self._connection.store.__aenter__()
        self._is_entered = True
        addresses = await self._find_addresses()
        kept = await self._read_kept(identity)
        try:
            async with asyncio.timeout(None if kept is None else _PATIENCE):
                member = await self._join_network(identity, addresses, kept)
        except (TimeoutError, StoreRefusedError) as error:
            if kept is None:
                raise
            why = str(error) or self._connection.why
            log.warning("%s: starts with the members on disk: %s", self._name, why)
            member = self._enter(
                self._find_network(kept), kept, identity=identity, addresses=addresses
            )
        return await self._start(member)

    async def close(self) -> None:
        """Closes the store."""
        if self._is_entered:
            self._is_entered = False
            await self._connection.store.__aexit__(None, None, None)

    def status(self) -> StoreStatus:
        member, connection = self.membership, self._connection
        claim = member.keeper.claim if member else None
        now = time.monotonic()
        lease_ends = claim.until if claim else None
        waits_for = self._waits_for or (member.keeper.problem if member else "")
        return StoreStatus(
            address=connection.store.address,
            connected=bool(connection.connected),
            state_age=now - connection.since,
            why=connection.why or waits_for,
            revision=member.roster.revision if member else 0,
            key=claim.key if claim else None,
            lease_remaining=None if lease_ends is None else max(0.0, lease_ends - now),
            troubles=member.roster.problems if member else (),
        )

    async def _find_addresses(self) -> dict[int, Address]:
        config, local = self._config, self._config.node.local
        if local is not None and local.is_loopback:  # nodes that share one host
            return {local.version: local}
        async with Netlink() as netlink:
            return await find_addresses(
                netlink,
                iface=[str(local)] if local else config.iface,
                regex=config.iface_regex,
                can_reach=config.iface_can_reach,
            )

    async def _read_kept(self, identity: Identity) -> Snapshot | None:
        """The members on disk, if the node can start with them."""
        kept = await asyncio.to_thread(self._state.members)
        if kept is None:
            return None
        with suppress(ConfigError):
            if self._find_network(kept).fits(identity.subnets):
                return kept
        return None

    async def _join_network(
        self, identity: Identity, addresses: dict[int, Address], kept: Snapshot | None
    ) -> Membership:
        """Waits for a network, and for subnets of it."""
        snapshot, network = await self._wait_for_network()
        member = self._enter(network, kept or snapshot, identity=identity, addresses=addresses)
        # It is older than `kept` if the store was restored from a backup.
        self._warn(member.roster.read(snapshot, now=time.monotonic()).problems)
        await member.keeper.acquire()
        return member

    async def _wait_for_network(self) -> tuple[Snapshot, Network]:
        failures = 0
        while True:
            try:
                store = self._connection.store
                snapshot = await self._connection.ask(store.read(self._prefix))
                network = self._find_network(snapshot)
                self._waits_for = ""
                return snapshot, network
            except (StoreUnavailableError, ConfigError) as error:
                if self._waits_for != (why := str(error)):
                    log.warning("%s: waits for the network: %s", self._name, why)
                self._waits_for = why
            await self._connection.pause(failures)
            failures += 1

    def _find_network(self, snapshot: Snapshot) -> Network:
        key = config_key(self._config.etcd_prefix)
        entry = snapshot.entries.get(key)
        if entry is None:
            raise ConfigError(
                f"there is no {key} in {self._connection.store.address} yet "
                '(write it with "tunnel network init", or choose another --etcd-prefix)'
            )
        try:
            return Network.parse(entry.value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error

    def _enter(
        self,
        network: Network,
        known: Snapshot,
        *,
        identity: Identity,
        addresses: dict[int, Address],
    ) -> Membership:
        """The membership in a network whose members are `known`."""
        self._warn(network.remarks)
        config = self._config
        record = self._make_record(network, identity=identity, addresses=addresses)
        directory = subnets_directory(config.etcd_prefix)
        claim = Claim(
            network,
            record,
            directory=directory,
            random=Random(),
            prefer=config.prefer or identity.subnets,
            ttl=config.ttl,
            margin=None if config.margin is None else 60.0 * config.margin,
        )
        updates: asyncio.Queue[Update] = asyncio.Queue()
        keeper = LeaseKeeper(
            claim,
            self._connection,
            acquired=updates,
            prefix=self._prefix,
            name=self._name,
            identity_path=self._state.identity_path,
        )
        roster = Roster(
            network,
            record,
            directory=directory,
            config_key=config_key(config.etcd_prefix),
            static=config.node.peers,
        )
        self._warn(roster.read(known, now=time.monotonic()).problems)
        self.membership = Membership(config, network, addresses, identity, keeper, roster, updates)
        return self.membership

    def _make_record(
        self, network: Network, *, identity: Identity, addresses: dict[int, Address]
    ) -> Record:
        """The record of this node."""
        config, mac = self._config, self._config.node.mac or identity.mac
        address: Any = config.public_ip or addresses.get(4)
        address6: Any = config.public_ipv6 or addresses.get(6)
        # As in flannel: no node needs an address of a family that the network does not have.
        families = {prefix.version for prefix in network.prefixes}
        if address is not None and 6 not in families:
            address6 = None
        return Record(
            address=address,
            address6=address6,
            mac=mac if address else None,
            mac6=mac if address6 else None,
            vni=network.vni,
            node=identity.node,
        )

    async def _start(self, member: Membership) -> Config:
        """Records the subnets of the node, and returns its configuration."""
        subnets = member.keeper.claim.subnets or member.identity.subnets
        prefer = self._config.prefer
        if not set(prefer) <= set(subnets):
            log.warning(
                "%s: has %s, not %s as preferred (that is taken, not in this network, or not "
                "the subnet that the node had before)",
                self._name,
                join_prefixes(subnets),
                join_prefixes(prefer),
            )
        self._warn(member.roster.set_own_subnets(subnets).problems)
        if subnets != member.identity.subnets:
            identity = replace(member.identity, subnets=subnets)
            try:
                await asyncio.to_thread(self._state.save_identity, identity)
            except ConfigError as error:  # the node can run all the same
                log.error("%s: %s", self._name, error)
            member = self.membership = replace(member, identity=identity)
        return member.configure(subnets)

    def _warn(self, problems: tuple[str, ...]) -> None:
        for problem in problems:
            log.warning("%s: %s", self._name, problem)
