"""
The control socket of a running tunnel, which answers the requests in :mod:`tunnel.rpc.methods`.

    {"v": 1, "id": 7, "call": "ping", "args": {"peer": "192.0.2.2"}}
    ->  {"v": 1, "id": 7, "node": {...}, "result": ...}
    or  {"v": 1, "id": 7, "node": {...}, "error": "one line", "kind": "ConfigError"}

Each direction is a stream of msgpack maps. Requests with an id are answered when their result is
ready, in any order; requests without one, as older clients send them, in order and without an id.
Results hold JSON values: times in seconds, sizes in bytes, enums as their values, addresses as
text. Any process that may write to the socket may send every request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from tunnel.errors import CodecError, ConfigError, NoAnswerError, TunnelError
from tunnel.linux.namespaces import network_namespace
from tunnel.linux.users import choose_user
from tunnel.rpc.client import LARGEST_REPLY, VERSION
from tunnel.rpc.codec import encode, encode_event
from tunnel.rpc.methods import Method, Methods
from tunnel.rpc.socket_paths import default_path, directories, is_served
from tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

LARGEST_REQUEST = 1 << 20
"""Bytes."""

MOST_CLIENTS = 64
"""Connections at the same time."""

MOST_REQUESTS = 16
"""Requests of one connection at the same time; more are read when one of these is answered."""

_CHUNK = 1 << 16
_GRACE = 1.0  # seconds in which clients receive their last reply
_LIMITS: Mapping[str, Any] = {
    "max_buffer_size": LARGEST_REQUEST,
    "max_map_len": 64,
    "max_array_len": 0,
    "max_ext_len": 0,
}

Refuse = Callable[[Exception], dict[str, Any]]


class Service:
    """
    Serves the control socket of a tunnel while its ``async with`` block runs.

    The block may be entered before the tunnel: until the tunnel is open, ``status`` says what it
    waits for, ``down`` works, and all other requests are refused with a StateError.

    Args:
        path: The path of the socket; by default in /run/tunnel, or in $XDG_RUNTIME_DIR/tunnel if
            this user may not write there (see :mod:`tunnel.rpc.socket_paths`).
        reload: Reads the configuration again and applies it.
        down: Makes the program end. Leaving the block then closes the tunnel before ``down`` is
            answered.
        calls: Further requests, by name.

    Raises:
        TunnelError: The socket cannot be created, or belongs to another node.
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
        self._stop_program = down
        self._methods = {
            **Methods(tunnel, reload=reload).by_name,
            "down": self._down,
            **(calls or {}),
        }
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._down_requests: set[asyncio.Task[Any] | None] = set()
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self.listen()
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.remove()
        try:
            if self._down_requests:
                await self._tunnel.close()
        finally:
            self._ended.set()
            await self._close_connections()

    def listen(self) -> None:
        """Creates the socket, as entering does: for a program that then drops its privileges.
        Clients that connect wait until the block is entered. :meth:`remove` undoes it."""
        self.path = self.path or default_path(self._tunnel.config.name)
        self._listener = _listen(self.path)
        self._inode = self.path.stat().st_ino

    def hand_over(self, user: str | None) -> None:
        """
        Lets the user that the program changes to remove the socket: it becomes the owner of the
        directory in /run, unless sockets of other nodes are in use there. A user that is named
        also becomes the owner of the socket; nobody, as which many programs run, does not.

        Args:
            user: The user as :func:`tunnel.linux.users.choose_user` takes it.

        Raises:
            ConfigError: There is no such user.
        """
        owner, path = choose_user(user), self.path
        assert path is not None
        if owner is None:
            return
        with suppress(OSError):  # the next node of this name replaces a socket that is left behind
            if user is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)
            others = (other for other in path.parent.glob("*.sock") if other != path)
            if path.parent == directories()[0] and not any(map(is_served, others)):
                os.chown(path.parent, owner.pw_uid, owner.pw_gid)

    def remove(self) -> None:
        """Removes the socket once, unless another node has replaced it."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        assert self.path is not None
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    # Connections.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CLIENTS:
            serve = _refuse_connection(reader, writer, self._refuse)
        else:
            connection = _Connection(reader, writer, answer=self._answer, refuse=self._refuse)
            serve = connection.serve(events=partial(self._send_events, reader, writer))
        task = asyncio.create_task(_until_disconnected(serve, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _close_connections(self) -> None:
        """Answers ``down``, and closes every connection."""
        if answering := [task for task in self._down_requests if task is not None]:
            await asyncio.wait(answering, timeout=_GRACE)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=_GRACE)

    async def _answer(self, request: _Request) -> dict[str, Any]:
        try:
            method = self._methods.get(request.call)
            if method is None:
                known = ", ".join([*self._methods, "events"])
                raise ConfigError(f"call {request.call!r} is not known (known: {known})")
            return self._reply(result=encode(await method(request.args)))
        except (TunnelError, TimeoutError) as error:
            return self._refuse(error)
        except Exception as error:
            # A bug of the node: packets continue to flow, and the client gets an answer.
            log.exception("%s: the call %s failed", self._tunnel.config.name, request.call)
            return self._refuse(TunnelError(f"{request.call} failed inside the node: {error!r}"))

    def _reply(self, **content: Any) -> dict[str, Any]:
        node = {"name": self._tunnel.config.name, "pid": os.getpid(), "netns": network_namespace()}
        return {"v": VERSION, "node": node, **content}

    def _refuse(self, error: Exception) -> dict[str, Any]:
        stage = {"stage": error.stage} if isinstance(error, NoAnswerError) else {}
        text = str(error) or "no answer"
        return self._reply(error=text, kind=type(error).__name__, **stage)

    async def _send_events(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: _Request
    ) -> None:
        """Sends a reply for each event, until either side closes the connection."""

        async def send() -> None:
            async for event in self._tunnel.events():
                await _send(writer, request.echo(self._reply(result=encode_event(event))))

        sending = asyncio.create_task(send())
        disconnecting = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((sending, disconnecting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            disconnecting.cancel()
            await asyncio.gather(sending, disconnecting, return_exceptions=True)

    async def _down(self, _: Mapping[str, Any]) -> Any:
        if self._stop_program is None:
            raise ConfigError(
                "this program does not allow its tunnel to be stopped (end the program itself)"
            )
        self._down_requests.add(asyncio.current_task())
        self._stop_program()
        await self._ended.wait()
        return {"name": self._tunnel.config.name}


@dataclass(frozen=True)
class _Request:
    call: str
    args: Mapping[str, Any]
    id: int | None

    @classmethod
    def parse(cls, message: object) -> _Request:
        """Raises CodecError."""
        if not isinstance(message, dict) or message.get("v") != VERSION:
            raise CodecError(
                f"this is not a request of version {VERSION} (compare tunnel --version)"
            )
        call, args, number = message.get("call"), message.get("args", {}), message.get("id")
        if not isinstance(call, str) or not isinstance(args, dict):
            raise CodecError("a request has a call, which is text, and args, which is a map")
        if number is not None and type(number) is not int:
            raise CodecError("the id of a request is a number")
        return cls(call, args, number)

    def echo(self, reply: dict[str, Any]) -> dict[str, Any]:
        return reply if self.id is None else {**reply, "id": self.id}


class _Connection:
    """One client: its requests with an id are answered side by side, the others in order."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answer: Callable[[_Request], Awaitable[dict[str, Any]]],
        refuse: Refuse,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._answer, self._refuse = answer, refuse
        self._slots = asyncio.Semaphore(MOST_REQUESTS)
        self._writing = asyncio.Lock()

    async def serve(self, *, events: Callable[[_Request], Awaitable[None]]) -> None:
        """Answers until the client has closed its side and every request is answered."""
        unpacker = msgpack.Unpacker(**_LIMITS)
        async with asyncio.TaskGroup() as group:
            while chunk := await self._reader.read(_CHUNK):
                try:
                    requests = _parse(unpacker, chunk)
                except CodecError as error:
                    await self._send(self._refuse(error))
                    return
                for request in requests:
                    if request.call == "events":
                        await events(request)
                        return
                    await self._slots.acquire()
                    if request.id is None:
                        await self._respond(request)
                    else:
                        group.create_task(self._respond(request))

    async def _respond(self, request: _Request) -> None:
        try:
            reply = await self._answer(request)
            await self._send(request.echo(reply))
            if request.call == "down" and "error" not in reply:
                self._writer.close()
        finally:
            self._slots.release()

    async def _send(self, reply: Mapping[str, Any]) -> None:
        async with self._writing:
            await _send(self._writer, reply)


