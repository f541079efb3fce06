"""``tunnel up`` on a host, with a store to find others in, and that store's keys by other means."""

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
    """What `look` gives, once that is something."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)
    return found


class Keys:
    """
    The keys of an etcd on a host, as anybody may write them.

    Attributes:
        member: Which one is asked.
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
        """With a lease of `ttl` seconds, if that is given."""
        request = {"key": _base64(f"{PREFIX}/{name}"), "value": _base64(json.dumps(value))}
        if ttl:
            request["lease"] = self.call("lease/grant", {"TTL": ttl})["ID"]
        self.call("kv/put", request)

    def delete(self, name: str) -> None:
        self.call("kv/deleterange", {"key": _base64(f"{PREFIX}/{name}")})

    def subnets(self) -> dict[str, dict[str, Any]]:
        """Who has said what, by the name of the key."""
        first = f"{PREFIX}/subnets/"
        answer = self.call(
            "kv/range", {"key": _base64(first), "range_end": _base64(first[:-1] + "0")}
        )
        return {
            b64decode(one["key"]).decode().removeprefix(first): json.loads(b64decode(one["value"]))
            for one in answer.get("kvs", [])
        }

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """What it answers, once it does: without a leader it refuses."""

        def ask() -> Any:
            with inside(self.host), suppress(OSError):
                return self.etcd.call(method, request, number=self.member)

        return until(ask)

    def wait(self) -> None:
        """Until every member can answer."""
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
    A node of a cluster; what it keeps is the host's, and stays when it is killed.

    Args:
        words: Which store it has, and more of ``tunnel up``.
    """

    def __init__(self, host: Host, *words: str) -> None:
        self.host = host
        self._words = ("--iface", "eth0", "--state-dir", "/run/tunnel/state", *words)
        self._process: subprocess.Popen[str] | None = None

    def start(self, *words: str) -> None:
        command = [sys.executable, "-m", "tunnel", "up", *self._words, *words]
        self._process = self.host.popen(command)

    def ready(self) -> None:
        """Waits until it is."""
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
        """Ends it as systemd would; returns what it has logged."""
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
        """In the overlay, one of each family."""
        return [subnet.partition("/")[0] for subnet in self.subnets]

    def peers(self) -> dict[str, list[str]]:
        """Prefixes, by the address of who owns them."""
        peers = self.status()["peers"]
        return {one["endpoint"].rpartition(":")[0]: one["prefixes"] for one in peers}

    def until_peers(self, count: int) -> None:
        until(lambda: len(self.peers()) == count)


def reach(*members: Member) -> None:
    """Each pings every other one, in each family."""
    for one in members:
        for other in members:
            if other is not one:
                for address in other.addresses:
                    one.host.ping(address)


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()
