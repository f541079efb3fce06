"""What lies between the hosts: firewall, routes, reverse-path filter, forwarding, MTU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tunnel.diagnostics.doctor.finding import Finding, Level, counted, failed, listed, ok, warning
from tunnel.diagnostics.firewall import (
    FORWARDED_IN,
    FORWARDED_OUT,
    INBOUND,
    OUTBOUND,
    Blocker,
    Datagram,
    Firewall,
)
from tunnel.diagnostics.host_report import FORWARDING, HostReport, PeerPath, middle_of
from tunnel.types import Endpoint, Prefix


def firewall(report: HostReport) -> Iterator[Finding]:
    if report.ruleset_error:
        yield warning(
            "firewall",
            f"the rules cannot be read: {report.ruleset_error}",
            "as root: apt-get install nftables && tunnel doctor",
        )
        return
    if report.legacy_rules:
        yield warning(
            "firewall",
            "iptables-legacy has a filter table as well, which is not checked",
            "look for a rule that drops UDP: iptables-legacy -S",
        )
    blocked = _blocked_ports(report)
    for (blocker, port, inbound), endpoints in blocked.items():
        other = listed(endpoints) if endpoints else "any host"
        yield Finding(
            "firewall",
            _level(blocker),
            f"{blocker} {_drops(blocker)} UDP to port {port} {'from' if inbound else 'to'} {other}",
            f"allow it: nft insert rule {blocker.family} {blocker.table} {blocker.chain} "
            f"udp dport {port} accept",
        )
    if not blocked and not report.legacy_rules:
        yield ok("firewall", f"allows UDP port {report.config.port}")


def _level(blocker: Blocker) -> Level:
    return Level.FAILED if blocker.certain else Level.WARNING


def _drops(blocker: Blocker) -> str:
    return "drops" if blocker.certain else "may drop"


def _blocked_ports(report: HostReport) -> dict[tuple[Blocker, int, bool], list[Endpoint]]:
    """Returns the peers that each blocker affects, by blocker, port and whether it is inbound."""
    rules, port = Firewall(report.ruleset), report.config.port
    found: dict[tuple[Blocker, int, bool], list[Endpoint]] = {}
    for path in report.peer_paths:
        if path.address is None:
            continue
        for blocker in rules.blockers(_from_peer(path, port), hooks=INBOUND):
            found.setdefault((blocker, port, True), []).append(path.endpoint)
        for blocker in rules.blockers(_to_peer(path), hooks=OUTBOUND):
            found.setdefault((blocker, path.endpoint.port, False), []).append(path.endpoint)
    if not report.peer_paths:
        found = {(one, port, True): [] for one in rules.blockers(Datagram(port), hooks=INBOUND)}
    return found


def _from_peer(path: PeerPath, port: int) -> Datagram:
    assert path.address is not None
    return Datagram(port, path.address.version, path.address, path.source, path.ingress or None)


def _to_peer(path: PeerPath) -> Datagram:
    assert path.address is not None
    port, device = path.endpoint.port, path.device or None
    return Datagram(port, path.address.version, path.source, path.address, device)


def routes(report: HostReport) -> Iterator[Finding]:
    findings = [*_unreachable(report), *_misrouted(report)]
    yield from findings
    if report.peer_paths and not findings:
        yield ok("routes", f"this host has routes to {counted(len(report.peer_paths), 'peer')}")


def _unreachable(report: HostReport) -> Iterator[Finding]:
    for path in report.peer_paths:
        if path.address is None:
            text = f"the name of peer {path.endpoint} has no address"
            yield failed("routes", text, f"check DNS: getent hosts {path.endpoint.host}")
        elif path.source is None:
            text = f"this host has no route to {path.address} of peer {path.endpoint}"
            yield failed("routes", text, f"see the kernel's answer: ip route get {path.address}")


def _misrouted(report: HostReport) -> Iterator[Finding]:
    if report.status is None or not report.device_up:
        return
    for prefix, device in report.prefix_devices.items():
        if device != report.status.device:
            yield failed(
                "routes",
                f"packets for {prefix} leave through {device}, not through the overlay",
                f"another kernel route takes precedence: ip route get {middle_of(prefix)}",
            )


def reverse_path(report: HostReport) -> Iterator[Finding]:
    asymmetric = {
        (path.source_device, path.device): path
        for path in report.peer_paths
        if path.source and path.source.version == 4
        if path.source_device in report.strict_devices
        if path.source_device not in (path.device, "lo")
    }
    # Only the filter's own counter tells on which device packets really arrive.
    level, drops, so_far = Level.WARNING, "may drop", ""
    if report.filtered:
        level, drops = Level.FAILED, "drops"
        so_far = f" ({counted(report.filtered, 'packet')} so far)"
    for (ingress, device), path in asymmetric.items():
        yield Finding(
            "reverse-path",
            level,
            f"the strict reverse-path filter of {ingress} {drops} packets from {path.address}, "
            f"because the route back leads to {device}{so_far}",
            f"make the filter loose: sysctl -w net.ipv4.conf.{ingress}.rp_filter=2",
        )
    if not asymmetric:
        yield ok("reverse-path", "no filter drops packets from peers")


def forwarding(report: HostReport) -> Iterator[Finding]:
    # A subnet of one address belongs to the node itself.
    subnets = [subnet for subnet in report.config.subnets if subnet.num_addresses > 1]
    findings = [*_not_forwarded(report, subnets), *_blocked_forwarding(report, subnets)]
    yield from findings
    if subnets and not findings:
        yield ok("forwarding", "on")


def _not_forwarded(report: HostReport, subnets: Iterable[Prefix]) -> Iterator[Finding]:
    stuck = [subnet for subnet in subnets if subnet.version not in report.forwarding]
    for family in sorted({subnet.version for subnet in stuck}):
        names = ", ".join(str(subnet) for subnet in stuck if subnet.version == family)
        yield warning(
            "forwarding",
            f"IPv{family} forwarding is off: in {names}, peers reach this host only",
            f"if other hosts or containers are in there: sysctl -w {FORWARDING[family]}=1",
        )


def _blocked_forwarding(report: HostReport, subnets: Iterable[Prefix]) -> Iterator[Finding]:
    for blocker, subnet in dict.fromkeys(_forwarding_blockers(report, subnets)):
        protocol = "ip" if subnet.version == 4 else "ip6"
        rule = f"nft insert rule {blocker.family} {blocker.table} {blocker.chain} {protocol}"
        yield Finding(
            "forwarding",
            _level(blocker),
            f"{blocker} {_drops(blocker)} packets between {subnet} and the overlay; no rule of "
            "another table can prevent that",
            f"allow them: {rule} saddr {subnet} accept && {rule} daddr {subnet} accept",
        )


def _forwarding_blockers(
    report: HostReport, subnets: Iterable[Prefix]
) -> Iterator[tuple[Blocker, Prefix]]:
    """Yields what blocks packets between a subnet and a peer's prefix, in either direction."""
    rules, device = Firewall(report.ruleset), report.device
    remote = [prefix for peer in report.config.peers for prefix in peer.prefixes]
    for subnet in subnets:
        family, here = subnet.version, middle_of(subnet)
        there = next((middle_of(one) for one in remote if one.version == family), None)
        if family not in report.forwarding:
            continue
        inbound = Datagram(None, family, there, here, device)
        outbound = Datagram(None, family, here, there, device)
        for datagram, hooks in ((inbound, FORWARDED_IN), (outbound, FORWARDED_OUT)):
            for blocker in rules.blockers(datagram, hooks=hooks):
                yield blocker, subnet


