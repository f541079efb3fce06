"""
The network of a cluster as it stands in its store: read, written and checked for people.

    <prefix>/config               control/network.py
    <prefix>/subnets/10.5.52.0-24 control/lease.py
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunnel.cluster.network import Network, Pool, faults, join_prefixes, make_key
from tunnel.cluster.record import Lease, Record, leases_of
from tunnel.cluster.stores.base import Store
from tunnel.config.cluster import ClusterConfig
from tunnel.errors import ConfigError, ConflictError, LeaseExpiredError
from tunnel.prefixes import overlap
from tunnel.types import Address, Prefix, parse_address

_AT_ONCE = 50  # questions to the store

NetworkCheck = tuple[Network | None, list[str]]
"""A network, and what is to be said about its config."""


def open_store(config: ClusterConfig) -> Store:
    """
    The store that is named, not asked yet; only its own libraries are loaded.

    Raises:
        ConfigError: Its words cannot be, a file cannot be read, or a library is missing.
    """
    if config.store is not None:
        from tunnel.cluster.stores.directory import DirectoryStore  # noqa: PLC0415

        return DirectoryStore(config.store)
    try:
        from tunnel.cluster.stores.etcd import EtcdStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'etcd takes {error.name}, which is not installed (pip install "tunnel[cluster]")'
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
    Who has a subnet.

    Attributes:
        node: Its id, empty for flannel's.
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
    """A network in a store that is open. Each call raises what the store does."""

    def __init__(self, store: Store, *, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    async def create(self, network: Network, *, replace: bool) -> None:
        """
        Writes the config.

        Raises:
            ConfigError: There is another one, and it is not to be replaced.
        """
        key = config_key(self._prefix)
        there = (await self._store.read(key)).entries.get(key)
        value = network.text().encode()
        if there is not None and not replace and there.value != value:
            raise ConfigError(
                f"{key} is there already, and another (see tunnel network show; --replace writes "
                "over it, which takes a restart of every node)"
            )
        if there is None or there.value != value:
            await self._store.put(key, value, expect=there.revision if there else 0)

    async def show(self) -> NetworkCheck:
        """The network, None where its config is wrong, and remarks or faults in words."""
        key = config_key(self._prefix)
        there = (await self._store.read(key)).entries.get(key)
        if there is None:
            raise ConfigError(f'{key} is not there (write it with "tunnel network init")')
        wrong = faults(there.value)
        if wrong:
            return None, [str(error) for error in wrong]
        network = Network.parse(there.value)
        return network, list(network.remarks)

    async def leases(self) -> list[SubnetHolder]:
        """All that is claimed, in the order of subnets."""
        found = await self._read()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(lease: Lease) -> SubnetHolder:
            async with gate:
                return _claimed(lease, await self._remaining(lease))

        claims = await asyncio.gather(*map(ask, found))
        return sorted(claims, key=lambda one: [(n.version, n) for n in one.subnets])

    async def reserve(self, subnets: tuple[Prefix, ...], *, owner: Record) -> None:
        """
        Keeps subnets for a node, by its id or its address, for as long as nobody releases them.

        Raises:
            ConfigError: They are no subnets of this network, or another's.
        """
        network, _ = await self.show()
        if network is None:
            raise ConfigError("the network's config is wrong (see tunnel network show)")
        if not network.fits(subnets):
            wanted = " and ".join(f"a /{pool.length} of {pool.network}" for pool in network.pools)
            raise ConfigError(f"{join_prefixes(subnets)} is not what a node has here ({wanted})")
        key = subnets_directory(self._prefix) + make_key(subnets)
        for lease in await self._read():
            shared = any(overlap(one, other) for one in subnets for other in lease.subnets)
            ours = lease.key == key and lease.record and owner.is_same_node(lease.record)
            if shared and not ours:
                raise ConfigError(
                    f"{join_prefixes(subnets)} overlaps {lease.key} (see network leases)"
                )
        there = (await self._store.read(key)).entries.get(key)
        # Who has it keeps what it says of itself.
        value = there.value if there else owner.text()
        await self._store.put(key, value, expect=there.revision if there else 0)

    async def release(self, subnets: Iterable[Prefix], *, force: bool) -> tuple[Prefix, ...]:
        """
        Lets a reservation go, or with `force` a node's lease. Returns its subnets.

        Raises:
            ConfigError: There is none, or it is a lease.
        """
        wanted = set(subnets)
        lease = next((one for one in await self._read() if wanted <= set(one.subnets)), None)
        if lease is None:
            raise ConfigError(f"nobody has {join_prefixes(subnets)} (see tunnel network leases)")
        if not lease.is_reservation and not force:
            raise ConfigError(
                f"{lease.key} is the lease of a node, which would acquire again (give --force if "
                "it is gone for good)"
            )
        try:
            await self._store.delete(lease.key, expect=lease.entry.revision)
        except ConflictError as error:
            raise ConfigError(f"{lease.key} has just been renewed: its node runs") from error
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
    networks: Iterable[Prefix],
    *,
    lengths: Mapping[int, int | None],
    ends: Mapping[int, Sequence[Address | None]],
    vni: int,
    port: int,
    mtu: int | None,
) -> Network:
    """`lengths` and `ends` are by family. Raises ConfigError where these are no network."""
    pools = {}
    for prefix in networks:
        first, last = ends[prefix.version]
        if prefix.version in pools:
            raise ConfigError(f"network {prefix} is the second of IPv{prefix.version} (give one)")
        pools[prefix.version] = Pool.of(
            prefix, length=lengths[prefix.version], first=first, last=last
        )
    made = tuple(pool for _, pool in sorted(pools.items()))
    network = Network(made, vni=vni, port=port, mtu=mtu)
    for error in faults(network.text().encode()):
        raise error
    return network


def make_owner(*, node: str, address: str) -> Record:
    """For whom a subnet is reserved. Raises ConfigError where it is no id, or no address."""
    where = parse_address(address) if address else None
    four = where if isinstance(where, ipaddress.IPv4Address) else None
    six = where if isinstance(where, ipaddress.IPv6Address) else None
    record = Record(address=four, address6=six, node=node, backend="")
    Record.parse(record.text())  # others have to be able to
    return record


def _claimed(lease: Lease, remaining: float | None) -> SubnetHolder:
    record = lease.record
    state = "lease" if remaining is not None else "reserved"
    if record is None:
        state = "unreadable"
    elif not record.backend:
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
