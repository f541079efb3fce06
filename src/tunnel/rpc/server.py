"""
The control socket: conversations in which a running tunnel is asked what ``calls.py`` knows.

    {"v": 1, "call": "ping", "args": {"peer": "192.0.2.2"}}
    ->  {"v": 1, "result": ...}  or  {"v": 1, "error": "one line", "kind": "ConfigError"}

A stream of msgpack maps each way, a reply to each request and in order. Results hold what JSON
can: seconds, bytes, enums as their values, addresses as text. Whoever may write to the socket's
file may ask everything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from tunnel.errors import CodecError, ConfigError, TunnelError
from tunnel.linux.users import choose_user
from tunnel.rpc.client import LARGEST_REPLY, VERSION, directories, is_served
from tunnel.rpc.methods import Method, Methods, plain
from tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

LARGEST_REQUEST = 1 << 20  # bytes
MOST_CLIENTS = 64

_PIECE = 1 << 16
_GOODBYE = 1.0  # seconds that clients have to take their last reply
_LIMITS: Mapping[str, Any] = {
    "max_buffer_size": LARGEST_REQUEST,
    "max_map_len": 64,
    "max_array_len": 0,
    "max_ext_len": 0,
}


class Service:
    """
    Answers at a control socket for as long as its ``async with`` block takes.

    Args:
        path: Of the socket; by default ``NAME.sock`` in /run/tunnel, or in
            $XDG_RUNTIME_DIR/tunnel where this process may not write to the former.
        reload: Reads the configuration again and applies it.
        down: Has the program end; whoever asked is answered when the tunnel is closed, which
            leaving the block does then.
        calls: What else can be asked.

    Raises:
        TunnelError: The socket cannot be made, or is another node's.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        path: str | Path | None = None,
        reload: Callable[[], Awaitable[None]] | None = None,
        down: Callable[[], None] | None = None,
        calls: Mapping[str, Method] | None = None,
    ) -> None:
        self._tunnel = tunnel
        self.path = Path(path) if path is not None else None
        self._end = down
        self._calls = {
            **Methods(tunnel, reload=reload).by_name,
            "down": self._down,
            **(calls or {}),
        }
        self._listener: socket.socket | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[Any] | None] = set()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self.listen()
        self._server = await asyncio.start_unix_server(self._welcome, sock=self._listener)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.remove()
        if self._leaving:
            await self._tunnel.close()
        for task in self._clients - self._leaving:
            task.cancel()
        if self._clients:
            _, late = await asyncio.wait(self._clients, timeout=_GOODBYE)
            for task in late:
                task.cancel()

    def listen(self) -> None:
        """Makes the socket, as entering does: for a program that then gives up the right to. Who
        connects waits until the block is entered; where it never is, :meth:`remove` undoes it."""
        self.path = self.path or _default_path(self._tunnel.config.name)
        self._listener = _listen(self.path)
        self._inode = self.path.stat().st_ino

    def hand_over(self, user: str | None) -> None:
        """
        Has the program that will be `user` (as :func:`choose_user` has it) able to remove the
        socket, by making the directory in /run that user's; but not while others' sockets are in
        use there. A user who was named gets the socket, too; nobody, who may be many, does not.

        Raises:
            ConfigError: There is no such user.
        """
        owner, path = choose_user(user), self.path
        assert path is not None
        if owner is None:
            return
        with suppress(OSError):  # then it is left behind at the end, and replaced by the next node
            if user is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)
            others = (other for other in path.parent.glob("*.sock") if other != path)
            if path.parent == directories()[0] and not any(map(is_served, others)):
                os.chown(path.parent, owner.pw_uid, owner.pw_gid)

    def remove(self) -> None:
        """Takes the socket away, once, unless it is another's by now."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        assert self.path is not None
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    # Conversations.

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        full = len(self._clients) >= MOST_CLIENTS
        talk = _turn_away if full else self._answer_all
        task = asyncio.create_task(_converse(talk, reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker(**_LIMITS)
        while piece := await reader.read(_PIECE):
            try:
                requests = _requests(unpacker, piece)
            except CodecError as error:
                await _send(writer, _refusal(error))
                return
            for name, args in requests:
                if name == "events":
                    await self._tell_events(reader, writer)
                    return
                await _send(writer, await self._answer(name, args))
                if asyncio.current_task() in self._leaving:
                    return

    async def _answer(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        try:
            call = self._calls.get(name)
            if call is None:
                known = ", ".join([*self._calls, "events"])
                raise ConfigError(f"call {name!r} is not known (known: {known})")
            return {"v": VERSION, "result": plain(await call(args))}
        except (TunnelError, TimeoutError) as error:
            return _refusal(error)
        except Exception as error:
            # Ours, not theirs: packets go on, and whoever asked shall not wait.
            log.exception("%s: the call %s failed", self._tunnel.config.name, name)
            return _refusal(TunnelError(f"{name} failed inside of the node: {error!r}"))

    async def _tell_events(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """A reply for each event, until either end has enough."""
        telling = asyncio.create_task(self._tell(writer))
        leaving = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            leaving.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        async for event in self._tunnel.events():
            words = {"event": type(event).__name__, **plain(event)}
            await _send(writer, {"v": VERSION, "result": words})

    async def _down(self, _: Mapping[str, Any]) -> Any:
        if self._end is None:
            raise ConfigError("this program does not let its tunnel be taken down (end it itself)")
        self._leaving.add(asyncio.current_task())
        self._end()
        with suppress(TunnelError):  # it is closed, and why is told elsewhere
            await self._tunnel.wait_closed()
        return {"name": self._tunnel.config.name}


async def _converse(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        await talk(reader, writer)
    except OSError:
        pass  # it left while we spoke
    finally:
        writer.close()


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Not before it has asked: who still writes when we close does not read any more."""
    async with asyncio.timeout(_GOODBYE):
        await reader.read(_PIECE)
    full = TunnelError(f"{MOST_CLIENTS} others are connected (end one of them)")
    await _send(writer, _refusal(full))


