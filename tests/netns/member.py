"""A node of a cluster on a host, and the keys of its etcd, read and written without our client."""

import asyncio
import json
import select
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.netns.etcd import Etcd
from tests.netns.node import control_socket
from tests.netns.traffic import inside
from tunnel.rpc.client import Client
from tunnel.testing.lab import Host

T = TypeVar("T")

PREFIX = "/coreos.com/network"
PATIENCE = 40.0  # seconds for what takes one


def until(look: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """The result of `look`, once that is true."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Keys:
    """
    The keys of an etcd on a host.

    Attributes:
        member: The number of the member that gets the requests.
    """

    def __init__(self, host: Host, etcd: Etcd) -> None:
        self.host, self.etcd = host, etcd
        self.member = 0

    @property
    def words(self) -> tuple[str, ...]:
        return ("--etcd-endpoints", ",".join(self.etcd.endpoints))

    def init(self, words: Mapping[str, object]) -> None:
        self.put("config", {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}, **words})

    def put(self, name: str, value: object, *, ttl: int = 0) -> None:
        """Writes a key, bound to a lease of `ttl` seconds if that is given."""
        request = {"key": _base64(f"{PREFIX}/{name}"), "value": _base64(json.dumps(value))}
        if ttl:
            request["lease"] = self.call("lease/grant", {"TTL": ttl})["ID"]
        self.call("kv/put", request)

    def delete(self, name: str) -> None:
        self.call("kv/deleterange", {"key": _base64(f"{PREFIX}/{name}")})

    def subnets(self) -> dict[str, dict[str, Any]]:
        """The records by the names of their keys."""
        first = f"{PREFIX}/subnets/"
        answer = self.call(
            "kv/range", {"key": _base64(first), "range_end": _base64(first[:-1] + "0")}
        )
        return {
            b64decode(one["key"]).decode().removeprefix(first): json.loads(b64decode(one["value"]))
            for one in answer.get("kvs", [])
        }

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """The answer, once there is one: without a leader etcd refuses."""

        def ask() -> Any:
            with inside(self.host), suppress(OSError):
                return self.etcd.call(method, request, number=self.member)

        return until(ask)

    def wait(self) -> None:
        """Waits until every member answers."""
        with inside(self.host):
            for number in range(self.etcd.members):
                self.etcd.wait(number)


@contextmanager
def keys_on(host: Host, directory: Path, *, members: int = 1) -> Iterator[Keys]:
    etcd = Etcd(directory, members=members, address=host.ipv4, popen=host.popen)
    with inside(host):
        etcd.__enter__()
    try:
        yield Keys(host, etcd)
    finally:
        etcd.__exit__(None, None, None)


class Member:
    """
    A node of a cluster. Its state is in the host's file system, and survives the node.

    Args:
        words: Arguments of ``tunnel up`` that name the store, and others.
    """

    def __init__(self, host: Host, *words: str) -> None:
        self.host = host
        self._words = ("--iface", "eth0", "--state-dir", "/run/tunnel/state", *words)
        self._process: subprocess.Popen[str] | None = None

    def start(self, *words: str) -> None:
        command = [sys.executable, "-m", "tunnel", "up", *self._words, *words]
        self._process = self.host.popen(command)

    def ready(self) -> None:
        """Waits until the node is ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0], "not ready in time"
        assert self._process.stdout.readline(), self._process.stderr.read()

    def up(self, *words: str) -> None:
        self.start(*words)
        self.ready()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def down(self) -> str:
        """Stops the node as systemd does; returns its log."""
        assert self._process is not None
        self._process.terminate()
        _, logged = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, logged
        return logged

    def status(self) -> dict[str, Any]:
        path = control_socket(self.host)

        async def ask() -> dict[str, Any]:
            async with Client(path) as node:
                found: dict[str, Any] = await node.call("status")
                return found

        return asyncio.run(ask())

    @property
    def store(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["store"]
        return found

    @property
    def subnets(self) -> list[str]:
        found: list[str] = self.status()["subnets"]
        return found

    @property
    def addresses(self) -> list[str]:
        """The addresses in the overlay, one of each family."""
        return [subnet.partition("/")[0] for subnet in self.subnets]

    def peers(self) -> dict[str, list[str]]:
        """The prefixes of each peer, by its address."""
        peers = self.status()["peers"]
        return {one["endpoint"].rpartition(":")[0]: one["prefixes"] for one in peers}

    def until_peers(self, count: int) -> None:
        until(lambda: len(self.peers()) == count)


def reach(*members: Member) -> None:
    """Each node pings every other one, in each family."""
    for one in members:
        for other in members:
            if other is not one:
                for address in other.addresses:
                    one.host.ping(address)


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()
