"""
What usually goes wrong with an overlay on this host, and what to do about it.

    gather(config, status, trains)  ->  Facts  ->  diagnose(facts)  ->  Finding, Finding ...

Gathering looks and changes nothing. Diagnosing is pure: each check is a function from the facts to
what it found, one line at least where it has anything to say.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

from tunnel._native import DROP_REASONS
from tunnel.config import OFFLOADS, Config
from tunnel.control.firewall import INBOUND, OUTBOUND, Datagram, Firewall, Loss
from tunnel.errors import TunnelError, UnderlayError
from tunnel.linux import host, udp
from tunnel.linux.netlink import Netlink, name_of
from tunnel.linux.tun import read_drops
from tunnel.linux.underlay import OVERHEAD
from tunnel.types import (
    Address,
    Endpoint,
    Mac,
    Peer,
    PeerState,
    PeerStatus,
    Prefix,
    Status,
    Traffic,
    parse_prefix,
)

_RESOLVE_TIMEOUT = 3.0  # seconds
_MOST_PREFIXES = 256  # whose kernel route is asked for, at about a millisecond each
_STRICT = 1  # rp_filter; 2 is loose
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

_TELLING = (
    "unresolved",
    "blocked",
    "unreachable",
    "unknown_source",
    "other_vni",
    "other_mac",
    "bad_control",
    "spoofed",
)
"""Drops that mean that two nodes were told different things, or that this host is in the way."""


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """
    What one check says.

    Attributes:
        advice: What to do, empty where there is nothing.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


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
class Facts:
    """
    A node as it runs or is to be started, and the host around it.

    Attributes:
        config: What it was told, or is to be.
        status: What it says, None where it does not run.
        trains: Of the peers that were tried: whether trains reach them, None for no answer.
        tun_error: Errno of opening /dev/net/tun, 0 where it opens.
        port_error: Why the UDP port could not be had; empty where it could.
        holders: Who has it; `vxlan` is the kernel's vxlan device that does.
        ruleset: As ``nft -j`` prints it; `ruleset_error` says why it could not be read.
        strict: Devices with a strict reverse-path filter.
        filtered: Packets that this filter has dropped so far.
        forwards: Families (4, 6) that this host forwards.
        led_to: The device to which the kernel routes a peer's prefix, for a node that runs.
        buffers: Bytes that a socket gets to send and to receive.
        lacks: Offloads that this kernel does not have, a line each.
        device_mtu: Of the node's device, None where it is not in this network namespace.
        overflows: Packets lost in the device's full queue and in sockets' full buffers.
        clock: Whether it is synchronised, None where the kernel does not tell.
    """

    config: Config
    status: Status | None = None
    trains: Mapping[Endpoint, bool | None] = field(default_factory=dict)
    net_admin: bool = True
    tun_error: int = 0
    port_error: str = ""
    holders: tuple[str, ...] = ()
    vxlan: str | None = None
    ruleset: Mapping[str, Any] = field(default_factory=dict)
    ruleset_error: str = ""
    ways: tuple[Way, ...] = ()
    strict: frozenset[str] = frozenset()
    filtered: int = 0
    forwards: frozenset[int] = frozenset()
    led_to: Mapping[Prefix, str] = field(default_factory=dict)
    buffers: tuple[int, int] = (udp.BUFFER, udp.BUFFER)
    lacks: tuple[str, ...] = ()
    device_mtu: int | None = None
    overflows: tuple[int, int] = (0, 0)
    clock: bool | None = True

    @property
    def peers(self) -> tuple[PeerStatus, ...]:
        return self.status.peers if self.status else ()


async def examine(
    config: Config | None = None,
    *,
    status: Status | None = None,
    trains: Mapping[Endpoint, bool | None] | None = None,
) -> list[Finding]:
    """
    Looks at this host and says what it thinks of it.

    Args:
        config: Of the node; by default made of `status`.
        status: Of a node that runs here.
        trains: What :meth:`tunnel.Tunnel.try_trains` said of its peers, None for no answer.

    Blocks while ``nft`` lists its rules. Cancelled, nothing changes.

    Raises:
        ConfigError: `status` is of a node that could not be.
    """
    return diagnose(await gather(config or config_of(status), status=status, trains=trains or {}))


def diagnose(facts: Facts) -> list[Finding]:
    """What the facts mean: a finding at least for each check that has something to look at."""
    return [finding for check in _CHECKS for finding in check(facts)]


# Gathering.


