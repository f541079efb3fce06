"""
What may be asked of a running tunnel, and changed: from the words of a request to its methods.

    {"peer": "192.0.2.2", "size": 1400}  ->  Tunnel.ping  ->  what JSON can hold
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from tunnel.errors import ConfigError, NoAnswerError
from tunnel.status import MacSource
from tunnel.tunnel import Tunnel
from tunnel.types import ANY_VTEP_MAC, Endpoint, Mac

Method = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""From a request's arguments to its result, which :func:`plain` makes plain. Raises ConfigError for
arguments that cannot be, and what the method does."""

_LARGEST_PING = 65_000  # bytes; what one datagram carries


class Methods:
    """
    Those that every tunnel answers.

    Args:
        reload: Reads the configuration again and applies it; None where there is none to read.

    Attributes:
        by_name: In the order in which people are told of them.
    """

    def __init__(self, tunnel: Tunnel, *, reload: Callable[[], Awaitable[None]] | None) -> None:
        self._tunnel, self._reread = tunnel, reload
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

    async def _status(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.status()

    async def _peers(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.status(watch=False).peers

    async def _peer_add(self, args: Mapping[str, Any]) -> Any:
        before = set(self._tunnel.peers)
        await self._tunnel.add_peer(_take(args, "peer", str))
        return {"added": sorted(set(self._tunnel.peers) - before)}

    async def _peer_remove(self, args: Mapping[str, Any]) -> Any:
        endpoint = self._tunnel.find_peer(_take(args, "endpoint", str))
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
        mac, vlan = _take_key(args)
        self._tunnel.add_fdb(mac, vlan=vlan, peer=self._tunnel.find_peer(_take(args, "peer", str)))
        return {"added": [_spell(mac, vlan)]}

    async def _fdb_remove(self, args: Mapping[str, Any]) -> Any:
        mac, vlan = _take_key(args)
        self._tunnel.remove_fdb(mac, vlan=vlan)
        return {"removed": [_spell(mac, vlan)]}

    async def _fdb_flush(self, args: Mapping[str, Any]) -> Any:
        gone = self._tunnel.flush_fdb(learned=_take(args, "learned", bool, default=False))
        return {"removed": [_spell(entry.mac, entry.vlan) for entry in gone]}

    async def _drops(self, _: Mapping[str, Any]) -> Any:
        return self._tunnel.drops()

    async def _ping(self, args: Mapping[str, Any]) -> Any:
        """One round trip in seconds, or at which stage it failed and why."""
        size = _take(args, "size", int, default=0)
        if not 0 <= size <= _LARGEST_PING:
            raise ConfigError(f"size {size} is out of range (0 to {_LARGEST_PING} bytes)")
        peer = self._tunnel.find_peer(_take(args, "peer", str))
        answer: dict[str, Any] = {"peer": peer, "size": size, "stage": None, "why": None}
        try:
            rtt = await self._tunnel.ping(peer, size=size)
        except NoAnswerError as error:
            return {**answer, "rtt": None, "stage": error.stage, "why": str(error)}
        return {**answer, "rtt": rtt}

    async def _try_trains(self, args: Mapping[str, Any]) -> Any:
        peer = self._tunnel.find_peer(_take(args, "peer", str))
        return {"peer": peer, "trains": await self._tunnel.try_trains(peer)}

    async def _explain(self, args: Mapping[str, Any]) -> Any:
        source = args.get("source")
        return await self._tunnel.explain(
            _take(args, "address", str),
            source=None if source is None else _take(args, "source", str),
            size=_take(args, "size", int, default=84),
            protocol=_take(args, "protocol", str, default="icmp"),
            sport=_take(args, "sport", int, default=40_000),
            dport=_take(args, "dport", int, default=80),
        )

    async def _reload(self, _: Mapping[str, Any]) -> Any:
        """Which peers went and came; one that changed did both."""
        if self._reread is None:
            raise ConfigError("this node was not started from a file (see tunnel up --config)")
        before = self._members()
        await self._reread()
        after = self._members()
        return {
            "removed": sorted(endpoint for endpoint, *_ in before - after),
            "added": sorted(endpoint for endpoint, *_ in after - before),
        }

    # What they stand on.

    def _members(self) -> set[tuple[Any, ...]]:
        peers = self._tunnel.status(watch=False).peers
        known = self._tunnel.neighbours()
        configured = {end for end, one in known.items() if one.source is MacSource.CONFIGURED}
        return {
            (one.endpoint, one.prefixes, one.mac if one.endpoint in configured else None)
            for one in peers
        }


def _take(args: Mapping[str, Any], name: str, kind: type, *, default: Any = None) -> Any:
    value = args.get(name, default)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r} (it has to be {kind.__name__})")
    return value


def _take_key(args: Mapping[str, Any]) -> tuple[Mac, int | None]:
    """MAC and VLAN of an entry in the FDB."""
    vlan = None if args.get("vlan") is None else _take(args, "vlan", int)
    return Mac.parse(_take(args, "mac", str)), vlan


def _spell(mac: Mac, vlan: int | None) -> str:
    return str(mac) if vlan is None else f"{mac} vlan {vlan}"


def plain(value: Any) -> Any:
    """The same as JSON would have it."""
    match value:
        case None | bool() | int() | float() | str():
            same: Any = value
        case Enum():
            same = value.value
        case Mapping():
            same = {str(key): plain(one) for key, one in value.items()}
        case set() | frozenset():
            same = sorted(plain(one) for one in value)
        case list() | tuple():
            same = [plain(one) for one in value]
        case _ if is_dataclass(value) and not isinstance(value, Endpoint | Mac):
            same = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            same = str(value)
    return same
