"""
A VXLAN overlay network in user space.

    async with Tunnel(name="tunnel1", subnets=["10.244.1.0/24"],
                      peers=[Peer("192.0.2.2", ["10.244.2.0/24"])]) as tunnel:
        await tunnel.wait_closed()

:class:`Tunnel` is one end of an overlay; it has a method for everything that the command
``tunnel`` asks or changes. :class:`Cluster` is a tunnel that finds its peers in a store.
:class:`Service` serves the control socket of a tunnel, and :class:`Client` sends requests to one.

The values that methods return are in :mod:`tunnel.status`, :mod:`tunnel.events` and
:mod:`tunnel.diagnostics`, the other errors in :mod:`tunnel.errors`, the network in the store as
administrators see it in :mod:`tunnel.cluster`. The names below are imported when they are first
used, so that ``import tunnel.vxlan``, the header codec, loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.cluster.member import Cluster
    from tunnel.config.cluster import ClusterConfig
    from tunnel.config.node import Config
    from tunnel.errors import ConfigError, NoAnswerError, TunnelError
    from tunnel.rpc.client import Client
    from tunnel.rpc.server import Service
    from tunnel.tunnel import Tunnel
    from tunnel.types import Endpoint, Mac, Peer

    __version__: str

__all__ = [
    "Client",
    "Cluster",
    "ClusterConfig",
    "Config",
    "ConfigError",
    "Endpoint",
    "Mac",
    "NoAnswerError",
    "Peer",
    "Service",
    "Tunnel",
    "TunnelError",
]

_MODULES = {
    "Client": "tunnel.rpc.client",
    "Cluster": "tunnel.cluster.member",
    "ClusterConfig": "tunnel.config.cluster",
    "Config": "tunnel.config.node",
    "ConfigError": "tunnel.errors",
    "Endpoint": "tunnel.types",
    "Mac": "tunnel.types",
    "NoAnswerError": "tunnel.errors",
    "Peer": "tunnel.types",
    "Service": "tunnel.rpc.server",
    "Tunnel": "tunnel.tunnel",
    "TunnelError": "tunnel.errors",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("tunnel")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