async def gather(
    config: Config, *, status: Status | None, trains: Mapping[Endpoint, bool | None]
) -> Facts:
    """Looks at all that the checks want to know."""
    known = {peer.endpoint: peer.address for peer in status.peers} if status else {}
    async with Netlink() as netlink:
        ways = [
            await _way(netlink, peer.endpoint, known.get(peer.endpoint), local=config.local)
            for peer in config.peers
        ]
        port_error, taken = ("", False) if status else _try_port(config, ways)
        device = (status.device if status else None) or ""
        ruleset, ruleset_error = host.read_ruleset()
        devices = {way.home for way in ways if way.home} | ({device} if device else set())
        return Facts(
            config=config,
            status=status,
            trains=trains,
            net_admin=host.has_net_admin(),
            tun_error=host.tun_error(),
            port_error=port_error,
            holders=_holders(config.port) if taken else (),
            vxlan=await netlink.vxlan_on(config.port) if taken else None,
            ruleset=ruleset,
            ruleset_error=ruleset_error,
            ways=tuple(ways),
            strict=frozenset(one for one in devices if host.reverse_path_filter(one) == _STRICT),
            filtered=host.reverse_path_drops(),
            forwards=_forwards(),
            led_to=await _led_to(netlink, config.peers) if device else {},
            buffers=udp.granted_buffers(),
            lacks=udp.probe(config.offload).reasons,
            device_mtu=await netlink.mtu_of(device) if device else None,
            overflows=_overflows(device, port=config.port) if status else (0, 0),
            clock=host.clock_is_synchronised(),
        )


async def _way(
    netlink: Netlink, endpoint: Endpoint, known: Address | None, *, local: Address | None
) -> Way:
    address = endpoint.address or known or await _resolve(endpoint)
    path = await netlink.path_to(address) if address else None
    if path is None:
        return Way(endpoint, address)
    source = local if local and local.version == path.source.version else path.source
    home = await netlink.device_with(source)
    return Way(endpoint, address, source, name_of(path.device), home, path.mtu)


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


def _holders(port: int) -> tuple[str, ...]:
    inodes = [one.inode for one in host.udp_sockets(port) if one.inode]
    return tuple(dict.fromkeys(owner for inode in inodes for owner in host.owners(inode)))


def _forwards() -> frozenset[int]:
    return frozenset(
        family
        for family, name in _FORWARDING.items()
        if host.sysctl(name.removeprefix("net.").replace(".", "/"))
    )


async def _led_to(netlink: Netlink, peers: Iterable[Peer]) -> dict[Prefix, str]:
    found = {}
    for prefix in islice((one for peer in peers for one in peer.prefixes), _MOST_PREFIXES):
        path = await netlink.path_to(_middle(prefix))
        if path is not None:
            found[prefix] = name_of(path.device)
    return found


