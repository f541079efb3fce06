"""
The control socket of a running node, from the outside.

    async with Client(find()) as node:
        print(await node.call("status"))

``service.py`` is the other end, ``calls.py`` what can be asked. Nothing here trusts what the node
says to be small, or to come at all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from tunnel import errors
from tunnel.errors import NoAnswerError, TunnelError
from tunnel.status import PeerState, PeerStatus, Status, StoreStatus, TaskHealth, Traffic
from tunnel.types import Endpoint, Mac, parse_prefix

VERSION = 1
"""Of the conversation; each message says it as ``v``."""

LARGEST_REPLY = 64 << 20
"""Bytes. A peer takes some 400 of a status."""

TIMEOUT = 10.0
"""Seconds that a node has to answer."""

_PIECE = 1 << 16


def directories() -> list[Path]:
    """Where control sockets may be, the one that is preferred first."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [Path("/run/tunnel"), *([Path(own, "tunnel")] if own else [])]


def is_served(path: Path) -> bool:
    """Whether somebody listens at a control socket; one that we may not open counts as that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
    return True


def nodes() -> dict[str, Path]:
    """All control sockets, by the name of their node; of some the node may be gone."""
    return {path.stem: path for place in reversed(directories()) for path in _sockets(place)}


def find(name: str | None = None) -> Path:
    """
    The control socket of the node called `name`; without one, of the only node there is.

    Raises:
        TunnelError: There is none, or there are several; with their names.
    """
    found = nodes()
    if name is not None and name in found:
        return found[name]
    if name is None and len(found) > 1:
        # What killed nodes left counts only where there is nothing else.
        found = {stem: path for stem, path in found.items() if is_served(path)} or found
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    names = ", ".join(sorted(found))
    if not found:
        whose = "no node" if name is None else f"no node {name}"
        places = " or ".join(str(place) for place in directories())
        raise TunnelError(
            f'{whose} has a control socket in {places} (start one with "tunnel up", or say where '
            "its socket is with --control PATH)"
        )
    if name is not None:
        raise TunnelError(f"no node {name} has a control socket here (there is: {names})")
    raise TunnelError(f"{len(found)} nodes have control sockets here (choose by --name: {names})")


def _sockets(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.suffix == ".sock" and path.is_socket()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TunnelError(
            f"cannot look into {place}: {(error.strerror or str(error)).lower()} "
            "(run as who started the node, most often root)"
        ) from error


class Client:
    """
    A conversation with one node. Not for several tasks at once: replies come in order.

    Args:
        timeout: Seconds that the node has for each answer.

    Raises:
        TunnelError: Nobody is there, or this user may not ask.
    """

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT) -> None:
        self.path = Path(path)
        self._timeout = timeout
        self._unpacker = msgpack.Unpacker(max_buffer_size=LARGEST_REPLY)

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self.path)
        except OSError as error:
            raise TunnelError(_explain(self.path, error)) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, call: str, /, **args: Any) -> Any:
        """
        What the node answers. Cancelled, the request may have been carried out.

        Raises:
            TunnelError: The node refused, in the class that it said, or is not there any more.
            NoAnswer: So the node said of a peer that it asked.
        """
        try:
            async with asyncio.timeout(self._timeout):
                await self._ask(call, args)
                return _result(await self._reply())
        except NoAnswerError:  # a TimeoutError of the node's, not ours
            raise
        except TimeoutError as error:
            # A late reply would be taken for the next one.
            self._writer.close()
            raise TunnelError(
                f"the node at {self.path} does not answer (is its process stopped?)"
            ) from error

    async def status(self) -> Status:
        """
        As :meth:`tunnel.Tunnel.status`, of that node. Cancelled, nothing changes.

        Raises:
            TunnelError: As :meth:`call`; or the node is of another version.
        """
        return read_status(await self.call("status"))

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """
        What happens to the node's tunnel from now on; ends with it. Nothing else can be asked
        here afterwards.
        """
        await self._ask("events", {})
        with suppress(_Gone):
            while True:
                yield _result(await self._reply())

    async def _ask(self, call: str, args: dict[str, Any]) -> None:
        self._writer.write(msgpack.packb({"v": VERSION, "call": call, "args": args}))
        with suppress(ConnectionError):  # the reply, or that there is none, says more
            await self._writer.drain()

    async def _reply(self) -> Any:
        while True:
            try:
                return self._unpacker.unpack()
            except msgpack.OutOfData:
                pass
            except (ValueError, msgpack.UnpackException) as error:
                raise TunnelError(f"{self.path} speaks another language: {error}") from error
            try:
                piece = await self._reader.read(_PIECE)
            except ConnectionError:
                piece = b""
            if not piece:
                raise _Gone(f"the node at {self.path} is gone (it ended, or was stopped)")
            self._feed(piece)

    def _feed(self, piece: bytes) -> None:
        try:
            self._unpacker.feed(piece)
        except msgpack.BufferFull as error:
            raise TunnelError(f"{self.path} says more than {LARGEST_REPLY} bytes") from error


class _Gone(TunnelError):
    """The other end closed the connection."""


def _result(reply: Any) -> Any:
    if not isinstance(reply, dict) or reply.get("v") != VERSION:
        raise TunnelError(f"the node speaks another version than {VERSION} (compare tunnel's)")
    if "error" not in reply:
        return reply.get("result")
    late = reply.get("kind") == "TimeoutError"  # of a call that a program added
    kind = NoAnswerError if late else getattr(errors, str(reply.get("kind")), TunnelError)
    if not (isinstance(kind, type) and issubclass(kind, TunnelError)):
        kind = TunnelError
    raise kind(str(reply["error"]))


def _explain(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f'control socket {path} is not there (see "tunnel up --control")'
        case ConnectionRefusedError() if not path.is_socket():
            return f"control socket {path} is no socket (name another)"
        case ConnectionRefusedError():
            return (
                f"control socket {path} is dead: who made it ended without a word "
                '("tunnel up" replaces it)'
            )
        case PermissionError():
            return (
                f"control socket {path}: permission denied (run as its owner, most often root, "
                "or as a member of its group)"
            )
    return f"control socket {path}: {(error.strerror or str(error)).lower()} (name another)"


# A status, as the socket tells it.


def read_status(words: Mapping[str, Any]) -> Status:
    """
    The status that a node's control socket has told.

    Raises:
        TunnelError: It is none, for the node is of another version.
    """
    try:
        return Status(
            **{
                **words,
                "endpoints": tuple(words["endpoints"]),
                "mac": Mac.parse(words["mac"]),
                "offloads": frozenset(words["offloads"]),
                "peers": tuple(_read_peer(peer) for peer in words["peers"]),
                "subnets": tuple(parse_prefix(prefix) for prefix in words["subnets"]),
                "store": _read_store(words.get("store")),
                "tasks": tuple(TaskHealth(**task) for task in words["tasks"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TunnelError(
            f"the node's status cannot be read: {error!r} (compare tunnel --version with its)"
        ) from error


def _read_store(words: Mapping[str, Any] | None) -> StoreStatus | None:
    return None if words is None else StoreStatus(**{**words, "troubles": tuple(words["troubles"])})


def _read_peer(words: Mapping[str, Any]) -> PeerStatus:
    address, mac = words["address"], words["mac"]
    return PeerStatus(
        **{
            **words,
            "endpoint": Endpoint.parse(words["endpoint"]),
            "address": ipaddress.ip_address(address) if address else None,
            "mac": Mac.parse(mac) if mac else None,
            "prefixes": tuple(parse_prefix(prefix) for prefix in words["prefixes"]),
            "state": PeerState(words["state"]),
            "outbound": Traffic(**words["outbound"]),
            "inbound": Traffic(**words["inbound"]),
        }
    )
