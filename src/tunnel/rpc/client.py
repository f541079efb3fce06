"""
Requests to a running node over its control socket.

    async with Client() as node:
        print((await node.status()).peers)

:mod:`tunnel.rpc.server` answers, :mod:`tunnel.rpc.methods` has what can be requested. The client
bounds the size of each reply and the time until it arrives.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgpack

from tunnel import errors
from tunnel.errors import NoAnswerError, TunnelError
from tunnel.events import Event
from tunnel.linux.namespaces import network_namespace
from tunnel.rpc.codec import decode, decode_event, describe_fdb_key
from tunnel.rpc.socket_paths import find
from tunnel.status import (
    Drop,
    FdbEntry,
    MacSource,
    Neighbour,
    PeerStatus,
    Route,
    Status,
)
from tunnel.types import Endpoint, Mac, Peer

if TYPE_CHECKING:
    from tunnel.diagnostics.path_trace import PathTrace

VERSION = 1
"""Of the protocol; the field ``v`` of each message."""

LARGEST_REPLY = 64 << 20
"""Bytes. A peer takes about 400 bytes of a status."""

TIMEOUT = 10.0
"""Seconds until a node must have answered a request."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class NodeIdentity:
    """
    The node that has answered a request.

    Attributes:
        pid: Its process id, in its own PID namespace.
        netns: The inode number of its network namespace, 0 if unknown.
    """

    name: str
    pid: int
    netns: int

    @property
    def is_here(self) -> bool:
        """Whether the node runs in the network namespace of this process, if both are known."""
        own = network_namespace()
        return self.netns == own or not self.netns or not own


