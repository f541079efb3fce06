"""
What a node counts and knows now, as values. Nothing here changes the node.

    counters of the workers, health of the peers, offloads in use  ->  Stats, Status, Drop, Route

The counters of all peers are read in one call a worker, and each peer is visited once: the cost is
linear in the number of peers, and packets wait for one copy of a worker's counters.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tunnel._native import DROP_REASONS, UNKNOWN_PEER, Counters
from tunnel.linux.namespaces import network_namespace
from tunnel.linux.tun import Device
from tunnel.node.node import Node
from tunnel.status import Drop, PeerState, PeerStats, PeerStatus, Route, Stats, Status, Traffic
from tunnel.types import Endpoint


def read_stats(node: Node) -> Stats:
    """Counters since the node opened."""
    counters = _read_counters(node)
    peers = {
        endpoint: _make_peer_stats(counters[index])
        for endpoint, index in node.peers.indices.items()
    }
    return _make_stats(node, counters, peers=peers)


def read_status(node: Node) -> Status:
    """The node and each of its peers."""
    return _make_status(node, _read_counters(node))


def read_status_and_stats(node: Node) -> tuple[Status, Stats]:
    """Both at one moment, with one reading of the counters."""
    counters = _read_counters(node)
    status = _make_status(node, counters)
    peers = {one.endpoint: PeerStats(one.outbound, one.inbound, one.drops) for one in status.peers}
    return status, _make_stats(node, counters, peers=peers)


def _make_stats(
    node: Node, counters: Mapping[int, Counters], *, peers: Mapping[Endpoint, PeerStats]
) -> Stats:
    rows = counters.values()
    frames = node.fdb.counters() if node.fdb is not None else {}
    return Stats(
        outbound=Traffic(
            sum(row.outbound_packets for row in rows), sum(row.outbound_bytes for row in rows)
        ),
        inbound=Traffic(
            sum(row.inbound_packets for row in rows), sum(row.inbound_bytes for row in rows)
        ),
        drops=_sum_drops(rows),
        peers=peers,
        work={
            **node.workers.work(),
            **{f"fdb_{name}": number for name, number in frames.items()},
            "device_overflows": node.device.overflows(),
        },
        offloads=node.offloads,
        strays=counters[UNKNOWN_PEER].drops,
    )


def _make_status(node: Node, counters: Mapping[int, Counters]) -> Status:
    return Status(
        name=node.config.name,
        device=node.device.name if isinstance(node.device, Device) else None,
        vni=node.config.vni,
        endpoints=tuple(node.underlay.listening_addresses()),
        mac=node.underlay.mac,
        mtu=node.underlay.mtu,
        offloads=node.offloads,
        workers=len(node.workers),
        uptime=time.monotonic() - node.opened,
        peers=tuple(
            _make_peer_status(node, endpoint, counters[index])
            for endpoint, index in node.peers.indices.items()
        ),
        drops=_sum_drops(counters.values()),
        subnets=node.config.subnets,
        mode=node.config.mode,
        device_up=node.device_up,
        store=node.config_source.status() if node.config_source else None,
        tasks=node.supervisor.tasks,
        phase=node.phase,
        pid=os.getpid(),
        netns=network_namespace(),
    )


def read_drops(node: Node) -> tuple[Drop, ...]:
    """Every drop reason, also those that never occurred."""
    counters = _read_counters(node)
    total = _sum_drops(counters.values())
    peers: dict[str, dict[Endpoint, int]] = {reason: {} for reason, _, _ in DROP_REASONS}
    for endpoint, index in node.peers.indices.items():
        for reason, count in counters[index].drops.items():
            peers[reason][endpoint] = count
    return tuple(
        Drop(
            reason=reason,
            direction=direction,
            count=total.get(reason, 0),
            meaning=meaning,
            peers=peers[reason],
        )
        for reason, direction, meaning in DROP_REASONS
    )


async def read_routes(node: Node) -> tuple[Route, ...]:
    """Each peer's prefixes, and whether the kernel routes them here. Raises DeviceError."""
    kernel = None
    if isinstance(node.device, Device):
        kernel = set(await node.netlink.routes(node.device.index))
    return tuple(
        Route(prefix, endpoint, None if kernel is None else prefix in kernel)
        for endpoint in node.peers.indices
        for prefix in node.peers.peer(endpoint).prefixes
    )


def summarize(node: Node) -> str:
    """One line for the log."""
    used = node.offloads
    peers, workers = len(node.peers.indices), len(node.workers)
    device = "+".join(name for name in ("tso", "uso") if name in used) or "plain"
    return ", ".join(
        [
            f"{node.config.name}: vni {node.config.vni}",
            *node.underlay.listening_addresses(),
            f"mtu {node.underlay.mtu}",
            f"{peers} peer{'' if peers == 1 else 's'}",
            *(["mode tap"] if node.fdb is not None else []),
            f"device {device}" if node.with_device else "no device",
            f"trains {node.underlay.abilities.segments}" if "trains" in used else "no trains",
            "gro" if "gro" in used else "no gro",
            f"{workers} worker{'' if workers == 1 else 's'}",
        ]
    )


def _read_counters(node: Node) -> Mapping[int, Counters]:
    """The counters by peer index; zeros for a peer that the packet path does not have yet."""
    return defaultdict(_no_counters, node.workers.counters())


def _no_counters() -> Counters:
    return Counters((0, 0, 0, 0, {}, None, True))


def _make_peer_stats(row: Counters) -> PeerStats:
    return PeerStats(
        outbound=Traffic(row.outbound_packets, row.outbound_bytes),
        inbound=Traffic(row.inbound_packets, row.inbound_bytes),
        drops=row.drops,
    )


def _make_peer_status(node: Node, endpoint: Endpoint, row: Counters) -> PeerStatus:
    peer = node.peers.peer(endpoint)
    health = node.peers.prober.health(endpoint)  # None until the peer's name is resolved
    return PeerStatus(
        endpoint=endpoint,
        address=node.peers.address(endpoint),
        mac=node.peers.destination_mac(peer),
        prefixes=peer.prefixes,
        state=health.state if health else PeerState.UNKNOWN,
        state_age=time.monotonic() - (health.since if health else node.opened),
        rtt=health.rtt if health else None,
        loss=health.loss if health else None,
        path_mtu=node.peers.prober.path_mtu(endpoint),
        trains=row.trains,
        outbound=Traffic(row.outbound_packets, row.outbound_bytes),
        inbound=Traffic(row.inbound_packets, row.inbound_bytes),
        drops=row.drops,
        last_drop=row.last_drop,
    )


def _sum_drops(rows: Iterable[Counters]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for row in rows:
        if row.drops:
            total.update(row.drops)
    return dict(total)
