"""
Nodes that find each other in a store: etcd, in flannel's format, or a shared directory.

    member                a node: opens the tunnel, and runs the three tasks below
    config_source         joins: from the options of a node to its whole configuration
    lease_keeper          acquires subnets and renews their lease
    follower              follows what other nodes write
    updater               applies that to the tunnel
    connection            whether the store answers
    lease, roster         the rules: how a subnet is acquired; which peers follow from records
    network, record       the content of the store
    state, cache          what a node keeps on disk
    registry              the network as an administrator sees it
    stores/               the stores themselves

The rules know no clock, socket or loop. Imports :mod:`tunnel.tunnel`, linux, config and what is
below. The names below are imported when they are first used: only etcd needs aiohttp.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.cluster.member import Cluster
    from tunnel.cluster.network import Network
    from tunnel.cluster.registry import Registry, SubnetHolder, make_network, open_store
    from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot, Store
    from tunnel.cluster.stores.directory import DirectoryStore
    from tunnel.cluster.stores.etcd import EtcdStore
    from tunnel.config.cluster import ClusterConfig

__all__ = [
    "Batch",
    "Change",
    "Cluster",
    "ClusterConfig",
    "DirectoryStore",
    "Entry",
    "EtcdStore",
    "Network",
    "Registry",
    "Snapshot",
    "Store",
    "SubnetHolder",
    "make_network",
    "open_store",
]

_MODULES = {
    "Batch": "tunnel.cluster.stores.base",
    "Change": "tunnel.cluster.stores.base",
    "Cluster": "tunnel.cluster.member",
    "ClusterConfig": "tunnel.config.cluster",
    "DirectoryStore": "tunnel.cluster.stores.directory",
    "Entry": "tunnel.cluster.stores.base",
    "EtcdStore": "tunnel.cluster.stores.etcd",
    "Network": "tunnel.cluster.network",
    "Registry": "tunnel.cluster.registry",
    "Snapshot": "tunnel.cluster.stores.base",
    "Store": "tunnel.cluster.stores.base",
    "SubnetHolder": "tunnel.cluster.registry",
    "make_network": "tunnel.cluster.registry",
    "open_store": "tunnel.cluster.registry",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
