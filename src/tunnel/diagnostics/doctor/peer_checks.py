"""What a running node knows of its peers: whether they answer, what it drops, who gets trains."""

from __future__ import annotations

from collections.abc import Iterator

from tunnel.diagnostics.doctor.finding import Finding, counted, failed, listed, ok, warning
from tunnel.diagnostics.host_report import HostReport
from tunnel.status import PeerState, PeerStatus

_FAULTS = (
    "unresolved",
    "blocked",
    "unreachable",
    "unknown_source",
    "other_vni",
    "other_mac",
    "bad_control",
    "spoofed",
)
"""Drop reasons that mean that two nodes disagree, or that this host is in the way."""


def peers(report: HostReport) -> Iterator[Finding]:
    silent = [peer for peer in report.peers if not _is_heard(peer)]
    for peer in silent:
        yield failed(
            "peers",
            f"peer {peer.endpoint} {_silence(peer)}",
            f"check that it has this node as a peer and vni {report.config.vni}, and that UDP port "
            f"{peer.endpoint.port} is open there and {report.config.port} here; on that host: "
            "tunnel doctor",
        )
    if report.peers and not silent:
        yield ok("peers", f"{counted(len(report.peers), 'peer')} heard from")


def _is_heard(peer: PeerStatus) -> bool:
    if peer.state is PeerState.UP:
        return True
    # A kernel vxlan device answers no echo; it is the usual peer with a configured MAC.
    kernel = peer.mac is not None and peer.state is PeerState.UNKNOWN
    return kernel and (peer.inbound.packets > 0 or not peer.outbound.packets)


def _silence(peer: PeerStatus) -> str:
    sent, received = peer.outbound.packets, peer.inbound.packets
    counts = f"{counted(sent, 'packet')} sent, {received or 'none'} received"
    if peer.state is PeerState.SILENT:
        return f"has been silent for {peer.state_age:.0f} s: {counts}"
    return f"has never answered: {counts}"


def drops(report: HostReport) -> Iterator[Finding]:
    faults = {reason: count for reason, count in report.drops.items() if reason in _FAULTS}
    for reason, count in faults.items():
        advice = report.drop_meanings.get(reason, "see: tunnel drops")
        if reason == "unknown_source":
            advice += f"; see the senders: tunnel capture --outer dst port {report.config.port}"
        yield warning("drops", f"{reason}: {counted(count, 'packet')}", advice)
    if not faults:
        yield ok("drops", "none that points to a fault")


def trains(report: HostReport) -> Iterator[Finding]:
    for endpoint, arrived in report.trains.items():
        if arrived is None:
            text = f"peer {endpoint} has answered before, but not the self-test"
            yield failed("trains", text, f"see whether it still answers: tunnel ping {endpoint}")
        elif not arrived:
            yield failed(
                "trains",
                f"trains of datagrams to peer {endpoint} arrive damaged or not at all, single "
                "datagrams arrive: the node stops sending it trains",
                "a hypervisor or network card on the path breaks them; to turn them off for good, "
                "on both nodes: tunnel up --offload tso,uso,gro",
            )
    yield from _without_trains(report)


def _without_trains(report: HostReport) -> Iterator[Finding]:
    untried = [peer for peer in report.peers if peer.endpoint not in report.trains]
    without = [peer.endpoint for peer in untried if not peer.trains]
    if without:
        yield warning(
            "trains",
            f"no trains go to {listed(without)}, which costs more CPU time",
            "--offload disables them, or they did not arrive; if systemd runs the node, see: "
            f"journalctl -u tunnel@{report.config.name}",
        )
    elif report.trains and all(report.trains.values()):
        yield ok("trains", f"arrive undamaged at {counted(len(report.trains), 'peer')}")