async def _until_disconnected(serve: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    try:
        await serve
    except* OSError:
        pass  # the client has left
    finally:
        writer.close()


async def _refuse_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refuse: Refuse
) -> None:
    """Refuses a client beyond the limit, after its request: a client that is still writing when the
    connection closes does not read the reply."""
    async with asyncio.timeout(_GRACE):
        await reader.read(_CHUNK)
    full = TunnelError(f"{MOST_CLIENTS} others are connected (end one of them)")
    await _send(writer, refuse(full))


def _parse(unpacker: Any, chunk: bytes) -> list[_Request]:
    """
    Returns the requests that are complete with `chunk`.

    Raises:
        CodecError: It is not a request, or too long for one.
    """
    try:
        unpacker.feed(chunk)
        return [_Request.parse(message) for message in unpacker]
    except CodecError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"this is not a request: {error or type(error).__name__}") from error


async def _send(writer: asyncio.StreamWriter, reply: Mapping[str, Any]) -> None:
    """Sends one reply and waits until the client has read the ones before. Raises
    ConnectionError."""
    if writer.is_closing():  # uvloop would raise a RuntimeError
        raise ConnectionResetError
    writer.write(_pack(reply))
    await writer.drain()
    await asyncio.sleep(0)  # packets get their turn between two replies


def _pack(reply: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(reply)
    if len(packed) <= LARGEST_REPLY:
        return packed
    envelope = {key: reply[key] for key in ("v", "id", "node") if key in reply}
    text = f"the answer has {len(packed)} bytes, which is too long"
    return _pack({**envelope, "error": text, "kind": "TunnelError"})


# The file.


def _listen(path: Path) -> socket.socket:
    """Creates a control socket for its owner and group; replaces a dead one."""
    try:
        path.parent.mkdir(exist_ok=True)
        _remove_dead_socket(path)
        return _bind(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise TunnelError(
            f"cannot create control socket {path}: {reason} (choose another --control)"
        ) from error


def _remove_dead_socket(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise TunnelError(f"{path} exists and is not a socket (choose another --control)")
    if is_served(path):
        raise TunnelError(
            f"control socket {path} belongs to another node (choose another --name or --control)"
        )
    path.unlink()


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file gets the mode of the socket, so others may not connect at any moment.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(MOST_CLIENTS)
        path.chmod(0o660)
    except OSError:
        listener.close()
        raise
    return listener
