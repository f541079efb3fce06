"""
The workers of one tunnel: changes go to each of them, counters are their sums.

A worker has one queue of the device, one receiving socket and the forwarder between them. A single
worker runs in the event loop; of several, each has a thread. The kernel assigns each flow to one
worker: outbound by the queue of the device, inbound by the sockets that share a port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tunnel._native import WORK, Counters, Forwarder, read_counters
from tunnel.linux.epoll import Poller, ThreadedPoller
from tunnel.protocol.control_frames import ControlMessage
from tunnel.supervise import Supervisor
from tunnel.types import Mac

RouteRow = tuple[bytes, int, int]
"""Packed network address, prefix length, index of the peer."""

CONTROL_MESSAGES = "control messages"
"""Name under which the supervisor knows the reading of control messages."""


class Workers:
    """
    Args:
        forwarders: At least one, each a worker of its own.
        supervisor: Restarts a worker that fails.
        attend: Called in the loop when an offload was turned off or control messages arrived.
        failed: Called in the loop when a descriptor, the error's `filename`, no longer works. That
            worker has ended then.
    """

    def __init__(
        self,
        forwarders: Sequence[Forwarder],
        *,
        supervisor: Supervisor,
        attend: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        kind = Poller if len(forwarders) == 1 else ThreadedPoller
        self._forwarders = forwarders
        self._supervisor, self._attend, self._failed = supervisor, attend, failed
        self._pollers = [kind(one, attend=self._attend_supervised) for one in forwarders]

    def __len__(self) -> int:
        return len(self._forwarders)

    async def start(self, queues: Iterable[int]) -> None:
        """Returns when packets move between the sockets and the device's `queues`."""
        for number, (poller, queue) in enumerate(zip(self._pollers, queues, strict=True), start=1):
            poller.add(queue)
            self._supervisor.start(f"worker {number}", partial(self._run, poller))
        await asyncio.sleep(0)  # the tasks run, up to where they wait

    def close(self) -> None:
        """Stops moving packets. Tables and counters can still be read."""
        for poller in self._pollers:
            poller.close()

    async def _run(self, poller: Poller) -> None:
        try:
            await poller.run()
        except OSError as error:
            self._failed(error)

    def _attend_supervised(self) -> None:
        """A fault in the control plane stops no packets, but shows in the node's health."""
        try:
            self._attend()
        except Exception as error:
            self._supervisor.failed(CONTROL_MESSAGES, error)
        else:
            self._supervisor.recovered(CONTROL_MESSAGES)

    def listen(self, family: int, sockets: Iterable[Sequence[int]]) -> None:
        """Sets each worker's sockets of an underlay family (4 or 6); its first one receives."""
        workers = zip(self._forwarders, self._pollers, sockets, strict=True)
        for forwarder, poller, descriptors in workers:
            forwarder.set_sockets(family, descriptors)
            poller.add(descriptors[0])

    def set_peer(self, index: int, address: bytes | None, *, port: int, mac: Mac) -> None:
        for forwarder in self._forwarders:
            forwarder.set_peer(index, address, port, mac.packed)

    def remove_peer(self, index: int) -> None:
        for forwarder in self._forwarders:
            forwarder.remove_peer(index)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Sets the largest inner packet, in bytes, that the path to a peer takes; 0 for unknown."""
        for forwarder in self._forwarders:
            forwarder.set_mtu(index, mtu)

    def set_trains(self, index: int, on: bool) -> None:
        for forwarder in self._forwarders:
            forwarder.set_trains(index, on)

    def take_control_messages(self) -> list[ControlMessage]:
        """Returns and removes the queued control frames, and copies of ARP and NDP messages."""
        return [
            message
            for forwarder in self._forwarders
            for message in forwarder.take_control_messages()
        ]

    def set_neighbours(self, neighbours: Sequence[tuple[bytes, bytes]]) -> None:
        """Sets the packed overlay addresses and MACs from which ARP and NDP are answered: in TUN
        mode this node's own, for peers; in TAP mode those of peers, for the device."""
        for forwarder in self._forwarders:
            forwarder.set_neighbours(neighbours)

    def count_bad_control(self, index: int) -> None:
        """Counts a control frame of a peer that cannot be parsed as a drop."""
        self._forwarders[0].count_bad_control(index)

    def set_routes(self, routes: Sequence[RouteRow]) -> None:
        for forwarder in self._forwarders:
            forwarder.set_routes(routes)

    def owner(self, address: bytes) -> int:
        """Index of the peer that has the longest prefix for a packed overlay address, or -1."""
        return self._forwarders[0].lookup(address)

    def trace(self, packet: bytes) -> list[tuple[int, bool, int, int, bytes]]:
        """What each worker does with a packet or frame: see ``Forwarder.trace``."""
        return [forwarder.trace(packet) for forwarder in self._forwarders]

    def counters(self) -> dict[int, Counters]:
        """The counters of each peer by index, of ``UNKNOWN_PEER`` and of ``REMOVED_PEERS``."""
        return read_counters(self._forwarders)

    def sent(self) -> list[int]:
        """Packets sent to each peer, by index; 0 where there is no peer."""
        return _sums([forwarder.sent() for forwarder in self._forwarders])

    def received(self) -> list[int]:
        """Packets received from each peer, by index; 0 where there is no peer."""
        return _sums([forwarder.received() for forwarder in self._forwarders])

    def work(self) -> dict[str, int]:
        """How packets were moved, by name."""
        rows = [forwarder.work() for forwarder in self._forwarders]
        return {name: sum(row[name] for row in rows) for name in WORK}

    def send_trains(self) -> bool:
        """Whether any peer gets trains from every worker; also True while there is no peer."""
        rows = [forwarder.trains() for forwarder in self._forwarders]
        return not any(rows[0]) or any(min(states) == 2 for states in zip(*rows, strict=True))

    @property
    def coalescing(self) -> tuple[bool, bool]:
        """(TCP, UDP): whether every worker still writes super-packets to the device."""
        both = [forwarder.coalescing for forwarder in self._forwarders]
        return all(tcp for tcp, _ in both), all(udp for _, udp in both)


def _sums(rows: Sequence[tuple[int, ...]]) -> list[int]:
    """The sum of each column."""
    return [sum(column) for column in zip(*rows, strict=True)]
