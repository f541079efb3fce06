"""
What usually goes wrong with an overlay on this host, and what to do about it.

    HostReport  ->  diagnose()  ->  Finding, Finding ...

    finding          what a check reports
    host_checks      what a node needs of its host: device, port, buffers, offloads
    underlay_checks  what lies between the hosts: firewall, routes, forwarding, MTU
    peer_checks      what a running node knows of its peers: answers, drops, trains

Each check is a pure function from the report to its findings, at least one if it applies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from tunnel.config.node import Config
from tunnel.diagnostics.doctor import host_checks, peer_checks, underlay_checks
from tunnel.diagnostics.doctor.finding import Finding, Level
from tunnel.diagnostics.host_inspection import inspect_host
from tunnel.diagnostics.host_report import HostReport, config_of
from tunnel.errors import NoAnswerError
from tunnel.status import PeerState, Status
from tunnel.types import Endpoint

__all__ = ["Finding", "Level", "diagnose", "examine", "try_peers"]

_ANSWER_TIMEOUT = 3.0
"""Seconds in which peers may answer: reading the status makes the node send an echo a second."""

_POLL = 0.2  # seconds between two readings of the status

Check = Callable[[HostReport], Iterator[Finding]]

_BOTH: tuple[Check, ...] = (
    underlay_checks.firewall,
    underlay_checks.routes,
    underlay_checks.reverse_path,
    underlay_checks.forwarding,
    underlay_checks.mtu,
    host_checks.offloads,
)
_STOPPED: tuple[Check, ...] = (
    host_checks.node,
    host_checks.privileges,
    host_checks.tun,
    host_checks.port,
    *_BOTH,
    host_checks.buffers,
    host_checks.clock,
)
_RUNNING: tuple[Check, ...] = (
    host_checks.node,
    *_BOTH,
    host_checks.overflows,
    host_checks.clock,
    peer_checks.peers,
    peer_checks.drops,
    peer_checks.trains,
)


async def examine(
    config: Config | None = None,
    *,
    status: Status | None = None,
    trains: Mapping[Endpoint, bool | None] | None = None,
) -> list[Finding]:
    """
    Reads the state of this host and returns the findings of all checks.

    Args:
        config: The node's configuration; by default derived from `status`.
        status: The status of a node that runs here, None if none does.
        trains: For each peer that was tried the result of :meth:`tunnel.Tunnel.try_trains`, None
            for no answer.

    If cancelled, nothing changes.

    Raises:
        ConfigError: `status` is of a node that cannot exist.
    """
    report = await inspect_host(config or config_of(status), status=status, trains=trains or {})
    return diagnose(report)


def diagnose(report: HostReport) -> list[Finding]:
    """Returns at least one finding for each check that applies."""
    checks = _STOPPED if report.status is None else _RUNNING
    return [finding for check in checks for finding in check(report)]


async def try_peers(
    read_status: Callable[[], Awaitable[Status]],
    *,
    try_trains: Callable[[Endpoint], Awaitable[bool]],
) -> tuple[Status, dict[Endpoint, bool | None]]:
    """
    Waits for peers to answer, then returns the status and, for each peer that is up and gets
    trains, whether they arrive; None for a peer that did not answer.

    Args:
        read_status: Returns the current status.
        try_trains: As :meth:`tunnel.Tunnel.try_trains`.
    """
    status = await _wait_for_answers(read_status)
    results: dict[Endpoint, bool | None] = {}
    for peer in status.peers:
        if peer.state is PeerState.UP and peer.trains:
            try:
                results[peer.endpoint] = await try_trains(peer.endpoint)
            except NoAnswerError:
                results[peer.endpoint] = None
    return status, results


async def _wait_for_answers(read_status: Callable[[], Awaitable[Status]]) -> Status:
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        status = await read_status()
        # A peer with a configured MAC is usually a kernel vxlan device, which answers nothing.
        waiting = any(peer.state is not PeerState.UP and not peer.mac for peer in status.peers)
        if not waiting or time.monotonic() > deadline:
            return status
        await asyncio.sleep(_POLL)
