"""
Probes of one peer, by request: an echo, or trains of datagrams.

    echo    ->  seconds, or at which stage it failed
    trains  ->  whether they arrive undamaged, compared with single datagrams
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
    """Returns the seconds until the reply to an echo.
    Raises PeerNotFoundError and NoAnswerError."""
    endpoint = node.peers.find(peer)
    try:
        return await node.peers.requests.ping(endpoint, size=size)
    except TimeoutError as error:
        raise await _explain(node, endpoint, size=size) from error


async def _explain(node: Node, endpoint: Endpoint, *, size: int) -> NoAnswerError:
    """Returns why there was no reply: at which stage, and what to do."""
    if not node.is_open or endpoint not in node.peers.indices:
        return NoAnswerError(
            f"peer {endpoint} was removed in the meantime, or the tunnel was closed"
        )
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
    return NoAnswerError(_describe_silence(node.peers.prober.health(endpoint)))


def _describe_silence(health: Health | None) -> str:
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
    """Returns whether trains arrive undamaged; a peer that they do not reach gets no more of them.
    Raises PeerNotFoundError and NoAnswerError."""
    endpoint = node.peers.find(peer)
    size = min(node.peers.prober.path_mtu(endpoint) or node.underlay.mtu, node.underlay.mtu)
    try:
        singly, together = await node.peers.requests.try_train(endpoint, size=size)
    except TimeoutError as error:
        raise _no_answer(endpoint) from error
    if not singly.intact:
        raise _no_answer(endpoint)
    # Damage is not by chance, as checksums would reject it. Losses happen.
    if together.damaged or together.intact < SAMPLES // 2 <= singly.intact:
        # The peer may have been removed in the meantime.
        node.workers.set_trains(node.peers.indices[node.peers.find(endpoint)], False)
        node.report_lost_offloads()
        return False
    return True


def _no_answer(endpoint: Endpoint) -> NoAnswerError:
    return NoAnswerError(f"peer {endpoint} does not answer (see tunnel ping {endpoint})")
