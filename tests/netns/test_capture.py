"""Captures of running nodes, as tshark and as scapy see them."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import RawPcapReader

from tests.netns.node import Node
from tests.netns.test_overlay import pair, up_all
from tests.netns.traffic import exchange, inside
from tests.unit.cli.test_node_verbs import check
from tunnel.linux import packet_socket
from tunnel.linux.bpf import ETHERNET, RAW, port_filter
from tunnel.linux.packet_socket import PacketSocket, find_interface
from tunnel.testing.lab import Host, Lab

PYTHON = [sys.executable, "-m", "tunnel"]
NO_RAW = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all", "--no-new-privs", "--"]


@contextmanager
def capturing(host: Host, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A capture that has begun; ended by Ctrl-C unless it has ended."""
    process = host.popen([*PYTHON, "capture", *words])
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("capturing on "), line
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)


def ended(process: subprocess.Popen[str], *, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, (out, err)
    return out, err


def dissected(file: Path, *fields: str, words: tuple[str, ...] = ()) -> list[list[str]]:
    """The fields of each packet, by tshark, which finds nothing to complain about in the file."""
    command = ["tshark", "-r", str(file), *words, "-T", "fields"]
    command += [word for field in fields for word in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cut short" not in done.stderr
    assert "corrupt" not in done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.fixture
def nodes(lab: Lab) -> tuple[Node, Node]:
    a, b = pair(lab)
    up_all(a, b)
    return a, b


def test_inside(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = nodes
    file = tmp_path / "inner.pcapng"
    with capturing(a.host, "-w", str(file), "-c", "4", "icmp", "or", "icmp6") as process:
        exchange(a.host, b.host, b.ipv4, size=1 << 20)
        a.host.ping(b.ipv4)
        a.host.ping(b.ipv6)
        _, err = ended(process)
    assert "4 packets captured, 0 dropped by the kernel" in err
    fields = ("frame.protocols", "ip.src", "ipv6.src", "icmp.type", "icmpv6.type")
    found = dissected(file, *fields, "frame.interface_name", "frame.packet_flags_direction")
    assert [line[:5] for line in found] == [
        ["raw:ip:icmp:data", a.ipv4, "", "8", ""],
        ["raw:ip:icmp:data", b.ipv4, "", "0", ""],
        ["raw:ipv6:icmpv6:data", "", a.ipv6, "", "128"],
        ["raw:ipv6:icmpv6:data", "", b.ipv6, "", "129"],
    ]
    assert {line[5] for line in found} == {"tunnel1"}
    directions = [int(line[6], 0) for line in found]
    assert directions == [2, 1, 2, 1]
    packets: list[tuple[bytes, Any]] = list(RawPcapReader(str(file)))
    times = [(about.tshigh << 32) + about.tslow for _, about in packets]
    assert times == sorted(times)
    assert abs(times[0] / 1e9 - file.stat().st_mtime) < 60


@pytest.mark.parametrize("outer", [4, 6])
def test_outside(lab: Lab, outer: int, tmp_path: Path) -> None:
    a, b = pair(lab)
    up_all(a, b, outer=outer)
    file = tmp_path / "outer.pcapng"
    with capturing(a.host, "--outer", "-w", str(file)) as process:
        a.host.ping(b.host.ipv4)
        a.host.ping(b.ipv4, count=2)
    assert "0 dropped" in ended(process)[1]
    fields = ("ip.src" if outer == 4 else "ipv6.src", "udp.dstport", "vxlan.vni", "icmp.type")
    words = ("-d", "udp.port==8472,vxlan", "-Y", "icmp")
    found = dissected(file, *fields, words=words)
    ends = [end.ipv4 if outer == 4 else end.ipv6 for end in (a.host, b.host)]
    inner = [a.ipv4, b.ipv4] if outer == 4 else ["", ""]
    expected = [
        [f"{ends[i]},{inner[i]}" if outer == 4 else ends[i], "8472", "1", kind]
        for i, kind in ((0, "8"), (1, "0"))
    ]
    # Nothing but the overlay's datagrams: not the ping of the hosts themselves.
    assert found == expected * 2


def test_outside_takes_a_filter_and_text(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    source = f"src host {b.host.ipv4}"
    with capturing(a.host, "--outer", "-c", "1", "--json", *source.split()) as process:
        a.host.ping(b.ipv4, count=5)
        out, err = ended(process)
    assert "1 packet captured, 0 dropped" in err
    (line,) = map(json.loads, out.splitlines())
    check("capture", line)
    assert line["direction"] == "inbound"
    assert line["interface"] == "eth0"
    assert line["length"] == len(line["data"]) // 2
    assert "> 192.0.2.1.8472: vni 1 (" in line["summary"]
    with capturing(a.host) as process:
        a.host.ping(b.ipv4)
    out, err = ended(process)
    assert f"tunnel1 out {a.ipv4} > {b.ipv4}: icmp echo request, 84 bytes" in out
    assert f"tunnel1 in  {b.ipv4} > {a.ipv4}: icmp echo reply, 84 bytes" in out
    assert "2 packets captured" in err


def test_streamed(nodes: tuple[Node, Node]) -> None:
    """Each packet is printed when it passes; a reader that ends also ends the capture."""
    a, b = nodes
    stream = f"{' '.join(PYTHON)} capture -w - icmp | tshark -l -c 2 -r - -T fields -e icmp.type"
    process = a.host.popen(["sh", "-c", stream])
    assert process.stdout is not None
    assert process.stderr is not None
    while "capturing on" not in process.stderr.readline():
        pass
    a.host.ping(b.ipv4)
    assert [process.stdout.readline(), process.stdout.readline()] == ["8\n", "0\n"]
    while process.poll() is None:
        a.host.ping(b.ipv4)
    _, err = ended(process)
    assert err == ""


def test_super_packets_are_whole_and_decode_takes_trains_apart(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    a, b = nodes
    file = tmp_path / "outer.pcapng"
    with capturing(a.host, "--outer", "-w", str(file)) as process:
        exchange(a.host, b.host, b.ipv4, size=8 << 20)
    ended(process)
    sizes = [about.wirelen for _, about in RawPcapReader(str(file))]
    assert max(sizes) > 30_000
    said = a.host.run([*PYTHON, "decode", "--json", "--name", "tunnel1", str(file)]).stdout
    lines = [json.loads(line) for line in said.splitlines()]
    assert len(lines) == len(sizes)
    assert any("a train of" in note for line in lines for note in line["notes"])
    assert {line["verdict"]["reason"] for line in lines if line["verdict"]} == {None}


def test_decode_knows_the_node(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = nodes
    file = tmp_path / "outer.pcapng"
    with capturing(a.host, "--outer", "-w", str(file), "-c", "2") as process:
        a.host.ping(b.ipv4)
        ended(process)
    a.host.run([*PYTHON, "peer", "remove", f"{b.host.ipv4}:8472"])
    said = a.host.run([*PYTHON, "decode", "--name", "tunnel1", str(file)]).stdout
    assert said.startswith("checked as by tunnel1 with its peers\n")
    assert "dropped as unknown_source" in said


# ---- what cannot be ----


def refused(host: Host, *words: str, prefix: list[str] | None = None) -> str:
    process = host.popen([*(prefix or []), *PYTHON, "capture", *words])
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, ""), err
    (line,) = err.splitlines()
    return line


def test_what_cannot_be_is_one_line(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, _ = nodes
    assert "permission denied (run with CAP_NET_RAW)" in refused(a.host, prefix=NO_RAW)
    assert "permission denied" in refused(a.host, "--outer", prefix=NO_RAW)
    assert "filter 'frob nicate': " in refused(a.host, "frob", "nicate")
    assert "rejects all packets" in refused(a.host, "--outer", "icmp")
    assert "cannot write /nowhere/x: no such file" in refused(a.host, "-w", "/nowhere/x")
    assert "exclude each other" in refused(a.host, "-w", "-", "--json")
    path = tmp_path / "kept"
    path.write_text("kept")
    refused(a.host, "-w", str(path), "frob")
    assert path.read_text() == "kept"


@pytest.mark.parametrize("words", [["-w", "/dev/full"], ["-w", "-"], []])
def test_a_full_disk_ends_it(nodes: tuple[Node, Node], words: list[str]) -> None:
    a, b = nodes
    script = 'exec "$@" >/dev/full'
    process = a.host.popen(["sh", "-c", script, "-", *PYTHON, "capture", *words])
    assert process.stderr is not None
    process.stderr.readline()
    a.host.ping(b.ipv4)
    _, err = ended(process, code=1)
    assert err == "tunnel: cannot write: no space left on device\n"


def test_where_nothing_runs(lab: Lab) -> None:
    assert refused(lab.host("a"))


def test_a_device_that_vanishes_ends_it(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    process = a.host.popen([*PYTHON, "capture"])
    assert process.stderr is not None
    process.stderr.readline()
    a.down()
    _, err = ended(process, code=1)
    assert err.splitlines()[-1] == "tunnel: device tunnel1 no longer exists"


# ---- the filter, asked of the kernel ----


def frames(port: int) -> dict[str, tuple[Packet, bool]]:
    """What passes port_filter({8472, 4789}) and what does not."""
    four, six = IP(src="192.0.2.2", dst="192.0.2.1"), IPv6(src="2001:db8::2", dst="2001:db8::1")
    sent = UDP(sport=9, dport=port) / b"x"
    return {
        "IPv4": (four / sent, True),
        "IPv4, from it": (four / UDP(sport=port, dport=9) / b"x", True),
        "IPv4 with options": (IP(options=[IPOption_NOP()] * 4) / sent, True),
        "IPv6": (six / sent, True),
        "IPv6, from it": (six / UDP(sport=port, dport=9) / b"x", True),
        "another port": (four / UDP(sport=9, dport=port + 1), False),
        "another port, IPv6": (six / UDP(sport=port - 1, dport=9), False),
        "TCP": (four / TCP(sport=port, dport=port), False),
        "TCP, IPv6": (six / TCP(sport=port, dport=port), False),
        "a later fragment": (IP(proto=17, frag=9) / bytes(sent), False),
        "ARP": (ARP(), False),
        "too short": (IP(proto=17), False),
    }


@pytest.mark.parametrize("port", [8472, 4789])
def test_the_kernel_selects_ports(lab: Lab, port: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    with inside(b):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with inside(a):
        eth0 = find_interface("eth0")
        tap = PacketSocket(eth0, program=port_filter({8472, 4789}, link=ETHERNET))
    assert (eth0.link, eth0.loopback) == (ETHERNET, False)
    wanted = []
    with sender:
        sender.bind(("eth0", 0))
        for number, (packet, passes) in enumerate(frames(port).values()):
            frame = Ether(dst="ff:ff:ff:ff:ff:ff", src=f"02:00:00:00:00:{number:02x}") / packet
            sender.send(bytes(frame))
            if passes:
                wanted.append(number)
        end = Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:ff") / IP() / UDP(dport=port)
        sender.send(bytes(end))
    assert [number for number in sources(tap) if number != 0xFF] == wanted
    received, dropped = tap.counts()
    assert (received, dropped) == (len(wanted) + 1, 0)
    tap.close()
    assert tap.counts() == (len(wanted) + 1, 0)


def sources(tap: PacketSocket) -> list[int]:
    """The last byte of each frame's source, up to the one that says that it is the last."""
    found: list[int] = []
    while 0xFF not in found:
        packets = tap.read(64)
        assert all(not packet.outbound for packet in packets)
        found += [packet.data[11] for packet in packets]
    return found


def test_where_there_is_no_ethernet(lab: Lab) -> None:
    """The same on a device that has no link header, where headers begin at once."""
    host = lab.host("a")
    host.run("ip tuntap add none0 mode tun")
    host.run("ip link set none0 up")
    host.run("ip address add 192.0.2.9/24 dev none0")
    holder = host.popen([sys.executable, "-c", HOLD])
    assert holder.stdout is not None
    holder.stdout.readline()
    with inside(host):
        none0 = find_interface("none0")
        tap = PacketSocket(none0, program=port_filter({8472}, link=none0.link))
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert none0.link == RAW
    found: list[packet_socket.Packet] = []
    with sender:
        for _ in range(500):  # a device that just got its carrier may still throw them away
            for port in (8471, 8472, 8473):
                sender.sendto(b"x", ("192.0.2.10", port))
            if found := tap.read(64):
                break
            time.sleep(0.01)
    assert {(one.outbound, IP(one.data)[UDP].dport) for one in found} == {(True, 8472)}
    tap.close()


# A TUN device without a reader has no carrier, and takes nothing.
HOLD = """
import pytun, time
tun = pytun.TunTapDevice(name="none0", flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
print(flush=True)
time.sleep(60)
"""


def test_loopback_shows_a_packet_once(lab: Lab) -> None:
    host = lab.host("a")
    with inside(host):
        tap = PacketSocket(find_interface("lo"), program=port_filter({8472}, link=ETHERNET))
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.sendto(b"x", ("127.0.0.1", 8472))
        sender.sendto(b"y", ("127.0.0.1", 8472))
    found: list[bytes] = []
    while len(found) < 2:
        found += [packet.data for packet in tap.read(64)]
    assert [data[-1:] for data in found] == [b"x", b"y"]
    assert tap.read(64) == []
    tap.close()
