"""
Reads what a :class:`HostReport` holds. Changes nothing.

    config, status, trains  ->  inspect_host()  ->  HostReport
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from itertools import islice

from tunnel._native import DROP_REASONS
from tunnel.config.node import Config
from tunnel.diagnostics.host_report import FORWARDING, HostReport, PeerPath, middle_of
from tunnel.errors import UnderlayError
from tunnel.linux import hostinfo, udp
from tunnel.linux.netlink import Netlink, device_name
from tunnel.linux.tun import read_drops
from tunnel.linux.underlay import OVERHEAD
from tunnel.status import Status
from tunnel.types import Address, Endpoint, Peer, Prefix

_RESOLVE_TIMEOUT = 3.0  # seconds
_MAX_PREFIXES = 256  # whose kernel routes are looked up
_STRICT = 1  # rp_filter; 2 is loose


async def inspect_host(
    config: Config, *, status: Status | None, trains: Mapping[Endpoint, bool | None]
) -> HostReport:
    """Returns all that the checks need. If cancelled, nothing changes."""
    async with Netlink() as netlink:
        paths = await _peer_paths(netlink, config, status)
        port_error, in_use = ("", False) if status else _try_port(config, paths)
        device = (status.device if status else None) or ""
        # nft runs in a thread, so that packets keep moving.
        ruleset, ruleset_error = await asyncio.to_thread(hostinfo.read_ruleset)
        return HostReport(
            config=config,
            status=status,
            trains=trains,
            net_admin=hostinfo.has_net_admin(),
            tun_error=hostinfo.tun_error(),
            port_error=port_error,
            port_owners=_port_owners(config.port) if in_use else {},
            vxlan_device=await netlink.find_vxlan_device(config.port) if in_use else None,
            ruleset=ruleset,
            ruleset_error=ruleset_error,
            legacy_rules=hostinfo.has_legacy_rules(),
            peer_paths=tuple(paths),
            strict_devices=_strict_devices(paths, device),
            filtered=hostinfo.reverse_path_drops(),
            forwarding=frozenset(family for family in FORWARDING if forwards(family)),
            prefix_devices=await _prefix_devices(netlink, config.peers) if device else {},
            buffers=udp.granted_buffers(),
            wanted_buffer=udp.BUFFER,
            missing_offloads=udp.probe(config.offload).reasons,
            device_mtu=await netlink.mtu_of(device) if device else None,
            device_up=not device or await netlink.is_up(device),
            device_drops=read_drops(device) if status else 0,
            socket_drops=_socket_drops(config.port) if status else 0,
            clock_synchronised=hostinfo.clock_is_synchronised(),
            drop_meanings={name: meaning for name, _, meaning in DROP_REASONS},
        )


def forwards(family: int) -> bool:
    """Returns whether this host forwards packets of the family, 4 or 6."""
    return bool(hostinfo.sysctl(FORWARDING[family].removeprefix("net.").replace(".", "/")))


async def _peer_paths(netlink: Netlink, config: Config, status: Status | None) -> list[PeerPath]:
    known = {peer.endpoint: peer.address for peer in status.peers} if status else {}
    paths = []
    for peer in config.peers:
        endpoint = peer.endpoint
        address = endpoint.address or known.get(endpoint) or await _resolve(endpoint)
        paths.append(await _peer_path(netlink, endpoint, address, local=config.local))
    return paths


async def _peer_path(
    netlink: Netlink, endpoint: Endpoint, address: Address | None, *, local: Address | None
) -> PeerPath:
    path = await netlink.get_path(address) if address else None
    if path is None:
        return PeerPath(endpoint, address)
    source = local if local and local.version == path.source.version else path.source
    return PeerPath(
        endpoint,
        address,
        source,
        device_name(path.device),
        await netlink.find_device_with(source),
        path.mtu - OVERHEAD[source.version],
    )


async def _resolve(endpoint: Endpoint) -> Address | None:
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT):
            found = await asyncio.get_running_loop().getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
            )
    except OSError:  # socket.gaierror and TimeoutError are OSErrors
        return None
    return ipaddress.ip_address(found[0][4][0])


def _try_port(config: Config, paths: Iterable[PeerPath]) -> tuple[str, bool]:
    """Returns why the port cannot be bound, and whether that is because it is in use."""
    sources = {path.source.version: path.source for path in paths if path.source}
    if config.local is not None:
        sources[config.local.version] = config.local
    for local in sources.values() or (ipaddress.IPv4Address("0.0.0.0"),):
        try:
            udp.close_sockets(udp.open_sockets(local, port=config.port, count=1, gro=False))
        except UnderlayError as error:
            cause = error.__cause__
            return str(error), isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
    return "", False


def _port_owners(port: int) -> dict[int, str]:
    return hostinfo.owners({one.inode for one in hostinfo.udp_sockets(port) if one.inode})


def _strict_devices(paths: Iterable[PeerPath], device: str) -> frozenset[str]:
    devices = {path.source_device for path in paths} | {device}
    return frozenset(one for one in devices if one and hostinfo.reverse_path_filter(one) == _STRICT)


async def _prefix_devices(netlink: Netlink, peers: Iterable[Peer]) -> dict[Prefix, str]:
    prefixes = list(islice((one for peer in peers for one in peer.prefixes), _MAX_PREFIXES))
    paths = await netlink.get_paths([middle_of(prefix) for prefix in prefixes])
    return {
        prefix: device_name(path.device)
        for prefix, path in zip(prefixes, paths, strict=True)
        if path is not None
    }


def _socket_drops(port: int) -> int:
    return sum(one.drops for one in hostinfo.udp_sockets(port))
