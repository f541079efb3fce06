"""
The network of a cluster as an administrator sees it: created, checked, and its subnets assigned.

    <prefix>/config                 the network, see :mod:`tunnel.cluster.network`
    <prefix>/subnets/10.5.52.0-24   the node that has a subnet, see :mod:`tunnel.cluster.record`
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunnel.cluster.network import DEFAULT_VNI, Network, Pool, faults, join_prefixes, make_key
from tunnel.cluster.record import Lease, Record, leases_of
from tunnel.cluster.stores.base import Store
from tunnel.config.cluster import ClusterConfig
from tunnel.errors import ConfigError, ConflictError, LeaseExpiredError
from tunnel.prefixes import overlap
from tunnel.types import DEFAULT_PORT, Address, Prefix, parse_address, parse_prefix

DEFAULT_PREFIX = "/coreos.com/network"
"""Of all keys, as flannel has it."""

_AT_ONCE = 50  # requests to the store

NetworkCheck = tuple[Network | None, list[str]]
"""A network, None if its config is wrong; and remarks about the config, or its faults."""


def open_store(config: ClusterConfig) -> Store:
    """
    The store that `config` names; it is not contacted yet.

    Raises:
        ConfigError: A value is wrong, a file cannot be read, or a library is missing.
    """
    if config.store is not None:
        from tunnel.cluster.stores.directory import DirectoryStore  # noqa: PLC0415

        return DirectoryStore(config.store)
    try:
        from tunnel.cluster.stores.etcd import EtcdStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'etcd needs {error.name}, which is not installed (pip install "tunnel[cluster]")'
        ) from error
    return EtcdStore(
        config.etcd_endpoints,
        cafile=config.etcd_cafile,
        certfile=config.etcd_certfile,
        keyfile=config.etcd_keyfile,
        username=config.etcd_username,
        password=config.etcd_password,
    )


def config_key(prefix: str) -> str:
    return f"{prefix}/config"


def subnets_directory(prefix: str) -> str:
    return f"{prefix}/subnets/"


@dataclass(frozen=True)
class SubnetHolder:
    """
    The node that has a subnet, or one of each family.

    Attributes:
        node: Its id, empty for a node of flannel.
        mac: Empty if the record has none.
        backend: Empty if the record names none: the subnet is free, or that of a node with
            flannel's udp or alloc backend.
        state: ``lease``, ``reserved`` (and in use), ``free`` (reserved, not in use) or
            ``unreadable``.
        remaining: Seconds until the lease expires, None for a reservation.
    """

    subnets: tuple[Prefix, ...]
    node: str
    address: Address | None
    address6: Address | None
    mac: str
    backend: str
    state: str
    remaining: float | None


class Registry:
    """
    The network in a store that is open.

    Every method raises what the store raises. If cancelled, one that writes may have written.

    Args:
        prefix: The prefix of all keys.
    """

    def __init__(self, store: Store, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._store, self._prefix = store, prefix

    async def create(self, network: Network, *, replace: bool = False) -> None:
        """
        Writes the config of the network.

        Raises:
            ConfigError: There is a different one, and `replace` is false.
        """
        key = config_key(self._prefix)
        before = (await self._store.read(key)).entries.get(key)
        value = network.text().encode()
        if before is not None and not replace and before.value != value:
            raise ConfigError(
                f"{key} exists and is different (see tunnel network show; --replace writes over "
                "it, which takes a restart of every node)"
            )
        if before is None or before.value != value:
            await self._store.put(key, value, expect=before.revision if before else 0)

    async def show(self) -> NetworkCheck:
        """
        The network and remarks about its config.

        Raises:
            ConfigError: There is no config.
        """
        key = config_key(self._prefix)
        entry = (await self._store.read(key)).entries.get(key)
        if entry is None:
            raise ConfigError(f'{key} does not exist (write it with "tunnel network init")')
        wrong = faults(entry.value)
        if wrong:
            return None, [str(error) for error in wrong]
        network = Network.parse(entry.value)
        return network, list(network.remarks)

    async def leases(self) -> list[SubnetHolder]:
        """All leases and reservations, in the order of their subnets."""
        found = await self._read()
        limit = asyncio.Semaphore(_AT_ONCE)

        async def describe(lease: Lease) -> SubnetHolder:
            async with limit:
                return _describe(lease, await self._remaining(lease))

        holders = await asyncio.gather(*map(describe, found))
        return sorted(holders, key=lambda one: [(n.version, n) for n in one.subnets])

    async def reserve(self, subnets: tuple[Prefix, ...], *, owner: Record) -> None:
        """
        Reserves subnets for a node, by its id or address, until they are released.

        Raises:
            ConfigError: They are not subnets of this network, or another node has them.
        """
        network, _ = await self.show()
        if network is None:
            raise ConfigError("the network's config is wrong (see tunnel network show)")
        if not network.fits(subnets):
            wanted = " and ".join(f"a /{pool.length} of {pool.network}" for pool in network.pools)
            raise ConfigError(
                f"{join_prefixes(subnets)} does not fit this network (a node has {wanted})"
            )
        key = subnets_directory(self._prefix) + make_key(subnets)
        for lease in await self._read():
            shared = any(overlap(one, other) for one in subnets for other in lease.subnets)
            same = lease.key == key and lease.record and owner.is_same_node(lease.record)
            if shared and not same:
                raise ConfigError(
                    f"{join_prefixes(subnets)} overlaps {lease.key} (see network leases)"
                )
        before = (await self._store.read(key)).entries.get(key)
        # A node that has the subnet already keeps its record.
        value = before.value if before else owner.text()
        await self._store.put(key, value, expect=before.revision if before else 0)

    async def release(
        self, subnets: Iterable[Prefix], *, force: bool = False
    ) -> tuple[Prefix, ...]:
        """
        Deletes a reservation, or with `force` the lease of a node. Returns its subnets.

        Raises:
            ConfigError: There is none, it is a lease and `force` is false, or its node has just
                renewed it.
        """
        wanted = set(subnets)
        lease = next((one for one in await self._read() if wanted <= set(one.subnets)), None)
        if lease is None:
            raise ConfigError(f"no node has {join_prefixes(wanted)} (see tunnel network leases)")
        if not lease.is_reservation and not force:
            raise ConfigError(
                f"{lease.key} is the lease of a node, which would acquire it again (give --force "
                "if the node will not return)"
            )
        try:
            await self._store.delete(lease.key, expect=lease.entry.revision)
        except ConflictError as error:
            raise ConfigError(f"{lease.key} has just been renewed: its node is running") from error
        return lease.subnets

    async def _read(self) -> list[Lease]:
        directory = subnets_directory(self._prefix)
        snapshot = await self._store.read(directory)
        return list(leases_of(snapshot.entries, directory=directory))

    async def _remaining(self, lease: Lease) -> float | None:
        if lease.entry.lease is None:
            return None
        try:
            return await self._store.time_left(lease.entry.lease)
        except LeaseExpiredError:
            return 0.0


def make_network(
    networks: Iterable[str | Prefix],
    *,
    lengths: Mapping[int, int | None] | None = None,
    ends: Mapping[int, Sequence[Address | None]] | None = None,
    vni: int = DEFAULT_VNI,
    port: int = DEFAULT_PORT,
    mtu: int | None = None,
) -> Network:
    """
    A network for :meth:`Registry.create`.

    Args:
        networks: The overlay's prefix, at most one of each family.
        lengths: By IP version, the prefix length of a node's subnet; 24 and 64 by default.
        ends: By IP version, the first and the last subnet for nodes, by their addresses.
        vni: 0 to 2**24-1.
        port: The UDP port of every node.
        mtu: MTU of the underlay, in bytes; None for that of each node's interface.

    Raises:
        ConfigError: These do not make a network.
    """
    lengths, ends = lengths or {}, ends or {}
    pools: dict[int, Pool] = {}
    for prefix in map(parse_prefix, networks):
        first, last = ends.get(prefix.version, (None, None))
        if prefix.version in pools:
            raise ConfigError(f"network {prefix} is the second of IPv{prefix.version} (give one)")
        pools[prefix.version] = Pool.of(
            prefix, length=lengths.get(prefix.version), first=first, last=last
        )
    made = tuple(pool for _, pool in sorted(pools.items()))
    network = Network(made, vni=vni, port=port, mtu=mtu)
    for error in faults(network.text().encode()):
        raise error
    return network


def make_owner(*, node: str, address: str) -> Record:
    """The record of a reservation. Raises ConfigError for a wrong id or address."""
    parsed = parse_address(address) if address else None
    four = parsed if isinstance(parsed, ipaddress.IPv4Address) else None
    six = parsed if isinstance(parsed, ipaddress.IPv6Address) else None
    record = Record(address=four, address6=six, node=node, backend="")
    Record.parse(record.text())  # raises if other nodes could not read it
    return record


def _describe(lease: Lease, remaining: float | None) -> SubnetHolder:
    record = lease.record
    state = "lease" if remaining is not None else "reserved"
    if record is None:
        state = "unreadable"
    elif lease.is_unused:
        state = "free"
    macs = [str(mac) for mac in (record.mac, record.mac6) if mac] if record else []
    return SubnetHolder(
        subnets=lease.subnets,
        node=record.node if record else "",
        address=record.address if record else None,
        address6=record.address6 if record else None,
        mac=macs[0] if macs else "",
        backend=record.backend if record else "",
        state=state,
        remaining=remaining,
    )