class Client:
    """
    A connection to the control socket of one node; several tasks may use it at the same time.

    The methods return what the methods of :class:`tunnel.Tunnel` of the same name return, and
    raise the same errors. Cancelling a call does not undo the request, which the node may have
    carried out; its answer is discarded.

    Args:
        path: The control socket; by default that of the node called `name`.
        name: By default the only node in this network namespace.
        timeout: Seconds until the node must have answered a request.

    Attributes:
        node: The node that answered last, None before the first answer and for older nodes.

    Raises:
        TunnelError: There is no such node, or this user may not connect to it.
    """

    def __init__(
        self, path: str | Path | None = None, *, name: str | None = None, timeout: float = TIMEOUT
    ) -> None:
        self.path = find(name) if path is None else Path(path)
        self.node: NodeIdentity | None = None
        self._timeout = timeout
        self._numbers = itertools.count(1)
        # In the order of the requests: a node that does not echo ids answers in that order.
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._failure: TunnelError | None = None

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await _connect(self.path)
        self._receiver = asyncio.create_task(self._receive())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._receiver.cancel()
        await asyncio.gather(self._receiver, return_exceptions=True)
        await _disconnect(self._writer)

    async def call(self, call: str, /, **args: Any) -> Any:
        """
        Sends any request, and returns its result as JSON values.

        Raises:
            TunnelError: The error of the node, by its class; or the node has ended.
            NoAnswerError: A peer did not answer the node.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            raise self._failure
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(self._timeout):
                await _send(self._writer, call, args, number=number)
                reply = await answer
        except TimeoutError as error:
            raise TunnelError(
                f"the node at {self.path} does not answer (is its process stopped?)"
            ) from error
        return self._result(reply)

    async def status(self) -> Status:
        """Returns the state of the node and of each peer; also while the node opens."""
        return decode(Status, await self.call("status"))

    async def peers(self) -> tuple[PeerStatus, ...]:
        """Returns the state of each peer."""
        return decode(tuple[PeerStatus, ...], await self.call("peers"))

    async def add_peer(self, peer: str | Peer) -> None:
        """Adds a peer, as :meth:`tunnel.Tunnel.add_peer`."""
        await self.call("peer_add", peer=_spell_peer(peer) if isinstance(peer, Peer) else peer)

    async def remove_peer(self, peer: str | Endpoint | Peer) -> None:
        """Removes a peer, as :meth:`tunnel.Tunnel.remove_peer`."""
        endpoint = peer.endpoint if isinstance(peer, Peer) else peer
        await self.call("peer_remove", endpoint=str(endpoint))

    async def routes(self) -> tuple[Route, ...]:
        """Returns each prefix, its peer, and whether the kernel has its route."""
        return decode(tuple[Route, ...], await self.call("routes"))

    async def neighbours(self) -> dict[Endpoint, Neighbour]:
        """Returns the MAC of each peer's VTEP, and its source."""
        rows = await self.call("neighbours")
        known = (dict(row) for row in decode(tuple[Mapping[str, Any], ...], rows))
        return {decode(Endpoint, row["peer"]): _read_neighbour(row) for row in known}

    async def fdb(self) -> tuple[FdbEntry, ...]:
        """Returns the peer behind each MAC (with ``mode="tap"``)."""
        return decode(tuple[FdbEntry, ...], await self.call("fdb"))

    async def add_fdb(
        self, mac: str | Mac, *, peer: str | Endpoint, vlan: int | None = None
    ) -> None:
        """Adds a static entry, as :meth:`tunnel.Tunnel.add_fdb`."""
        await self.call("fdb_add", mac=str(mac), peer=str(peer), vlan=vlan)

    async def remove_fdb(self, mac: str | Mac, *, vlan: int | None = None) -> None:
        """Removes an entry, as :meth:`tunnel.Tunnel.remove_fdb`."""
        await self.call("fdb_remove", mac=str(mac), vlan=vlan)

    async def flush_fdb(self, *, learned: bool = False) -> tuple[FdbEntry, ...]:
        """Removes entries and returns them, as :meth:`tunnel.Tunnel.flush_fdb`."""
        entries = {describe_fdb_key(one.mac, one.vlan): one for one in await self.fdb()}
        removed = (await self.call("fdb_flush", learned=learned))["removed"]
        return tuple(entries[key] for key in removed if key in entries)

    async def drops(self) -> tuple[Drop, ...]:
        """Returns every drop reason, and how many packets were dropped for it."""
        return decode(tuple[Drop, ...], await self.call("drops"))

    async def ping(self, peer: str | Endpoint, *, size: int = 0) -> float:
        """Returns a round trip in seconds, as :meth:`tunnel.Tunnel.ping`."""
        answer = await self.call("ping", peer=str(peer), size=size)
        if answer["rtt"] is None:
            raise NoAnswerError(str(answer["why"]), stage=str(answer["stage"]))
        return decode(float, answer["rtt"])

    async def try_trains(self, peer: str | Endpoint) -> bool:
        """Returns whether datagram trains reach a peer, as :meth:`tunnel.Tunnel.try_trains`."""
        answer = await self.call("try_trains", peer=str(peer))
        return decode(bool, answer["trains"])

    async def explain(self, address: str, **packet: Any) -> PathTrace:
        """Returns the path of a packet; takes the arguments of :meth:`tunnel.Tunnel.explain`."""
        from tunnel.diagnostics.path_trace import PathTrace  # noqa: PLC0415 - loads the rules

        if (source := packet.get("source")) is not None:
            packet["source"] = str(source)
        return decode(PathTrace, await self.call("explain", address=str(address), **packet))

    async def reload(self) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
        """
        Makes the node read its file again.

        Returns: The endpoints of the removed and of the added peers; a changed peer is in both.
        """
        changed = await self.call("reload")
        removed = decode(tuple[Endpoint, ...], changed["removed"])
        return removed, decode(tuple[Endpoint, ...], changed["added"])

    async def down(self) -> None:
        """Stops the node; returns after it has closed its tunnel and removed its socket."""
        await self.call("down")

    async def events(self) -> AsyncGenerator[Event, None]:
        """
        Yields the events of the node from now on; ends with the node. It has a connection of its
        own, which closing the generator closes. Events that only a newer node has are left out.
        """
        reader, writer = await _connect(self.path)
        try:
            await _send(writer, "events", {}, number=next(self._numbers))
            async for reply in _replies(reader, self.path):
                event = decode_event(self._result(reply))
                if event is not None:
                    yield event
        finally:
            await _disconnect(writer)

    async def _receive(self) -> None:
        """Gives each reply to the call that waits for it, until the connection ends."""
        try:
            async for reply in _replies(self._reader, self.path):
                self._deliver(reply)
            self._failure = _Ended(
                f"the node at {self.path} closed the connection (it ended, or was stopped)"
            )
        except TunnelError as error:
            self._failure = error
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._failure)

    def _deliver(self, reply: Mapping[str, Any]) -> None:
        number = reply.get("id")
        if number is None:  # an older node, which answers in order, or one that refuses this client
            number = next(iter(self._waiting), None)
        # A cancelled call stays here, so that no other call gets its answer.
        answer = self._waiting.pop(number, None)  # type: ignore[arg-type]
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _result(self, reply: Mapping[str, Any]) -> Any:
        if (node := reply.get("node")) is not None:
            self.node = decode(NodeIdentity, node)
        if "error" in reply:
            raise _error(reply)
        return reply.get("result")


