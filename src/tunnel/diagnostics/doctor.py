"""
What usually goes wrong with an overlay on this host, and what to do about it.

    Facts  ->  diagnose()  ->  Finding, Finding ...

Each check is a pure function from the facts to what it found, one finding at least where it has
anything to look at.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from tunnel._native import DROP_REASONS
from tunnel.config.node import Config
from tunnel.config.options import OFFLOADS
from tunnel.diagnostics.firewall import (
    FORWARDED_IN,
    FORWARDED_OUT,
    INBOUND,
    OUTBOUND,
    Datagram,
    Firewall,
    Loss,
)
from tunnel.diagnostics.host_report import FORWARDING, HostReport, config_of, gather, middle_of
from tunnel.errors import NoAnswerError
from tunnel.linux import udp
from tunnel.status import PeerState, PeerStatus, Status
from tunnel.types import Endpoint, Prefix

_SETTLE = 3.0
"""Seconds in which peers may answer: while somebody looks, each is asked every second."""

_PAUSE = 0.2  # seconds between two looks at them

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
        advice: What to do, empty where there is nothing; a command stands at its end, behind a
            colon, to be pasted.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


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

    Cancelled, nothing changes.

    Raises:
        ConfigError: `status` is of a node that could not be.
    """
    return diagnose(await gather(config or config_of(status), status=status, trains=trains or {}))


async def try_peers(
    ask: Callable[[], Awaitable[Status]], *, try_trains: Callable[[Endpoint], Awaitable[bool]]
) -> tuple[Status, dict[Endpoint, bool | None]]:
    """
    The status of a node once its peers had the time to answer, and whether trains reach each of
    those who do and get them; None where there was no answer to that.

    Args:
        ask: Tells the status now.
        try_trains: As :meth:`tunnel.Tunnel.try_trains`.
    """
    status = await _settled(ask)
    found: dict[Endpoint, bool | None] = {}
    for peer in status.peers:
        if peer.state is PeerState.UP and peer.trains:
            try:
                found[peer.endpoint] = await try_trains(peer.endpoint)
            except NoAnswerError:
                found[peer.endpoint] = None
    return status, found


async def _settled(ask: Callable[[], Awaitable[Status]]) -> Status:
    deadline = time.monotonic() + _SETTLE
    while True:
        status = await ask()
        # One with a MAC is a kernel vxlan device most often, which answers nothing.
        waiting = any(peer.state is not PeerState.UP and not peer.mac for peer in status.peers)
        if not waiting or time.monotonic() > deadline:
            return status
        await asyncio.sleep(_PAUSE)


def diagnose(facts: HostReport) -> list[Finding]:
    """What the facts mean: a finding at least for each check that has something to look at."""
    checks = _STARTING if facts.status is None else _RUNNING
    return [finding for check in checks for finding in check(facts)]


# Checks.


def _node(facts: HostReport) -> Iterator[Finding]:
    status = facts.status
    if status is None:
        yield _ok("node", f"{facts.config.name} does not run: checked what it would need")
    elif status.device is not None and facts.device_mtu is None:
        yield _failed(
            "node",
            f"device {status.device} of the running node is not in this network namespace",
            "run it in the node's: "
            'nsenter --net --target="$(pgrep -o -f "tunnel up")" tunnel doctor',
        )
    elif not facts.device_up:
        yield _failed(
            "node",
            f"device {status.device} is down, and its kernel routes are gone with that",
            f"set it up, and they are put back: ip link set {status.device} up",
        )
    else:
        yield _ok("node", f"{status.name} runs, for {status.uptime:.0f} s")


def _privileges(facts: HostReport) -> Iterator[Finding]:
    if facts.net_admin:
        yield _ok("privileges", "CAP_NET_ADMIN is there")
    else:
        advice = "run as root, or to try it out: unshare -Urn"
        yield _failed("privileges", "CAP_NET_ADMIN is missing: no device can be made", advice)


def _tun(facts: HostReport) -> Iterator[Finding]:
    if not facts.tun_error:
        yield _ok("tun", "/dev/net/tun opens")
    elif facts.tun_error in (errno.EPERM, errno.EACCES):
        advice = "run as root, or as root let all users open it: chmod 666 /dev/net/tun"
        yield _failed("tun", "/dev/net/tun: permission denied", advice)
    else:
        advice = "start a container with --device=/dev/net/tun; elsewhere load it: modprobe tun"
        yield _failed("tun", "/dev/net/tun does not exist, or has no driver", advice)


def _port(facts: HostReport) -> Iterator[Finding]:
    port = facts.config.port
    if not facts.port_error:
        yield _ok("port", f"UDP port {port} is free")
    elif facts.vxlan is not None:
        yield _failed(
            "port",
            f"UDP port {port} is in use by the kernel's vxlan device {facts.vxlan}",
            f"choose another --port, or remove it: ip link delete {facts.vxlan}",
        )
    elif facts.holders:
        owners = ", ".join(f"{name} (pid {pid})" for pid, name in facts.holders.items())
        pids = " ".join(str(pid) for pid in facts.holders)
        advice = f"choose another --port, or stop it: kill {pids}"
        yield _failed("port", f"UDP port {port} is in use by {owners}", advice)
    else:
        text, _, advice = facts.port_error.rstrip(")").partition(" (")
        yield _failed("port", text, advice)


