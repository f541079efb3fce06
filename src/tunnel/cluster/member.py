"""
A node of a cluster.

    config_source  ->  the tunnel opens, configured from the store
    follower  ->  keeper   ->  updater  ->  the tunnel
              ->  updater

Each of the three runs as a supervised task: one that fails is restarted alone. Without the store
the node continues with what it knows, for any length of time.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self

from tunnel.cluster.config_source import Membership, StoreConfigSource
from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.follower import StoreFollower
from tunnel.cluster.registry import open_store
from tunnel.cluster.state import State
from tunnel.cluster.stores.base import Store
from tunnel.cluster.updater import PeerUpdater
from tunnel.config.cluster import ClusterConfig, cluster_differences
from tunnel.errors import ConfigError, StateError
from tunnel.supervise import finish
from tunnel.tunnel import Tunnel

LEASE_KEEPER, STORE_FOLLOWER, PEER_UPDATER = "lease keeper", "store follower", "peer updater"
"""Names of the supervised tasks."""


class Cluster:
    """
    One node of a cluster, between entering and leaving its ``async with`` block.

    Leaving the block, or cancelling the task inside it, closes the tunnel. The record stays in the
    store until its lease ends, so that a node that returns gets the subnet that it had.

    Entering waits until the store grants a subnet. If an earlier run left the members on disk, the
    node starts with those when the store does not answer within two seconds.

    Args:
        device, confined, user: As in :class:`Tunnel`.
        store: Used instead of the one that `config` names.

    Raises:
        ConfigError, DeviceError, UnderlayError: As :class:`Tunnel`.
        StoreRefusedError: Entering, if the store refuses the node and the disk has no members.
        StateError: Entering a second time.

    Attributes:
        tunnel: Open within the block.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        device: Literal["tun"] | None = "tun",
        confined: bool = False,
        user: str | None = None,
        store: Store | None = None,
    ) -> None:
        self.config = config
        name = config.node.name
        self._state = State(config.state_dir, name=name)
        self._connection = StoreConnection(store or open_store(config), name=name)
        self._source = StoreConfigSource(config, connection=self._connection, state=self._state)
        self.tunnel = Tunnel(
            config.node, device=device, confined=confined, user=user, config_source=self._source
        )
        self._connection.publish = self.tunnel.emit
        self._updater: PeerUpdater | None = None
        self._is_entered = False
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._is_entered or self._closing is not None:
            raise StateError(f"{self.config.node.name} was entered before (make another Cluster)")
        self._is_entered = True
        try:
            await self.tunnel.__aenter__()
            assert self._source.membership is not None
            await self._start(self._source.membership)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Does what leaving the block does. It finishes first, however often it is cancelled."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await finish(self._closing)

    async def reload(self, config: ClusterConfig) -> None:
        """
        Applies the configured peers of `config`. If cancelled, it still completes.

        Raises:
            ConfigError: Another option differs, which takes a restart; nothing was changed.
            TunnelError: A peer was refused. The others are applied.
            StateError: The block was not entered.
        """
        if self._updater is None:
            raise StateError(f"{self.config.node.name} is not open (enter it with async with)")
        for option in cluster_differences(self.config, config):
            if option not in ("peer", "loop"):
                raise ConfigError(
                    f"{option} cannot change while the node runs (restart the node)", key=(option,)
                )
        self.config = config
        await self._updater.reload(config.node.peers)

    async def _start(self, member: Membership) -> None:
        self._updater = PeerUpdater(
            self.tunnel,
            roster=member.roster,
            connection=self._connection,
            state=self._state,
            identity=member.identity,
            configure=member.configure,
            updates=member.updates,
            prefix=f"{self.config.etcd_prefix}/",
        )
        follower = StoreFollower(
            self._connection,
            prefix=f"{self.config.etcd_prefix}/",
            revision=member.roster.revision,
            readers=(member.keeper.changes, member.updates),
            name=self.config.node.name,
        )
        await self._updater.apply()
        self.tunnel.supervisor.start(LEASE_KEEPER, member.keeper.run)
        self.tunnel.supervisor.start(STORE_FOLLOWER, follower.run)
        self.tunnel.supervisor.start(PEER_UPDATER, self._updater.run)

    async def _close(self) -> None:
        try:
            await self.tunnel.supervisor.stop((STORE_FOLLOWER, LEASE_KEEPER, PEER_UPDATER))
            if self._updater is not None:
                await self._updater.save()
        finally:
            try:
                await self.tunnel.close()
            finally:
                await self._source.close()
