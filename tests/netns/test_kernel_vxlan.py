"""The kernel's own vxlan device as the other end, set up as flannel sets it up."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import PcapReader

from tests.netns.node import Node
from tests.netns.traffic import exchange, numbered
from tunnel.testing.lab import Host, Lab

OUR_MAC = "02:00:5e:00:53:01"
KERNEL_MAC = "02:00:5e:00:53:02"
OVERHEAD = {4: 50, 6: 70}
TRANSPORTS = (TCP, UDP, ICMP)


def flannel_up(kernel: Node, ours: Node, *, outer: int) -> None:
    """What flannel does on its node, in its order: device, neighbour, FDB, route. It keeps
    IPv6 to a device of its own; here one carries both."""
    local, remote = (
        (kernel.host.ipv4, ours.host.ipv4) if outer == 4 else (kernel.host.ipv6, ours.host.ipv6)
    )
    run = kernel.host.run
    run(
        f"ip link add flannel.1 address {KERNEL_MAC} type vxlan id 1 local {local} dev eth0 "
        "dstport 8472 nolearning"
    )
    run(f"ip address add {kernel.ipv4}/32 dev flannel.1")
    run(f"ip address add {kernel.ipv6}/128 dev flannel.1 nodad")
    run("ip link set flannel.1 up")
    for gateway in (ours.ipv4, ours.ipv6):
        run(f"ip neigh replace {gateway} lladdr {OUR_MAC} dev flannel.1 nud permanent")
    run(f"bridge fdb replace {OUR_MAC} dev flannel.1 dst {remote} self permanent")
    for prefix, gateway in zip(ours.prefixes, (ours.ipv4, ours.ipv6), strict=True):
        run(f"ip route replace {prefix} via {gateway} dev flannel.1 onlink")


def joined(
    lab: Lab, *, outer: int, mtu: int = 1500, offloads: bool = True, offload: str = "auto"
) -> tuple[Node, Node]:
    """This program's node and the kernel's device, ready for packets; `offloads` of the veth."""
    ours, kernel = Node(lab.host("ours"), 1), Node(lab.host("kernel"), 2)
    lab.link(ours.host, kernel.host, mtu=mtu, offloads=offloads)
    flannel_up(kernel, ours, outer=outer)
    ours.up("--mac", OUR_MAC, "--offload", offload, peers=[kernel.at(outer, mac=KERNEL_MAC)])
    return ours, kernel


@pytest.mark.parametrize(("mtu", "offload"), [(1500, "auto"), (1500, "none"), (9000, "auto")])
@pytest.mark.parametrize("outer", [4, 6])
def test_traffic_both_ways(lab: Lab, outer: int, mtu: int, offload: str) -> None:
    """
    MTU 9000 makes segments of 8,900 bytes, seven to a train. On a veth that offloads, the
    kernel's packets reach us with checksums that it left to a NIC to finish.
    """
    ours, kernel = joined(lab, outer=outer, mtu=mtu, offload=offload)
    inner_mtu = mtu - OVERHEAD[outer]
    assert f"mtu {inner_mtu}" in ours.ready
    assert f"mtu {inner_mtu}" in kernel.host.run("ip link show flannel.1").stdout
    for near, far in ((ours, kernel), (kernel, ours)):
        near.host.ping(far.ipv4)
        near.host.ping(far.ipv6)
        near.host.run(f"ping -c 1 -W 1 -M do -s {inner_mtu - 28} {far.ipv4}")
        near.host.run(f"ping -c 1 -W 1 -M do -s {inner_mtu - 48} {far.ipv6}")
    with numbered(ours.host, kernel.host, kernel.ipv4), numbered(kernel.host, ours.host, ours.ipv6):
        exchange(ours.host, kernel.host, kernel.ipv4)
        exchange(kernel.host, ours.host, ours.ipv6)
    assert ours.down() == {}


@pytest.mark.parametrize("outer", [4, 6])
def test_every_byte_on_the_wire(lab: Lab, outer: int, tmp_path: Path) -> None:
    """With no offload on the veth, what tcpdump sees is what a real wire would carry."""
    ours, kernel = joined(lab, outer=outer, offloads=False)
    with captured(ours.host, tmp_path / "wire.pcap") as capture:
        ours.host.ping(kernel.ipv4)
        kernel.host.ping(ours.ipv6)
        with numbered(ours.host, kernel.host, kernel.ipv4, pause=0.01):
            exchange(ours.host, kernel.host, kernel.ipv4, size=200_000)
            exchange(kernel.host, ours.host, ours.ipv6, size=200_000)
    assert ours.down() == {}

    seen: dict[tuple[str, type[Packet], type[Packet]], int] = {}
    with PcapReader(str(capture)) as frames:
        for frame in frames:
            key = check_frame(frame, outer=outer)
            seen[key] = seen.get(key, 0) + 1
    for mac in (OUR_MAC, KERNEL_MAC):
        assert seen[mac, IP, TCP] >= 140
        assert seen[mac, IPv6, TCP] >= 140
    assert seen[OUR_MAC, IP, UDP] >= 2


def check_frame(frame: Packet, *, outer: int) -> tuple[str, type[Packet], type[Packet]]:
    """Checks every header; returns the sender, and the inner network and transport headers."""
    assert frame.type == (0x0800 if outer == 4 else 0x86DD)
    datagram = frame[UDP]
    inner = datagram[Ether]
    ours = inner.src == OUR_MAC
    assert len(frame) - 14 <= 1500
    assert (inner.src, inner.dst) in ((OUR_MAC, KERNEL_MAC), (KERNEL_MAC, OUR_MAC))
    assert bytes(datagram.payload)[:8] == bytes.fromhex("0800000000000100")
    assert datagram.dport == 8472
    assert frame.payload.fields["ttl" if outer == 4 else "hlim"] == 64
    # The kernel leaves out the outer checksum over IPv4 unless told otherwise; we never do.
    assert datagram.chksum or (outer == 4 and not ours)
    check_checksums(frame.payload, until=VXLAN)
    check_checksums(inner.payload)
    assert inner.payload.fields["ttl" if IP in inner else "hlim"] == 64
    transport = next((kind for kind in TRANSPORTS if kind in inner.payload), Raw)
    return inner.src, type(inner.payload), transport


def check_checksums(packet: Packet, *, until: type[Packet] | None = None) -> None:
    """Those in the packet are what scapy makes of the same bytes."""
    rebuilt = packet.copy()
    layer = rebuilt
    while layer and not isinstance(layer, until or ()):
        for name in ("chksum", "cksum"):
            if layer.fields.get(name):
                delattr(layer, name)
        layer = layer.payload
    assert bytes(rebuilt) == bytes(packet), packet.summary()


@contextmanager
def captured(host: Host, path: Path) -> Iterator[Path]:
    """All VXLAN that passes the host's veth while the block runs."""
    command = f"tcpdump -Z root -i eth0 -B 16384 --immediate-mode -U -w {path} udp port 8472"
    process = host.popen(command)
    assert process.stderr is not None
    while "listening on" not in (line := process.stderr.readline()):
        assert line, "tcpdump does not listen"
    yield path
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "0 packets dropped by kernel" in said
