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

from tunnel.cluster.member import Cluster
from tunnel.config.cluster import ClusterConfig
from tunnel.config.node import Config
from tunnel.diagnostics.capture import Capture
from tunnel.diagnostics.doctor import Finding, Level
from tunnel.diagnostics.path_trace import Outcome, PathTrace, TraceLayer, TraceStep
from tunnel.errors import (
    CodecError,
    ConfigError,
    DeviceError,
    NoAnswerError,
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
from tunnel.linux.packet_socket import CaptureInterface, Packet
from tunnel.rpc.client import Client
from tunnel.rpc.server import Service
from tunnel.status import (
    Drop,
    FdbEntry,
    MacSource,
    Neighbour,
    PeerState,
    PeerStats,
    PeerStatus,
    Route,
    Stats,
    Status,
    StoreStatus,
    Traffic,
)
from tunnel.tunnel import Tunnel
from tunnel.types import Endpoint, Mac, Peer

__version__ = version("tunnel")

__all__ = [
    "Capture",
    "CaptureInterface",
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
    "Level",
    "Mac",
    "MacChanged",
    "MacSource",
    "Neighbour",
    "NoAnswerError",
    "OffloadLost",
    "Outcome",
    "Packet",
    "PathChanged",
    "PathTrace",
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
    "StoreError",
    "StoreFound",
    "StoreLost",
    "StoreStatus",
    "SubnetsChanged",
    "SubnetsLost",
    "TraceLayer",
    "TraceStep",
    "Traffic",
    "Tunnel",
    "TunnelError",
    "UnderlayError",
]