def _firewall(facts: HostReport) -> Iterator[Finding]:
    if facts.ruleset_error:
        yield _warning(
            "firewall",
            f"its rules cannot be read: {facts.ruleset_error}",
            "as root: apt-get install nftables && tunnel doctor",
        )
        return
    if facts.legacy:
        yield _warning(
            "firewall",
            "there is a filter table of iptables-legacy, too, whose rules are not read",
            "look for one that drops UDP: iptables-legacy -S",
        )
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
    if not losses and not facts.legacy:
        yield _ok("firewall", f"lets UDP port {facts.config.port} pass")


def _losses(facts: HostReport) -> dict[tuple[Loss, int, bool], list[Endpoint]]:
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


def _routes(facts: HostReport) -> Iterator[Finding]:
    lost = 0
    for way in facts.ways:
        if way.address is None:
            text = f"peer {way.endpoint}: its name has no address"
            yield _failed("routes", text, f"check DNS: getent hosts {way.endpoint.host}")
        elif way.source is None:
            text = f"peer {way.endpoint}: this host has no route to {way.address}"
            yield _failed("routes", text, f"see what it has: ip route get {way.address}")
        lost += way.source is None
    for prefix, device in facts.led_to.items():
        if facts.status is not None and facts.device_up and device != facts.status.device:
            yield _failed(
                "routes",
                f"packets for {prefix} go to {device}, not into the overlay",
                f"another route is in the way: ip route get {middle_of(prefix)}",
            )
            lost += 1
    if facts.ways and not lost:
        yield _ok("routes", f"the underlay leads to {_count(len(facts.ways), 'peer')}")


def _reverse_path(facts: HostReport) -> Iterator[Finding]:
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
            f"make it loose: sysctl -w net.ipv4.conf.{home}.rp_filter=2",
        )
    if not crooked:
        yield _ok("reverse-path", "no filter is in the way")


def _forwarding(facts: HostReport) -> Iterator[Finding]:
    # A subnet of one address is the node's own.
    served = [one for one in facts.config.subnets if one.num_addresses > 1]
    stuck = [one for one in served if one.version not in facts.forwards]
    for family in sorted({one.version for one in stuck}):
        subnets = ", ".join(str(one) for one in stuck if one.version == family)
        yield _warning(
            "forwarding",
            f"IPv{family} forwarding is off: of {subnets} peers reach this host alone",
            f"if others live there: sysctl -w {FORWARDING[family]}=1",
        )
    losses = dict.fromkeys(_forwarding_losses(facts, served))
    for loss, subnet in losses:
        does = "drops" if loss.sure else "may drop"
        protocol = "ip" if subnet.version == 4 else "ip6"
        rule = f"nft insert rule {loss.family} {loss.table} {loss.chain} {protocol}"
        yield Finding(
            "forwarding",
            Level.FAILED if loss.sure else Level.WARNING,
            f"{loss} {does} what goes between {subnet} and the overlay; no rule of another table "
            "can save it",
            f"let it pass: {rule} saddr {subnet} accept && {rule} daddr {subnet} accept",
        )
    if served and not stuck and not losses:
        yield _ok("forwarding", "on")


def _forwarding_losses(
    facts: HostReport, served: Iterable[Prefix]
) -> Iterator[tuple[Loss, Prefix]]:
    """What is in the way of packets between a subnet of ours and a peer's, either way."""
    firewall = Firewall(facts.ruleset)
    device = (facts.status.device if facts.status else None) or facts.config.name
    theirs = [prefix for peer in facts.config.peers for prefix in peer.prefixes]
    for subnet in served:
        family, here = subnet.version, middle_of(subnet)
        there = next((middle_of(one) for one in theirs if one.version == family), None)
        if family not in facts.forwards:
            continue
        coming = Datagram(None, family, there, here, device)
        going = Datagram(None, family, here, there, device)
        for datagram, hooks in ((coming, FORWARDED_IN), (going, FORWARDED_OUT)):
            for loss in firewall.losses(datagram, hooks=hooks):
                yield loss, subnet


