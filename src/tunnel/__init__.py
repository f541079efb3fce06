"""
A user-space VXLAN overlay.

    async with Tunnel(name="tunnel1", subnets=["10.244.1.0/24"],
                      peers=[Peer("192.0.2.2", ["10.244.2.0/24"])]) as tunnel:
        await tunnel.wait_closed()

:class:`Tunnel` is one end of it, with a method for each thing that the command ``tunnel`` can ask
or change. :class:`Cluster` is one that finds its peers in a store. :class:`Service` opens the
control socket for a tunnel, so that the command sees it, and :class:`Client` asks at one. What
goes wrong is a :class:`TunnelError`; all else here is what methods take, return and yield.

Beside these: ``tunnel.vxlan``, the header codec; ``tunnel.metrics``, for Prometheus;
``tunnel.doctor``, which looks at a host without a node, too; ``tunnel.decode``, which takes scapy.
"""

from importlib.metadata import version

from tunnel.capture import Capture
from tunnel.client import Client
from tunnel.cluster import Cluster
from tunnel.config import ClusterConfig, Config
from tunnel.control.walk import Layer, Step, Verdict, Walk
from tunnel.doctor import Finding, Level
from tunnel.errors import (
    CodecError,
    ConfigError,
    DeviceError,
    NoAnswer,
    StoreError,
    TunnelError,
    UnderlayError,
)
from tunnel.events import (
    Event,
    EventsLost,
    MacChanged,
    OffloadLost,
    PathChanged,
    PeerAdded,
    PeerChanged,
    PeerRemoved,
    PeerSilent,
    PeerUp,
    StoreFound,
    StoreLost,
    SubnetsChanged,
    SubnetsLost,
)
from tunnel.pcapng import Interface, Packet
from tunnel.service import Service
from tunnel.tunnel import Tunnel
from tunnel.types import (
    Drop,
    Endpoint,
    FdbEntry,
    Mac,
    MacSource,
    Neighbour,
    Peer,
    PeerState,
    PeerStats,
    PeerStatus,
    Route,
    Stats,
    Status,
    StoreStatus,
    Traffic,
)

__version__ = version("tunnel")

__all__ = [
    "Capture",
    "Client",
    "Cluster",
    "ClusterConfig",
    "CodecError",
    "Config",
    "ConfigError",
    "DeviceError",
    "Drop",
    "Endpoint",
    "Event",
    "EventsLost",
    "FdbEntry",
    "Finding",
    "Interface",
    "Layer",
    "Level",
    "Mac",
    "MacChanged",
    "MacSource",
    "Neighbour",
    "NoAnswer",
    "OffloadLost",
    "Packet",
    "PathChanged",
    "Peer",
    "PeerAdded",
    "PeerChanged",
    "PeerRemoved",
    "PeerSilent",
    "PeerState",
    "PeerStats",
    "PeerStatus",
    "PeerUp",
    "Route",
    "Service",
    "Stats",
    "Status",
    "Step",
    "StoreError",
    "StoreFound",
    "StoreLost",
    "StoreStatus",
    "SubnetsChanged",
    "SubnetsLost",
    "Traffic",
    "Tunnel",
    "TunnelError",
    "UnderlayError",
    "Verdict",
    "Walk",
]