def mtu(report: HostReport) -> Iterator[Finding]:
    status = report.status
    value = (report.device_mtu or status.mtu) if status else report.config.mtu
    findings = [*_larger_than_route(report, value or 0), *_larger_than_path(report)]
    yield from findings
    if not findings:
        yield ok("mtu", f"{value} fits" if value else "the node derives it from the underlay")


def _larger_than_route(report: HostReport, value: int) -> Iterator[Finding]:
    device = report.status.device if report.status else None
    for path in report.peer_paths:
        if path.source is None or value <= path.inner_mtu:
            continue
        yield failed(
            "mtu",
            f"mtu {value} is more than the route to {path.endpoint} carries ({path.inner_mtu})",
            f"restart the node without --mtu, or: ip link set {device} mtu {path.inner_mtu}"
            if device
            else f"leave out --mtu, or: tunnel up --mtu {path.inner_mtu}",
        )


def _larger_than_path(report: HostReport) -> Iterator[Finding]:
    for peer in report.peers:
        if report.status is None or not peer.path_mtu or peer.path_mtu >= report.status.mtu:
            continue
        yield warning(
            "mtu",
            f"the path to {peer.endpoint} carries {peer.path_mtu} bytes, less than the mtu "
            f"{report.status.mtu}",
            "the node tells senders by ICMP, but some ignore it; on all nodes: "
            f"tunnel up --mtu {peer.path_mtu}",
        )
