"""What the checks need to know about a host and its node: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunnel.config.node import Config
from tunnel.status import PeerStatus, Status
from tunnel.types import Address, Endpoint, Peer, Prefix

FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""The sysctl that turns it on, by family."""


@dataclass(frozen=True)
class PeerPath:
    """
    How the kernel would send datagrams to a peer.

    Attributes:
        address: The peer's address, None if its name does not resolve.
        source: This host's address, None if no route leads to the peer.
        device: The device by which datagrams leave.
        source_device: The device that has `source`.
        inner_mtu: The largest inner packet, in bytes, that fits the MTU of the route.
    """

    endpoint: Endpoint
    address: Address | None = None
    source: Address | None = None
    device: str = ""
    source_device: str | None = None
    inner_mtu: int = 0

    @property
    def ingress(self) -> str:
        """The device on which the peer's datagrams are likely to arrive."""
        local = self.source_device in (None, "", "lo")
        return self.device if local else str(self.source_device)


@dataclass(frozen=True)
class HostReport:
    """
    A node that runs or is to be started, and the host around it.

    Attributes:
        config: The node's configuration.
        status: None if the node does not run.
        trains: Whether trains reach each peer that was tried, None for no answer.
        tun_error: Errno of opening /dev/net/tun, 0 if it opens.
        port_error: Why the UDP port cannot be bound, empty if it can.
        port_owners: Names of the processes that have it bound, by pid.
        vxlan_device: The kernel vxlan device that has it bound.
        ruleset: The output of ``nft -j list ruleset``.
        ruleset_error: Why it could not be read, empty if it could.
        legacy_rules: Whether iptables-legacy has rules as well.
        peer_paths: One for each peer.
        strict_devices: Devices with a strict reverse-path filter.
        filtered: Packets that reverse-path filters have dropped so far.
        forwarding: Families (4, 6) that this host forwards.
        prefix_devices: The device to which the kernel routes each peer's prefix, for a node that
            runs.
        buffers: Bytes that a socket gets to send and to receive.
        wanted_buffer: Bytes that a node requests, each way.
        missing_offloads: Offloads that this kernel lacks, a line each.
        device_mtu: MTU of the node's device, None if it is not in this network namespace.
        device_up: Whether the device is up.
        device_drops: Packets dropped in the device's full queue.
        socket_drops: Datagrams dropped in full socket buffers.
        clock_synchronised: None if the kernel does not report it.
        drop_meanings: What each drop reason means and what to do about it.
    """

    config: Config
    status: Status | None = None
    trains: Mapping[Endpoint, bool | None] = field(default_factory=dict)
    net_admin: bool = True
    tun_error: int = 0
    port_error: str = ""
    port_owners: Mapping[int, str] = field(default_factory=dict)
    vxlan_device: str | None = None
    ruleset: Mapping[str, Any] = field(default_factory=dict)
    ruleset_error: str = ""
    legacy_rules: bool = False
    peer_paths: tuple[PeerPath, ...] = ()
    strict_devices: frozenset[str] = frozenset()
    filtered: int = 0
    forwarding: frozenset[int] = frozenset()
    prefix_devices: Mapping[Prefix, str] = field(default_factory=dict)
    buffers: tuple[int, int] = (0, 0)
    wanted_buffer: int = 0
    missing_offloads: tuple[str, ...] = ()
    device_mtu: int | None = None
    device_up: bool = True
    device_drops: int = 0
    socket_drops: int = 0
    clock_synchronised: bool | None = True
    drop_meanings: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Name of the node's device, or of the one that it would create."""
        return (self.status.device if self.status else None) or self.config.name

    @property
    def peers(self) -> tuple[PeerStatus, ...]:
        return self.status.peers if self.status else ()

    @property
    def drops(self) -> Mapping[str, int]:
        return self.status.drops if self.status else {}


def middle_of(prefix: Prefix) -> Address:
    """Returns an address that is neither the network's nor the broadcast address, if there is
    one."""
    return prefix[prefix.num_addresses // 2]


def config_of(status: Status | None) -> Config:
    """Returns the configuration of a node as far as its status shows it, or the defaults."""
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
