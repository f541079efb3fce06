"""
What a host and its node are like, as far as it can matter to an overlay. Nothing is changed.

    config, status, trains  ->  gather()  ->  Facts
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tunnel.config.node import Config
from tunnel.errors import UnderlayError
from tunnel.linux import hostinfo, udp
from tunnel.linux.netlink import Netlink, device_name
from tunnel.linux.tun import read_drops
from tunnel.linux.underlay import OVERHEAD
from tunnel.status import PeerStatus, Status
from tunnel.types import Address, Endpoint, Peer, Prefix

_RESOLVE_TIMEOUT = 3.0  # seconds
_MOST_PREFIXES = 256  # whose kernel route is asked for, at about a millisecond each
_STRICT = 1  # rp_filter; 2 is loose
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""What switches it on, by family."""


@dataclass(frozen=True)
class Way:
    """
    How the kernel would send to a peer.

    Attributes:
        address: Where it is, None where its name is not resolved.
        source: Ours, None where no route leads there.
        device: By which datagrams leave.
        home: The device that has `source`, where the peer's datagrams are likely to arrive.
        mtu: Of that way, in bytes, outer headers included.
    """

    endpoint: Endpoint
    address: Address | None = None
    source: Address | None = None
    device: str = ""
    home: str | None = None
    mtu: int = 0

    @property
    def arrival(self) -> str:
        """The device by which its datagrams are likely to come."""
        return self.home if self.home and self.home != "lo" else self.device

    @property
    def carries(self) -> int:
        """The largest inner packet, in bytes."""
        return self.mtu - OVERHEAD[self.source.version if self.source else 4]


@dataclass(frozen=True)
class HostReport:
    """
    A node as it runs or is to be started, and the host around it.

    Attributes:
        config: What it was told, or is to be.
        status: What it says, None where it does not run.
        trains: Of the peers that were tried: whether trains reach them, None for no answer.
        tun_error: Errno of opening /dev/net/tun, 0 where it opens.
        port_error: Why the UDP port could not be had; empty where it could.
        holders: Who has it, by pid; `vxlan` is the kernel's vxlan device that does.
        ruleset: As ``nft -j`` prints it; `ruleset_error` says why it could not be read.
        legacy: Whether there are rules beside them, of iptables-legacy.
        strict: Devices with a strict reverse-path filter.
        filtered: Packets that this filter has dropped so far.
        forwards: Families (4, 6) that this host forwards.
        led_to: The device to which the kernel routes a peer's prefix, for a node that runs.
        buffers: Bytes that a socket gets to send and to receive.
        lacks: Offloads that this kernel does not have, a line each.
        device_mtu: Of the node's device, None where it is not in this network namespace.
        device_up: Whether nobody has set it down.
        overflows: Packets lost in the device's full queue and in sockets' full buffers.
        clock: Whether it is synchronised, None where the kernel does not tell.
    """

    config: Config
    status: Status | None = None
    trains: Mapping[Endpoint, bool | None] = field(default_factory=dict)
    net_admin: bool = True
    tun_error: int = 0
    port_error: str = ""
    holders: Mapping[int, str] = field(default_factory=dict)
    vxlan: str | None = None
    ruleset: Mapping[str, Any] = field(default_factory=dict)
    ruleset_error: str = ""
    legacy: bool = False
    ways: tuple[Way, ...] = ()
    strict: frozenset[str] = frozenset()
    filtered: int = 0
    forwards: frozenset[int] = frozenset()
    led_to: Mapping[Prefix, str] = field(default_factory=dict)
    buffers: tuple[int, int] = (udp.BUFFER, udp.BUFFER)
    lacks: tuple[str, ...] = ()
    device_mtu: int | None = None
    device_up: bool = True
    overflows: tuple[int, int] = (0, 0)
    clock: bool | None = True

    @property
    def peers(self) -> tuple[PeerStatus, ...]:
        return self.status.peers if self.status else ()

    @property
    def drops(self) -> Mapping[str, int]:
        return self.status.drops if self.status else {}


