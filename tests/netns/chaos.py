"""
Kills nodes of a cluster and members of its etcd in random order; packets between the nodes that run
are not interrupted.

    make chaos
"""

from __future__ import annotations

import random
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.netns.member import Keys, Member, keys_on, until
from tests.netns.traffic import inside
from tunnel.testing.lab import Lab

_PORT = 9999
_PAUSE = 0.02  # seconds between packets of a pair
_SETTLED = 3.0  # seconds after which a restarted node counts as running
_LONGEST = 1.0  # seconds without a packet between two running nodes


class Traffic:
    """Packets between all nodes within the block; packets of nodes that do not run are lost."""

    def __init__(self, members: list[Member]) -> None:
        self._addresses = [member.addresses[0] for member in members]
        self._sockets = []
        for member in members:
            with inside(member.host):
                self._sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._sockets[-1].bind(("0.0.0.0", _PORT))
            self._sockets[-1].setblocking(False)
        self.lives = [time.monotonic()] * len(members)
        self.gaps: dict[tuple[int, int], float] = {}
        self._received_at: dict[tuple[int, int], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE):
            for source, sock in enumerate(self._sockets):
                for target, address in enumerate(self._addresses):
                    if source != target:
                        _send(sock, source, address)
            readable, _, _ = select.select(self._sockets, [], [], 0)
            for sock in readable:
                self._receive(sock)
            self._record_gaps()

    def _receive(self, sock: socket.socket) -> None:
        target = self._sockets.index(sock)
        try:
            while True:
                self._received_at[sock.recv(16)[0], target] = time.monotonic()
        except BlockingIOError:
            pass

    def _record_gaps(self) -> None:
        now = time.monotonic()
        for source, since in enumerate(self.lives):
            for target, also_since in enumerate(self.lives):
                begun = max(since, also_since) + _SETTLED
                if source == target or now < begun:
                    continue
                gap = now - max(begun, self._received_at.get((source, target), 0.0))
                self.gaps[source, target] = max(gap, self.gaps.get((source, target), 0.0))


def _send(sock: socket.socket, source: int, address: str) -> None:
    with suppress(OSError):  # there is no route while the node is down
        sock.sendto(bytes([source]), (address, _PORT))


@contextmanager
def _cluster(nodes: int, members: int) -> Iterator[tuple[Keys, list[Member]]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(Lab())
        hosts = [lab.host(str(number)) for number in range(nodes)]
        store = lab.host("store")
        lab.switch(*hosts, store)
        keys = stack.enter_context(keys_on(store, directory, members=members))
        keys.init({})
        all_nodes = [
            Member(host, *keys.words, "--subnet-lease-ttl", "20", "--workers", "1")
            for host in hosts
        ]
        for one in all_nodes:
            one.up()
        for one in all_nodes:
            one.until_peers(nodes - 1)
        yield keys, all_nodes


def run(seconds: float, *, seed: int) -> dict[str, object]:
    """The result. At the end every node must have its first subnet."""
    chance = random.Random(seed)
    kills = {"node": 0, "etcd": 0}
    with _cluster(nodes=5, members=3) as (keys, nodes):
        subnets = [node.subnets for node in nodes]
        with Traffic(nodes) as traffic:
            time.sleep(_SETTLED)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if chance.random() < 0.5:
                    kills["node"] += 1
                    _kill_node(nodes, traffic, chance)
                else:
                    kills["etcd"] += 1
                    _kill_member(keys, chance)
                time.sleep(chance.uniform(0.2, 1.0))
            time.sleep(_SETTLED + 1)
        _heal(keys)
        until(lambda: all(node.store["connected"] and node.store["key"] for node in nodes))
        assert [node.subnets for node in nodes] == subnets
        for node in nodes:
            node.until_peers(len(nodes) - 1)
    worst = max(traffic.gaps.values())
    assert len(traffic.gaps) == len(nodes) * (len(nodes) - 1)
    assert worst < _LONGEST, f"{worst:.2f} s without a packet between two running nodes"
    return {"seconds": seconds, "seed": seed, "killed": kills, "longest gap": round(worst, 3)}


def _kill_node(nodes: list[Member], traffic: Traffic, chance: random.Random) -> None:
    number = chance.randrange(len(nodes))
    traffic.lives[number] = float("inf")
    nodes[number].kill()
    time.sleep(chance.uniform(0, 1))
    nodes[number].up()
    traffic.lives[number] = time.monotonic()


def _kill_member(keys: Keys, chance: random.Random) -> None:
    """Kills one of three, or all of them."""
    some = [chance.randrange(3)] if chance.random() < 0.8 else [0, 1, 2]
    for number in some:
        keys.etcd.kill(number)
    time.sleep(chance.uniform(0, 2))
    for number in some:
        keys.etcd.start(number)


def _heal(keys: Keys) -> None:
    with inside(keys.host):
        keys.etcd.heal()


if __name__ == "__main__":
    print(run(float(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1))
