"""
All workers of one tunnel as one: changes go to each of them, counters are their sum.

A worker is one queue of the device, one socket that receives, a forwarder between them, and
what waits for both: the event loop if it is the only one, else a thread of its own. The kernel
gives each flow to one worker, on the way out by the device's queue and on the way in by the
sockets' common port.
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
"""Packed network address, prefix length, peer index."""

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
        """Takes each worker's sockets of an underlay family (4 or 6), the one that receives
        first."""
        for forwarder, poller, own in zip(self._forwarders, self._pollers, sockets, strict=True):
            forwarder.set_sockets(family, own)
            poller.add(own[0])

    def set_peer(self, index: int, address: bytes | None, *, port: int, mac: Mac) -> None:
        for forwarder in self._forwarders:
            forwarder.set_peer(index, address, port, mac.packed)

    def remove_peer(self, index: int) -> None:
        for forwarder in self._forwarders:
            forwarder.remove_peer(index)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Largest inner packet that the path to a peer takes, in bytes; 0 where not known."""
        for forwarder in self._forwarders:
            forwarder.set_mtu(index, mtu)

    def set_trains(self, index: int, on: bool) -> None:
        for forwarder in self._forwarders:
            forwarder.set_trains(index, on)

    def take_control_messages(self) -> list[ControlMessage]:
        """Control frames, and copies of ARP and NDP messages, that came."""
        return [
            letter for forwarder in self._forwarders for letter in forwarder.take_control_messages()
        ]

    def set_neighbours(self, neighbours: Sequence[tuple[bytes, bytes]]) -> None:
        """Packed overlay addresses and MACs by which ARP and NDP are answered: ours for peers in
        TUN mode, those of peers for the device in TAP mode."""
        for forwarder in self._forwarders:
            forwarder.set_neighbours(neighbours)

    def count_bad_control(self, index: int) -> None:
        """Counts a letter that could not be read."""
        self._forwarders[0].count_bad_control(index)

    def set_routes(self, routes: Sequence[RouteRow]) -> None:
        for forwarder in self._forwarders:
            forwarder.set_routes(routes)

    def owner(self, address: bytes) -> int:
        """Index of the peer that owns a packed overlay address, -1 if none does."""
        return self._forwarders[0].lookup(address)

    def trace(self, packet: bytes) -> list[tuple[int, bool, int, int, bytes]]:
        """What each worker would do with a packet or frame: see ``Forwarder.trace``."""
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
        """(TCP, UDP): whether the device still takes super-packets from every worker."""
        both = [forwarder.coalescing for forwarder in self._forwarders]
        return all(tcp for tcp, _ in both), all(udp for _, udp in both)


def _sums(rows: Sequence[tuple[int, ...]]) -> list[int]:
    """Of each column."""
    return [sum(column) for column in zip(*rows, strict=True)]