async def gather(
    config: Config, *, status: Status | None, trains: Mapping[Endpoint, bool | None]
) -> HostReport:
    """Looks at all that the checks want to know."""
    known = {peer.endpoint: peer.address for peer in status.peers} if status else {}
    async with Netlink() as netlink:
        ways = [
            await _way(netlink, peer.endpoint, known.get(peer.endpoint), local=config.local)
            for peer in config.peers
        ]
        port_error, taken = ("", False) if status else _try_port(config, ways)
        device = (status.device if status else None) or ""
        ruleset, ruleset_error = await asyncio.to_thread(hostinfo.read_ruleset)  # packets go on
        devices = {way.home for way in ways if way.home} | ({device} if device else set())
        return HostReport(
            config=config,
            status=status,
            trains=trains,
            net_admin=hostinfo.has_net_admin(),
            tun_error=hostinfo.tun_error(),
            port_error=port_error,
            holders=_holders(config.port) if taken else {},
            vxlan=await netlink.find_vxlan_device(config.port) if taken else None,
            ruleset=ruleset,
            ruleset_error=ruleset_error,
            legacy=hostinfo.has_legacy_rules(),
            ways=tuple(ways),
            strict=frozenset(
                one for one in devices if hostinfo.reverse_path_filter(one) == _STRICT
            ),
            filtered=hostinfo.reverse_path_drops(),
            forwards=_forwards(),
            led_to=await _led_to(netlink, config.peers) if device else {},
            buffers=udp.granted_buffers(),
            lacks=udp.probe(config.offload).reasons,
            device_mtu=await netlink.mtu_of(device) if device else None,
            device_up=not device or await netlink.is_up(device),
            overflows=_overflows(device, port=config.port) if status else (0, 0),
            clock=hostinfo.clock_is_synchronised(),
        )


async def _way(
    netlink: Netlink, endpoint: Endpoint, known: Address | None, *, local: Address | None
) -> Way:
    address = endpoint.address or known or await _resolve(endpoint)
    path = await netlink.get_path(address) if address else None
    if path is None:
        return Way(endpoint, address)
    source = local if local and local.version == path.source.version else path.source
    home = await netlink.find_device_with(source)
    return Way(endpoint, address, source, device_name(path.device), home, path.mtu)


async def _resolve(endpoint: Endpoint) -> Address | None:
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
            )
    except OSError:  # socket.gaierror and TimeoutError are OSErrors
        return None
    return ipaddress.ip_address(found[0][4][0])


def _try_port(config: Config, ways: Iterable[Way]) -> tuple[str, bool]:
    """Why the port cannot be had, and whether because somebody else has it."""
    ours = {way.source.version: way.source for way in ways if way.source}
    if config.local is not None:
        ours[config.local.version] = config.local
    for local in ours.values() or (ipaddress.IPv4Address("0.0.0.0"),):
        try:
            udp.close_sockets(udp.open_sockets(local, port=config.port, count=1, gro=False))
        except UnderlayError as error:
            cause = error.__cause__
            return str(error), isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
    return "", False


def _holders(port: int) -> dict[int, str]:
    return hostinfo.owners({one.inode for one in hostinfo.udp_sockets(port) if one.inode})


def _forwards() -> frozenset[int]:
    return frozenset(
        family
        for family, name in FORWARDING.items()
        if hostinfo.sysctl(name.removeprefix("net.").replace(".", "/"))
    )


async def _led_to(netlink: Netlink, peers: Iterable[Peer]) -> dict[Prefix, str]:
    found = {}
    for prefix in islice((one for peer in peers for one in peer.prefixes), _MOST_PREFIXES):
        path = await netlink.get_path(middle_of(prefix))
        if path is not None:
            found[prefix] = device_name(path.device)
    return found


def middle_of(prefix: Prefix) -> Address:
    """An address of it that is no network's or broadcast address, unless there is but one."""
    return prefix[prefix.num_addresses // 2]


def _overflows(device: str, *, port: int) -> tuple[int, int]:
    return read_drops(device), sum(one.drops for one in hostinfo.udp_sockets(port))


def config_of(status: Status | None) -> Config:
    """What a node was told, as far as its status shows it; defaults where none runs."""
    if status is None:
        return Config()
    return Config(
        name=status.name,
        vni=status.vni,
        port=int(status.endpoints[0].rpartition(":")[2]),
        subnets=status.subnets,
        mode=status.mode,
        peers=[Peer(peer.endpoint, peer.prefixes, mac=peer.mac) for peer in status.peers],
    )
