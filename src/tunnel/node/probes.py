"""
What becomes of something that is sent to a peer now, to see whether it arrives: an echo, or trains.

    echo  ->  seconds, or at which stage it failed;  trains, single datagrams  ->  are they intact?
"""

from __future__ import annotations

import time

from tunnel.errors import NoAnswerError
from tunnel.node.node import Node
from tunnel.node.requests import SAMPLES
from tunnel.protocol.liveness import Health
from tunnel.status import PeerState
from tunnel.types import Endpoint


async def ping(node: Node, peer: str | Endpoint, *, size: int) -> float:
    """Seconds until the answer to an echo. Raises PeerNotFoundError and NoAnswerError."""
    endpoint = node.peers.find(peer)
    try:
        return await node.peers.requests.ping(endpoint, size=size)
    except TimeoutError as error:
        raise await _explain(node, endpoint, size=size) from error


async def _explain(node: Node, endpoint: Endpoint, *, size: int) -> NoAnswerError:
    """Why there was no answer: at which stage, and what to do."""
    if not node.is_open or endpoint not in node.peers.indices:
        return NoAnswerError(f"peer {endpoint} was removed meanwhile, or the tunnel closed")
    address = node.peers.address(endpoint)
    if address is None:
        why = f"the name {endpoint.host} has no address (check DNS)"
        return NoAnswerError(why, stage="unresolved")
    if await node.netlink.get_path(address) is None:
        why = f"this host has no route to {address} (see ip route get {address})"
        return NoAnswerError(why, stage="no_route")
    if size and await _answers(node, endpoint):
        mtu = node.peers.prober.path_mtu(endpoint)
        known = f"its path MTU is {mtu}" if mtu else "its path MTU is less"
        why = f"{size} bytes do not reach it, small packets do ({known})"
        return NoAnswerError(why, stage="too_big")
    return NoAnswerError(_silence(node.peers.prober.health(endpoint)))


def _silence(health: Health | None) -> str:
    if health is None or health.state is PeerState.UNKNOWN:
        return (
            "sent, but it has never answered: is a node up there, with this one as its peer? "
            "(a kernel vxlan device never answers; see tunnel doctor)"
        )
    silent = health.state is PeerState.SILENT
    since = f"silent for {time.monotonic() - health.since:.0f} s" if silent else "lost"
    return f"sent, but no answer came: {since} (is the node there still up?)"


async def _answers(node: Node, endpoint: Endpoint) -> bool:
    try:
        await node.peers.requests.ping(endpoint)
    except TimeoutError:
        return False
    return True


async def try_trains(node: Node, peer: str | Endpoint) -> bool:
    """Whether they arrive as they were sent; a peer that does not get them so gets none any
    more. Raises PeerNotFoundError and NoAnswerError."""
    endpoint = node.peers.find(peer)
    size = min(node.peers.prober.path_mtu(endpoint) or node.underlay.mtu, node.underlay.mtu)
    try:
        singly, together = await node.peers.requests.try_train(endpoint, size=size)
    except TimeoutError as error:
        raise _no_trial(endpoint) from error
    if not singly.intact:
        raise _no_trial(endpoint)
    # One that arrives damaged is no accident: checksums let none pass. Some get lost anyway.
    if together.damaged or together.intact < SAMPLES // 2 <= singly.intact:
        # It may have gone meanwhile.
        node.workers.set_trains(node.peers.indices[node.peers.find(endpoint)], False)
        node.report_lost_offloads()
        return False
    return True


def _no_trial(endpoint: Endpoint) -> NoAnswerError:
    return NoAnswerError(f"peer {endpoint} does not answer (see tunnel ping {endpoint})")