def _middle(prefix: Prefix) -> Address:
    """An address of it that is no network's or broadcast address, unless there is but one."""
    return prefix[prefix.num_addresses // 2]


def _overflows(device: str, *, port: int) -> tuple[int, int]:
    return read_drops(device), sum(one.drops for one in host.udp_sockets(port))


# Checks.


def _node(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    if status is None:
        yield _ok("node", f"{facts.config.name} does not run: checked what it would need")
    elif status.device is not None and facts.device_mtu is None:
        yield _failed(
            "node",
            f"device {status.device} of the running node is not in this network namespace",
            "run doctor in the node's: nsenter --net --target=PID tunnel doctor",
        )
    else:
        yield _ok("node", f"{status.name} runs, for {status.seconds:.0f} s")


def _privileges(facts: Facts) -> Iterator[Finding]:
    if facts.status is not None:
        return
    if facts.net_admin:
        yield _ok("privileges", "CAP_NET_ADMIN is there")
    else:
        advice = 'run as root, or inside "unshare -Urn"'
        yield _failed("privileges", "CAP_NET_ADMIN is missing: no device can be made", advice)


def _tun(facts: Facts) -> Iterator[Finding]:
    if facts.status is not None:
        return
    if not facts.tun_error:
        yield _ok("tun", "/dev/net/tun opens")
    elif facts.tun_error in (errno.EPERM, errno.EACCES):
        advice = "run as root, or let all users open it: chmod 666 /dev/net/tun"
        yield _failed("tun", "/dev/net/tun: permission denied", advice)
    else:
        advice = "load it: modprobe tun; for a container, pass it in: --device /dev/net/tun"
        yield _failed("tun", "/dev/net/tun does not exist, or has no driver", advice)


def _port(facts: Facts) -> Iterator[Finding]:
    port = facts.config.port
    if facts.status is not None:
        return
    if not facts.port_error:
        yield _ok("port", f"UDP port {port} is free")
    elif facts.vxlan is not None:
        yield _failed(
            "port",
            f"UDP port {port} is in use by the kernel's vxlan device {facts.vxlan}",
            f"remove it: ip link delete {facts.vxlan}; or choose another --port",
        )
    elif facts.holders:
        text = f"UDP port {port} is in use by {', '.join(facts.holders)}"
        yield _failed("port", text, "stop it, or choose another --port")
    else:
        text, _, advice = facts.port_error.rstrip(")").partition(" (")
        yield _failed("port", text, advice)


def _firewall(facts: Facts) -> Iterator[Finding]:
    if facts.ruleset_error:
        yield _warning(
            "firewall",
            f"its rules cannot be read: {facts.ruleset_error}",
            "run as root, with nftables installed",
        )
        return
    losses = _losses(facts)
    for (loss, port, inbound), peers in losses.items():
        does = "drops" if loss.sure else "may drop"
        whose = _several(peers) if peers else "anybody"
        yield Finding(
            "firewall",
            Level.FAILED if loss.sure else Level.WARNING,
            f"{loss} {does} UDP to port {port} {'from' if inbound else 'to'} {whose}",
            f"let it pass: nft insert rule {loss.family} {loss.table} {loss.chain} "
            f"udp dport {port} accept",
        )
    if not losses:
        yield _ok("firewall", f"lets UDP port {facts.config.port} pass")


def _losses(facts: Facts) -> dict[tuple[Loss, int, bool], list[Endpoint]]:
    """The peers that each loss concerns, with the port that it is about, and whether inbound."""
    firewall, port = Firewall(facts.ruleset), facts.config.port
    found: dict[tuple[Loss, int, bool], list[Endpoint]] = {}
    for way in facts.ways:
        if way.address is None:
            continue
        there, here, family = way.address, way.source, way.address.version
        coming = Datagram(port, family, there, here, way.arrival or None)
        going = Datagram(way.endpoint.port, family, here, there, way.device or None)
        for loss in firewall.losses(coming, hooks=INBOUND):
            found.setdefault((loss, port, True), []).append(way.endpoint)
        for loss in firewall.losses(going, hooks=OUTBOUND):
            found.setdefault((loss, way.endpoint.port, False), []).append(way.endpoint)
    if not facts.ways:
        found = {(loss, port, True): [] for loss in firewall.losses(Datagram(port), hooks=INBOUND)}
    return found


def _routes(facts: Facts) -> Iterator[Finding]:
    lost = 0
    for way in facts.ways:
        if way.address is None:
            text = f"peer {way.endpoint}: its name has no address"
            yield _failed("routes", text, f"check DNS: getent hosts {way.endpoint.host}")
        elif way.source is None:
            text = f"peer {way.endpoint}: this host has no route to {way.address}"
            yield _failed("routes", text, f"see ip route get {way.address}")
        lost += way.source is None
    for prefix, device in facts.led_to.items():
        if facts.status is not None and device != facts.status.device:
            yield _failed(
                "routes",
                f"packets for {prefix} go to {device}, not into the overlay",
                f"another route is in the way, see ip route get {_middle(prefix)}",
            )
            lost += 1
    if facts.ways and not lost:
        yield _ok("routes", f"the underlay leads to {_count(len(facts.ways), 'peer')}")


def _reverse_path(facts: Facts) -> Iterator[Finding]:
    crooked = {
        (way.home, way.device): way
        for way in facts.ways
        if way.source and way.source.version == 4 and way.home in facts.strict
        if way.home not in (way.device, "lo")
    }
    for (home, device), way in crooked.items():
        dropped = f" ({_count(facts.filtered, 'packet')} so far)" if facts.filtered else ""
        # What really comes in by which device only the filter's own count can tell.
        yield Finding(
            "reverse-path",
            Level.FAILED if facts.filtered else Level.WARNING,
            f"{home} filters strictly, and the way back to {way.address} is {device}: what comes "
            f"from there is dropped{dropped}",
            f"sysctl -w net.ipv4.conf.{home}.rp_filter=2 and net.ipv4.conf.all.rp_filter=2",
        )
    if not crooked:
        yield _ok("reverse-path", "no filter is in the way")


def _forwarding(facts: Facts) -> Iterator[Finding]:
    # A subnet of one address is the node's own.
    served = [one for one in facts.config.subnets if one.num_addresses > 1]
    stuck = [one for one in served if one.version not in facts.forwards]
    for family in sorted({one.version for one in stuck}):
        subnets = ", ".join(str(one) for one in stuck if one.version == family)
        yield _warning(
            "forwarding",
            f"IPv{family} forwarding is off: of {subnets} peers reach this host alone",
            f"sysctl -w {_FORWARDING[family]}=1 if others live there",
        )
    if served and not stuck:
        yield _ok("forwarding", "on")


def _mtu(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    mtu = (facts.device_mtu or status.mtu) if status else facts.config.mtu
    narrow = [way for way in facts.ways if mtu and way.source and mtu > way.carries]
    for way in narrow:
        yield _failed(
            "mtu",
            f"mtu {mtu} is more than the way to {way.endpoint} carries ({way.carries})",
            f"set --mtu {way.carries} or leave it out",
        )
    thin = [peer for peer in facts.peers if peer.path_mtu and status and peer.path_mtu < status.mtu]
    for peer in thin:
        yield _warning(
            "mtu",
            f"the path to {peer.endpoint} takes {peer.path_mtu} bytes, less than the device gives",
            f"senders are told, but some do not listen: set --mtu {peer.path_mtu} on all nodes",
        )
    if not narrow and not thin:
        yield _ok("mtu", f"{mtu} fits" if mtu else "will be what the underlay carries")


def _offloads(facts: Facts) -> Iterator[Finding]:
    for line in facts.lacks:
        yield _warning("offloads", line, "a newer kernel has it; without, it costs more CPU")
    used = facts.status.offloads if facts.status else facts.config.offload
    missing = [word for word in OFFLOADS if word not in used]
    if facts.status and facts.status.device and missing:
        yield _warning(
            "offloads",
            f"not in use: {', '.join(missing)}",
            "turned off by --offload, by this kernel, or because it failed: see the node's log",
        )
    elif not facts.lacks:
        yield _ok("offloads", ", ".join(word for word in OFFLOADS if word in used) or "none wanted")


def _buffers(facts: Facts) -> Iterator[Finding]:
    if facts.status is not None:
        return
    tiny = [
        (what, name, size)
        for what, name, size in zip(("send", "receive"), ("w", "r"), facts.buffers, strict=True)
        if size < udp.BUFFER
    ]
    for what, name, size in tiny:
        yield _warning(
            "buffers",
            f"a socket gets {size >> 10} of {udp.BUFFER >> 10} KiB to {what}: bursts get lost",
            f"as root of the host: sysctl -w net.core.{name}mem_max={udp.BUFFER}",
        )
    if not tiny:
        yield _ok("buffers", f"sockets get {udp.BUFFER >> 10} KiB each way")


def _overflow(facts: Facts) -> Iterator[Finding]:
    if facts.status is None:
        return
    device, sockets = facts.overflows
    if device:
        yield _warning(
            "overflows",
            f"{facts.status.device} has lost {_count(device, 'packet')} in its full queue",
            "the node does not keep up: give it more CPU or --workers",
        )
    if sockets:
        yield _warning(
            "overflows",
            f"sockets have lost {_count(sockets, 'datagram')} in their full buffers",
            f"give it more CPU or --workers, or sysctl -w net.core.rmem_max={udp.BUFFER}",
        )
    if not device and not sockets:
        yield _ok("overflows", "no queue was full")


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.clock is False:
        text = "nothing keeps this host's clock right: logs of two hosts cannot be compared"
        yield _warning("clock", text, "install chrony or systemd-timesyncd")
    elif facts.clock:
        yield _ok("clock", "is synchronised")


def _peers(facts: Facts) -> Iterator[Finding]:
    unheard = [peer for peer in facts.peers if not _is_heard(peer)]
    for peer in unheard:
        yield _failed(
            "peers",
            f"peer {peer.endpoint} {_silence(peer)}",
            f"is a node up there, with this one as its peer and vni {facts.config.vni}, and does a "
            f"firewall on the way let UDP pass to {peer.endpoint.port} there and "
            f"{facts.config.port} here?",
        )
    if facts.peers and not unheard:
        yield _ok("peers", f"{_count(len(facts.peers), 'peer')} heard")


def _is_heard(peer: PeerStatus) -> bool:
    if peer.state is PeerState.UP:
        return True
    # A kernel vxlan device answers no echo; only nodes that speak to one have to be told its MAC.
    kernel = peer.mac is not None and peer.state is PeerState.UNKNOWN
    return kernel and (peer.inbound.packets > 0 or not peer.outbound.packets)


def _silence(peer: PeerStatus) -> str:
    sent, came = peer.outbound.packets, peer.inbound.packets
    counts = f"{_count(sent, 'packet')} went there, {came or 'none'} came"
    if peer.state is PeerState.SILENT:
        return f"is silent for {peer.seconds:.0f} s: {counts}"
    return f"has never answered: {counts}"


def _drops(facts: Facts) -> Iterator[Finding]:
    if facts.status is None:
        return
    found = {reason: n for reason, n in facts.status.drops.items() if reason in _TELLING}
    meanings = {name: meaning for name, _, meaning in DROP_REASONS}
    for reason, count in found.items():
        advice = meanings[reason]
        if reason == "unknown_source":
            advice += f"; see who: tcpdump -n udp dst port {facts.config.port}"
        yield _warning("drops", f"{reason}: {_count(count, 'packet')}", advice)
    if not found:
        yield _ok("drops", "none that tells of trouble")


def _trains(facts: Facts) -> Iterator[Finding]:
    for endpoint, arrive in facts.trains.items():
        if arrive is None:
            text = f"peer {endpoint} answered before, but not the self-test"
            yield _failed("trains", text, f"is it still up? see tunnel ping {endpoint}")
        elif not arrive:
            yield _failed(
                "trains",
                f"peer {endpoint}: trains of datagrams arrive damaged or not at all, single ones "
                "do; it gets no trains any more",
                "a hypervisor or network card on the way breaks them: say --offload tso,uso,gro "
                "there, too",
            )
    peers = [peer for peer in facts.peers if peer.endpoint not in facts.trains]
    without = [peer.endpoint for peer in peers if not peer.trains]
    if without:
        yield _warning(
            "trains",
            f"{_several(without)} gets none, which costs more CPU",
            "by --offload, or because they did not arrive: see the node's log",
        )
    tried = [endpoint for endpoint, arrive in facts.trains.items() if arrive]
    if tried and len(tried) == len(facts.trains) and not without:
        yield _ok("trains", f"reach {_count(len(tried), 'peer')} undamaged")


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _node,
    _privileges,
    _tun,
    _port,
    _firewall,
    _routes,
    _reverse_path,
    _forwarding,
    _mtu,
    _offloads,
    _buffers,
    _overflow,
    _clock,
    _peers,
    _drops,
    _trains,
)


def _ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def _warning(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Level.WARNING, text, advice)


def _failed(check: str, text: str, advice: str) -> Finding:
    return Finding(check, Level.FAILED, text, advice)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _several(endpoints: Iterable[Endpoint]) -> str:
    first, *others = endpoints
    return f"{first} and {len(others)} more" if others else str(first)


# A running node, as its control socket tells it.


def read_status(words: Mapping[str, Any]) -> Status:
    """
    The status that a node's control socket has told.

    Raises:
        TunnelError: It is none, for the node is of another version.
    """
    try:
        return Status(
            **{
                **words,
                "endpoints": tuple(words["endpoints"]),
                "mac": Mac.parse(words["mac"]),
                "offloads": frozenset(words["offloads"]),
                "peers": tuple(_read_peer(peer) for peer in words["peers"]),
                "subnets": tuple(parse_prefix(prefix) for prefix in words["subnets"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TunnelError(
            f"the node's status cannot be read: {error!r} (compare tunnel --version with its)"
        ) from error


def _read_peer(words: Mapping[str, Any]) -> PeerStatus:
    address, mac = words["address"], words["mac"]
    return PeerStatus(
        **{
            **words,
            "endpoint": Endpoint.parse(words["endpoint"]),
            "address": ipaddress.ip_address(address) if address else None,
            "mac": Mac.parse(mac) if mac else None,
            "prefixes": tuple(parse_prefix(prefix) for prefix in words["prefixes"]),
            "state": PeerState(words["state"]),
            "outbound": Traffic(**words["outbound"]),
            "inbound": Traffic(**words["inbound"]),
        }
    )


def config_of(status: Status | None) -> Config:
    """What a node was told, as far as its status shows it; defaults where none runs."""
    if status is None:
        return Config()
    return Config(
        name=status.name,
        vni=status.vni,
        port=int(status.endpoints[0].rpartition(":")[2]),
        subnets=status.subnets,
        peers=[Peer(peer.endpoint, peer.prefixes, mac=peer.mac) for peer in status.peers],
    )