class _Ended(TunnelError):
    """The node closed the connection."""


async def _connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(path)
    except OSError as error:
        raise TunnelError(_explain(path, error)) from error


async def _disconnect(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _send(
    writer: asyncio.StreamWriter, call: str, args: Mapping[str, Any], *, number: int
) -> None:
    writer.write(msgpack.packb({"v": VERSION, "id": number, "call": call, "args": args}))
    with suppress(ConnectionError):  # the reply, or its absence, says more
        await writer.drain()


async def _replies(
    reader: asyncio.StreamReader, path: Path
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yields replies until the node closes the connection. Raises TunnelError if it sends anything
    else."""
    unpacker = msgpack.Unpacker(max_buffer_size=LARGEST_REPLY)
    while True:
        try:
            chunk = await reader.read(_CHUNK)
        except ConnectionError:
            return
        if not chunk:
            return
        try:
            unpacker.feed(chunk)
            for reply in unpacker:
                yield _checked(reply)
        except msgpack.BufferFull as error:
            raise TunnelError(f"{path} sends more than {LARGEST_REPLY} bytes") from error
        except (ValueError, msgpack.UnpackException) as error:
            raise TunnelError(f"{path} speaks another protocol: {error}") from error


def _checked(reply: Any) -> Mapping[str, Any]:
    if not isinstance(reply, dict) or reply.get("v") != VERSION:
        raise TunnelError(
            f"the node speaks another version than {VERSION} of the protocol "
            "(compare tunnel --version with the node's)"
        )
    return reply


def _error(reply: Mapping[str, Any]) -> TunnelError:
    """The error that a node has replied, of the class that it names."""
    text, name = str(reply["error"]), str(reply.get("kind"))
    if name in ("NoAnswerError", "TimeoutError"):  # the latter from a call that a program added
        return NoAnswerError(text, stage=str(reply.get("stage", "no_answer")))
    kind = getattr(errors, name, TunnelError)
    if not (isinstance(kind, type) and issubclass(kind, TunnelError)):
        kind = TunnelError
    try:
        error: TunnelError = kind(text)
    except TypeError:  # a class that takes more than a text
        error = TunnelError(text)
    return error


def _read_neighbour(row: Mapping[str, Any]) -> Neighbour:
    # The node names the MAC that it uses, also where that of the peer is unknown.
    known = row["source"] != MacSource.UNKNOWN.value
    return decode(Neighbour, {**row, "mac": row["mac"] if known else None})


def _spell_peer(peer: Peer) -> str:
    """The text that :meth:`tunnel.Peer.parse` reads."""
    values: Iterable[object] = [*peer.prefixes, *([f"mac={peer.mac}"] if peer.mac else [])]
    return f"{peer.endpoint}={','.join(map(str, values))}"


def _explain(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f'control socket {path} does not exist (see "tunnel up --control")'
        case ConnectionRefusedError() if not path.is_socket():
            return f"control socket {path} is not a socket (choose another)"
        case ConnectionRefusedError():
            return (
                f"control socket {path} is dead: its node was killed "
                '("tunnel up" replaces the socket)'
            )
        case PermissionError():
            return (
                f"control socket {path}: permission denied (run as its owner, most often root, "
                "or as a member of its group)"
            )
    return f"control socket {path}: {(error.strerror or str(error)).lower()} (name another)"
