"""
The requests that a running tunnel answers: from their arguments to the results.

    {"peer": "192.0.2.2", "size": 1400}  ->  Tunnel.ping  ->  {"rtt": 0.0002, ...}
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tunnel.errors import ConfigError, NoAnswerError, StateError
from tunnel.linux.namespaces import network_namespace
from tunnel.rpc.codec import describe_fdb_key
from tunnel.status import MacSource, Status
from tunnel.tunnel import Tunnel
from tunnel.types import ANY_VTEP_MAC, Mac

Method = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""
From the arguments of a request to its result, which :func:`tunnel.rpc.codec.encode` encodes.

Raises:
    ConfigError: An argument has a wrong type or value.
    TunnelError: As the method of the tunnel does.
"""

_LARGEST_PING = 65_000  # bytes; what one datagram carries


class Methods:
    """
    The requests that every tunnel answers. All but ``status`` raise StateError until it is open.

    Args:
        reload: Reads the configuration again and applies it; None if there is no file to read.

    Attributes:
        by_name: The methods, in the order in which an error lists them.
    """

    def __init__(self, tunnel: Tunnel, *, reload: Callable[[], Awaitable[None]] | None) -> None:
        self._tunnel, self._read_file = tunnel, reload
        self.by_name: dict[str, Method] = {
            "status": self._status,
            "peers": self._peers,
            "peer_add": self._peer_add,
            "peer_remove": self._peer_remove,
            "routes": self._routes,
            "neighbours": self._neighbours,
            "fdb": self._fdb,
            "fdb_add": self._fdb_add,
            "fdb_remove": self._fdb_remove,
            "fdb_flush": self._fdb_flush,
            "drops": self._drops,
            "ping": self._ping,
            "try_trains": self._try_trains,
            "explain": self._explain,
            "reload": self._reload,
        }

    async def _status(self, _: Mapping[str, Any]) -> Status:
        try:
            return self._tunnel.status()
        except StateError:
            return _status_before_open(self._tunnel)

    async def _peers(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.status(watch=False).peers

    async def _peer_add(self, args: Mapping[str, Any]) -> Any:
        before = set(self._tunnel.peers)
        await self._tunnel.add_peer(_argument(args, "peer", str))
        return {"added": sorted(set(self._tunnel.peers) - before)}

    async def _peer_remove(self, args: Mapping[str, Any]) -> Any:
        endpoint = self._tunnel.find_peer(_argument(args, "endpoint", str))
        await self._tunnel.remove_peer(endpoint)
        return {"removed": [endpoint]}

    async def _routes(self, _: Mapping[str, Any]) -> Any:
        return await self._tunnel.routes()

    async def _neighbours(self, _: Mapping[str, Any]) -> Any:
        status, known = self._tunnel.status(watch=False), self._tunnel.neighbours()
        return [
            {
                "prefix": prefix,
                "via": self._tunnel.gateway(prefix) if prefix else None,
                "device": status.device,
                "mac": peer.mac or ANY_VTEP_MAC,
                "source": known[peer.endpoint].source,
                "age": known[peer.endpoint].age,
                "peer": peer.endpoint,
                "address": peer.address,
                "state": peer.state,
            }
            for peer in status.peers
            for prefix in peer.prefixes or (None,)
        ]

    async def _fdb(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.fdb()

    async def _fdb_add(self, args: Mapping[str, Any]) -> Any:
        mac, vlan = _fdb_key(args)
        self._tunnel.add_fdb(
            mac, vlan=vlan, peer=self._tunnel.find_peer(_argument(args, "peer", str))
        )
        return {"added": [describe_fdb_key(mac, vlan)]}

    async def _fdb_remove(self, args: Mapping[str, Any]) -> Any:
        mac, vlan = _fdb_key(args)
        self._tunnel.remove_fdb(mac, vlan=vlan)
        return {"removed": [describe_fdb_key(mac, vlan)]}

    async def _fdb_flush(self, args: Mapping[str, Any]) -> Any:
        removed = self._tunnel.flush_fdb(learned=_argument(args, "learned", bool, default=False))
        return {"removed": [describe_fdb_key(entry.mac, entry.vlan) for entry in removed]}

    async def _drops(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.drops()

    async def _ping(self, args: Mapping[str, Any]) -> Any:
        """Returns the round trip in seconds, or the stage at which the echo failed, and why."""
        size = _argument(args, "size", int, default=0)
        if not 0 <= size <= _LARGEST_PING:
            raise ConfigError(f"size {size} is out of range (0 to {_LARGEST_PING} bytes)")
        peer = self._tunnel.find_peer(_argument(args, "peer", str))
        answer: dict[str, Any] = {"peer": peer, "size": size, "stage": None, "why": None}
        try:
            rtt = await self._tunnel.ping(peer, size=size)
        except NoAnswerError as error:
            return {**answer, "rtt": None, "stage": error.stage, "why": str(error)}
        return {**answer, "rtt": rtt}

    async def _try_trains(self, args: Mapping[str, Any]) -> Any:
        peer = self._tunnel.find_peer(_argument(args, "peer", str))
        return {"peer": peer, "trains": await self._tunnel.try_trains(peer)}

    async def _explain(self, args: Mapping[str, Any]) -> Any:
        source = args.get("source")
        return await self._tunnel.explain(
            _argument(args, "address", str),
            source=None if source is None else _argument(args, "source", str),
            size=_argument(args, "size", int, default=84),
            protocol=_argument(args, "protocol", str, default="icmp"),
            sport=_argument(args, "sport", int, default=40_000),
            dport=_argument(args, "dport", int, default=80),
        )

    async def _reload(self, _: Mapping[str, Any]) -> Any:
        """Returns the removed and the added peers; a changed peer is in both."""
        if self._read_file is None:
            raise ConfigError("this node was not started from a file (see tunnel up --config)")
        before = self._described_peers()
        await self._read_file()
        after = self._described_peers()
        return {
            "removed": sorted(endpoint for endpoint, *_ in before - after),
            "added": sorted(endpoint for endpoint, *_ in after - before),
        }

    def _described_peers(self) -> set[tuple[Any, ...]]:
        """The peers by everything that a configuration says of them."""
        peers = self._tunnel.status(watch=False).peers
        known = self._tunnel.neighbours()
        configured = {end for end, one in known.items() if one.source is MacSource.CONFIGURED}
        return {
            (one.endpoint, one.prefixes, one.mac if one.endpoint in configured else None)
            for one in peers
        }


def _argument(args: Mapping[str, Any], name: str, kind: type, *, default: Any = None) -> Any:
    value = args.get(name, default)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r} (its type must be {kind.__name__})")
    return value


def _fdb_key(args: Mapping[str, Any]) -> tuple[Mac, int | None]:
    """The MAC and the VLAN of an FDB entry."""
    vlan = None if args.get("vlan") is None else _argument(args, "vlan", int)
    return Mac.parse(_argument(args, "mac", str)), vlan


def _status_before_open(tunnel: Tunnel) -> Status:
    """What is known before the tunnel is open: its configuration, and what it waits for."""
    config = tunnel.config
    return Status(
        name=config.name,
        device=None,
        vni=config.vni,
        endpoints=(),
        mac=config.mac or ANY_VTEP_MAC,
        mtu=config.mtu or 0,
        offloads=frozenset(),
        workers=1,
        uptime=0.0,
        peers=(),
        drops={},
        subnets=config.subnets,
        mode=config.mode,
        device_up=False,
        tasks=tunnel.supervisor.tasks,
        phase=tunnel.phase,
        pid=os.getpid(),
        netns=network_namespace(),
    )
