"""
What a node counts and knows now, put together for who asks. Nothing here changes anything.

    counters of the workers, health of the peers, offloads in use  ->  Stats, Status, Drop, Route
"""

from __future__ import annotations

import time
from collections import Counter

from tunnel._native import DROP_REASONS
from tunnel.linux.tun import Device
from tunnel.node.node import Node
from tunnel.node.workers import GONE, NOBODY
from tunnel.status import Drop, PeerState, PeerStats, PeerStatus, Route, Stats, Status, Traffic
from tunnel.types import Endpoint


def count(node: Node) -> Stats:
    """Counters since it opened."""
    peers = {endpoint: node.workers.stats(index) for endpoint, index in node.peers.indices.items()}
    nobody, gone = node.workers.stats(NOBODY), node.workers.stats(GONE)
    everyone = [*peers.values(), nobody, gone]
    drops: Counter[str] = Counter()
    for one in everyone:
        drops.update(one.drops)
    frames = node.fdb.counters() if node.fdb is not None else {}
    return Stats(
        outbound=sum((one.outbound for one in everyone), Traffic()),
        inbound=sum((one.inbound for one in everyone), Traffic()),
        drops=dict(drops),
        peers=peers,
        work={
            **node.workers.work(),
            **{f"fdb_{name}": number for name, number in frames.items()},
            "device_overflows": node.device.overflows(),
        },
        offloads=node.offloads,
        strays=nobody.drops,
    )


def drops(node: Node) -> tuple[Drop, ...]:
    """Every reason there is, also those that never occurred."""
    stats = count(node)
    return tuple(
        Drop(
            reason=reason,
            direction=direction,
            count=stats.drops.get(reason, 0),
            meaning=meaning,
            peers={
                endpoint: peer.drops[reason]
                for endpoint, peer in stats.peers.items()
                if reason in peer.drops
            },
        )
        for reason, direction, meaning in DROP_REASONS
    )


async def routes(node: Node) -> tuple[Route, ...]:
    """Which peer owns what, and whether the kernel knows. Raises DeviceError."""
    kernel = None
    if isinstance(node.device, Device):
        kernel = set(await node.netlink.routes(node.device.index))
    return tuple(
        Route(prefix, endpoint, None if kernel is None else prefix in kernel)
        for endpoint in node.peers.indices
        for prefix in node.peers.peer(endpoint).prefixes
    )


def look(node: Node) -> Status:
    """All that is known."""
    stats = count(node)
    return Status(
        name=node.config.name,
        device=node.device.name if isinstance(node.device, Device) else None,
        vni=node.config.vni,
        endpoints=tuple(node.underlay.listening_addresses()),
        mac=node.underlay.mac,
        mtu=node.underlay.mtu,
        offloads=stats.offloads,
        workers=len(node.workers),
        uptime=time.monotonic() - node.opened,
        peers=tuple(look_at(node, endpoint, stats.peers[endpoint]) for endpoint in stats.peers),
        drops=stats.drops,
        subnets=node.config.subnets,
        mode=node.config.mode,
        device_up=node.device_up,
        store=node.config_source.status() if node.config_source else None,
        tasks=node.supervisor.tasks,
    )


def look_at(node: Node, endpoint: Endpoint, counted: PeerStats) -> PeerStatus:
    """All that is known of a peer."""
    peer, index = node.peers.peer(endpoint), node.peers.indices[endpoint]
    # One whose name is not resolved yet was never asked.
    health = node.peers.prober.health(endpoint)
    return PeerStatus(
        endpoint=endpoint,
        address=node.peers.address(endpoint),
        mac=node.peers.vteps.used(peer),
        prefixes=peer.prefixes,
        state=health.state if health else PeerState.UNKNOWN,
        state_age=time.monotonic() - (health.since if health else node.opened),
        rtt=health.rtt if health else None,
        loss=health.loss if health else None,
        path_mtu=node.peers.prober.path_mtu(endpoint),
        trains=node.workers.trains(index),
        outbound=counted.outbound,
        inbound=counted.inbound,
        drops=counted.drops,
        last_drop=node.workers.last_drop(index),
    )


def describe(node: Node) -> str:
    """One line for people."""
    used = node.offloads
    peers, workers = len(node.peers.indices), len(node.workers)
    device = "+".join(word for word in ("tso", "uso") if word in used) or "plain"
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