def _mtu(facts: HostReport) -> Iterator[Finding]:
    status = facts.status
    mtu = (facts.device_mtu or status.mtu) if status else facts.config.mtu
    narrow = [way for way in facts.ways if mtu and way.source and mtu > way.carries]
    for way in narrow:
        yield _failed(
            "mtu",
            f"mtu {mtu} is more than the way to {way.endpoint} carries ({way.carries})",
            f"restart it without --mtu, or: ip link set {status.device} mtu {way.carries}"
            if status and status.device
            else f"leave --mtu out, or: tunnel up --mtu {way.carries}",
        )
    thin = [peer for peer in facts.peers if peer.path_mtu and status and peer.path_mtu < status.mtu]
    for peer in thin:
        yield _warning(
            "mtu",
            f"the path to {peer.endpoint} takes {peer.path_mtu} bytes, less than the device gives",
            "senders are told, but some do not listen; on all nodes: "
            f"tunnel up --mtu {peer.path_mtu}",
        )
    if not narrow and not thin:
        yield _ok("mtu", f"{mtu} fits" if mtu else "will be what the underlay carries")


def _offloads(facts: HostReport) -> Iterator[Finding]:
    for line in facts.lacks:
        yield _warning("offloads", line, "a newer kernel has it; without, it costs more CPU")
    used = facts.status.offloads if facts.status else facts.config.offload
    missing = [word for word in OFFLOADS if word not in used]
    if facts.status and facts.status.device and missing:
        yield _warning(
            "offloads",
            f"not in use: {', '.join(missing)}",
            "--offload or this kernel turned it off, or it failed; where systemd runs the node: "
            f"journalctl -u tunnel@{facts.status.name}",
        )
    elif not facts.lacks:
        yield _ok("offloads", ", ".join(word for word in OFFLOADS if word in used) or "none wanted")


def _buffers(facts: HostReport) -> Iterator[Finding]:
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


def _overflows(facts: HostReport) -> Iterator[Finding]:
    device, sockets = facts.overflows
    if device:
        yield _warning(
            "overflows",
            f"{facts.config.name} has lost {_count(device, 'packet')} in its full queue",
            "the node does not keep up: give it more CPU or --workers",
        )
    if sockets:
        yield _warning(
            "overflows",
            f"sockets have lost {_count(sockets, 'datagram')} in their full buffers",
            f"give it more CPU or --workers, or: sysctl -w net.core.rmem_max={udp.BUFFER}",
        )
    if not device and not sockets:
        yield _ok("overflows", "no queue was full")


def _clock(facts: HostReport) -> Iterator[Finding]:
    if facts.clock is False:
        text = "nothing keeps this host's clock right: logs of two hosts cannot be compared"
        yield _warning("clock", text, "have it kept: apt-get install systemd-timesyncd")
    elif facts.clock:
        yield _ok("clock", "is synchronised")


def _peers(facts: HostReport) -> Iterator[Finding]:
    unheard = [peer for peer in facts.peers if not _is_heard(peer)]
    for peer in unheard:
        yield _failed(
            "peers",
            f"peer {peer.endpoint} {_silence(peer)}",
            f"has it this node as its peer and vni {facts.config.vni}, and may UDP pass to port "
            f"{peer.endpoint.port} there and {facts.config.port} here? There, too: tunnel doctor",
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
        return f"is silent for {peer.state_age:.0f} s: {counts}"
    return f"has never answered: {counts}"


def _drops(facts: HostReport) -> Iterator[Finding]:
    found = {reason: n for reason, n in facts.drops.items() if reason in _TELLING}
    meanings = {name: meaning for name, _, meaning in DROP_REASONS}
    for reason, count in found.items():
        advice = meanings[reason]
        if reason == "unknown_source":
            advice += f"; see who: tunnel capture --outer dst port {facts.config.port}"
        yield _warning("drops", f"{reason}: {_count(count, 'packet')}", advice)
    if not found:
        yield _ok("drops", "none that tells of trouble")


def _trains(facts: HostReport) -> Iterator[Finding]:
    for endpoint, arrive in facts.trains.items():
        if arrive is None:
            text = f"peer {endpoint} answered before, but not the self-test"
            yield _failed("trains", text, f"see whether it still does: tunnel ping {endpoint}")
        elif not arrive:
            yield _failed(
                "trains",
                f"peer {endpoint}: trains of datagrams arrive damaged or not at all, single ones "
                "do; it gets no trains any more",
                "a hypervisor or network card on the way breaks them; on both nodes, for good: "
                "tunnel up --offload tso,uso,gro",
            )
    peers = [peer for peer in facts.peers if peer.endpoint not in facts.trains]
    without = [peer.endpoint for peer in peers if not peer.trains]
    if without:
        yield _warning(
            "trains",
            f"{_several(without)} gets none, which costs more CPU",
            "--offload turned them off, or they did not arrive; where systemd runs the node: "
            f"journalctl -u tunnel@{facts.config.name}",
        )
    tried = [endpoint for endpoint, arrive in facts.trains.items() if arrive]
    if tried and len(tried) == len(facts.trains) and not without:
        yield _ok("trains", f"reach {_count(len(tried), 'peer')} undamaged")


_SHARED = (_firewall, _routes, _reverse_path, _forwarding, _mtu, _offloads)
_STARTING = (_node, _privileges, _tun, _port, *_SHARED, _buffers, _clock)
_RUNNING = (_node, *_SHARED, _overflows, _clock, _peers, _drops, _trains)


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