def _default_path(name: str) -> Path:
    for place in directories():
        if os.access(place if place.exists() else place.parent, os.W_OK):
            return place / f"{name}.sock"
    raise TunnelError(
        "no place for a control socket: /run/tunnel cannot be written to, and XDG_RUNTIME_DIR is "
        "not set or not ours (give --control PATH, or --control none)"
    )


def _listen(path: Path) -> socket.socket:
    """A control socket that its owner and group can open; it takes the place of a dead one."""
    try:
        path.parent.mkdir(exist_ok=True)
        _make_room(path)
        return _bind(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TunnelError(
            f"cannot make control socket {path}: {reason} (choose another --control)"
        ) from error


def _make_room(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise TunnelError(f"{path} is there and no socket (choose another --control)")
    if is_served(path):
        raise TunnelError(
            f"control socket {path} is another node's (choose another --name or --control)"
        )
    path.unlink()


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A file gets the mode of its socket, so there is no moment in which others may connect.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(MOST_CLIENTS)
        path.chmod(0o660)
    except OSError:
        listener.close()
        raise
    return listener


def _requests(unpacker: Any, piece: bytes) -> list[tuple[str, Mapping[str, Any]]]:
    """
    Name and arguments of all that is complete with `piece`.

    Raises:
        CodecError: It is no request, or too long for one.
    """
    try:
        unpacker.feed(piece)
        return [_parse(words) for words in unpacker]
    except CodecError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"this is no request: {error or type(error).__name__}") from error


def _parse(words: object) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(words, dict) or words.get("v") != VERSION:
        raise CodecError(f"this is no request of version {VERSION} (compare tunnel --version)")
    name, args = words.get("call"), words.get("args", {})
    if not isinstance(name, str) or not isinstance(args, dict):
        raise CodecError("a request has a call, which is text, and args, which is a map")
    return name, args


async def _send(writer: asyncio.StreamWriter, reply: Mapping[str, Any]) -> None:
    """One reply is under way at most: who does not read is not answered any more. Raises
    ConnectionError."""
    if writer.is_closing():  # where uvloop would raise a RuntimeError
        raise ConnectionResetError
    writer.write(_pack(reply))
    await writer.drain()
    await asyncio.sleep(0)  # however much is asked, packets have their turn


def _refusal(error: Exception) -> dict[str, Any]:
    return {"v": VERSION, "error": str(error) or "no answer", "kind": type(error).__name__}


def _pack(reply: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(reply)
    if len(packed) <= LARGEST_REPLY:
        return packed
    return _pack(_refusal(TunnelError(f"the answer has {len(packed)} bytes, which is too long")))
