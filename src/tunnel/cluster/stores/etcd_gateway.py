"""
The way to an etcd: its v3 JSON gateway, which has been at this path since 3.4.

A question goes to one endpoint after another, from the one that answered last, until one answers
or the time is over. What comes back is believed to be an etcd's, but not to be sane: its size is
bounded, and what does not parse counts as no answer.

Source: etcd's api/etcdserverpb/rpc.proto and api/v3rpc/rpctypes/error.go.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from tunnel.errors import ConfigError, StoreRefusedError, StoreUnavailableError

T = TypeVar("T")

_MOST_BYTES = 16 << 20  # of one answer, or of one message of a stream
_PAUSE = 0.2  # seconds before all endpoints are asked again: an election takes about one
_IDLE = 15  # seconds after which the kernel looks whether a silent connection is still one

# Codes of gRPC, as far as they tell what to do.
INVALID, NOT_FOUND, DENIED, EXHAUSTED, PRECONDITION, RANGE = 3, 5, 7, 8, 9, 11
UNIMPLEMENTED, UNAUTHENTICATED = 12, 16
_FINAL = {INVALID, NOT_FOUND, DENIED, PRECONDITION, RANGE, UNIMPLEMENTED, UNAUTHENTICATED}

_NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What parsing raises when an answer is not what etcd would say."""


class Gateway:
    """
    All endpoints of an etcd, asked as if they were one.

    Args: Those of :class:`tunnel.cluster.stores.etcd.EtcdStore`.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        cafile: str,
        certfile: str,
        keyfile: str,
        username: str,
        password: str,
        timeout: float,
    ) -> None:
        if not endpoints:
            raise ConfigError("an etcd needs at least one endpoint")
        self._endpoints = [_url(endpoint) for endpoint in endpoints]
        secure = any(endpoint.startswith("https:") for endpoint in self._endpoints)
        self._tls = _tls(cafile, certfile, keyfile) if secure else False
        self._username, self._password = username, password
        self._timeout = timeout
        self._turn = 0
        self._token = ""
        self._log_in = asyncio.Lock()

    @property
    def address(self) -> str:
        """The endpoint that is asked first."""
        return self._endpoints[self._turn]

    def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},  # no bombs
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]) -> T:
        """
        What the first endpoint says that can answer.

        Raises:
            SaidNo: Every endpoint would say so.
        """
        answer, _ = await self.ask_counting(method, request, parse)
        return answer

    async def ask_counting(
        self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> tuple[T, bool]:
        """The same; and whether it was asked before, and the answer may just have been lost."""
        return await self._first(self._asking(method, request, parse))

    async def probe(
        self, endpoint: str, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> T:
        """
        What one endpoint says.

        Raises:
            Failed: It cannot answer.
        """
        return await self._at(endpoint, self._asking(method, request, parse))

    async def stream(
        self, method: str, request: Mapping[str, object], begin: Callable[[Any], T]
    ) -> tuple[Stream, T]:
        """A stream from the first endpoint that begins one, and what its first message says."""

        async def begun(endpoint: str) -> tuple[Stream, T]:
            # Without this a member that is cut off from the others would just be silent.
            headers = {"Grpc-Metadata-hasleader": "true"}
            stream = Stream(endpoint, await self._post(endpoint, method, request, headers=headers))
            try:
                return stream, parsed(begin, await stream.message())
            except BaseException:
                stream.close()
                raise

        stream, _ = await self._first(begun)
        return stream

    def skip(self, endpoint: str) -> None:
        """The next question goes to the one after this; or where it would go anyway."""
        if self.address == endpoint:
            self._turn = (self._turn + 1) % len(self._endpoints)

    def _asking(
        self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> Callable[[str], Awaitable[T]]:
        async def asked(endpoint: str) -> T:
            response = await self._post(endpoint, method, request)
            try:
                answer = await _body(response)
            finally:
                response.release()
            return parsed(lambda text: parse(json.loads(text)), answer)

        return asked

    async def _first(self, attempt: Callable[[str], Awaitable[T]]) -> tuple[T, bool]:
        """What comes of an attempt at the first endpoint where it does not fail, and whether it
        failed at others before."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        failed: dict[str, Failed] = {}
        while clock() < deadline:
            for endpoint in self._endpoints[self._turn :] + self._endpoints[: self._turn]:
                try:
                    result = await self._at(endpoint, attempt, until=deadline)
                except Failed as failure:
                    failed[endpoint] = failure
                else:
                    self._turn = self._endpoints.index(endpoint)
                    return result, bool(failed)
            if not any(failure.passing for failure in failed.values()):
                break
            await asyncio.sleep(_PAUSE)
        kind = (
            StoreRefusedError
            if all(one.refused for one in failed.values())
            else StoreUnavailableError
        )
        raise kind("etcd: " + "; ".join(f"{endpoint}: {why}" for endpoint, why in failed.items()))

    async def _at(
        self, endpoint: str, attempt: Callable[[str], Awaitable[T]], *, until: float = math.inf
    ) -> T:
        """What comes of an attempt at one endpoint, within its share of a call's time."""
        share = self._timeout / len(self._endpoints)
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + share, until)):
                return await self._logged_in(endpoint, attempt)
        except TimeoutError as error:
            raise Failed(f"no answer within {share:.1f} s") from error
        except (OSError, aiohttp.ClientError) as error:
            raise _in_words(error) from error

    async def _logged_in(self, endpoint: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        """An attempt under our name; once more if the token has expired."""
        used = self._token
        if used or not self._username:
            try:
                return await attempt(endpoint)
            except SaidNo as no:
                if not (no.expired and self._username):
                    raise
        async with self._log_in:
            if self._token == used:
                self._token = await self._new_token(endpoint)
        return await attempt(endpoint)

    async def _new_token(self, endpoint: str) -> str:
        self._token = ""
        request = {"name": self._username, "password": self._password}
        try:
            log_in = self._asking("auth/authenticate", request, lambda answer: str(answer["token"]))
            return await log_in(endpoint)
        except SaidNo as no:
            if no.code == PRECONDITION:  # it asks nobody who he is
                return ""
            raise

    async def _post(
        self,
        endpoint: str,
        method: str,
        request: Mapping[str, object],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """A response that is no error; who called closes it."""
        token = {"Authorization": self._token} if self._token else {}
        response = await self._session.post(
            f"{endpoint}/v3/{method}",
            json=request,
            headers={**token, **(headers or {})},
            allow_redirects=False,
        )
        if response.status == 200:
            return response
        try:
            raise _trouble(response.status, await _body(response))
        finally:
            response.release()


class Failed(Exception):
    """
    No answer from one endpoint: another may have one.

    Attributes:
        passing: The same endpoint may have one, too, in a moment.
        refused: It is not the one that we are looking for, or it does not want us.
    """

    def __init__(self, reason: str, *, passing: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.passing, self.refused = passing, refused


class SaidNo(StoreRefusedError):
    """etcd's answer is an error that every endpoint would give."""

    def __init__(self, code: int, message: str) -> None:
        # Its gateway takes nobody's name from a certificate.
        hint = " (it wants a user and a password)" if "user name is empty" in message else ""
        super().__init__(f"etcd: {message.removeprefix('etcdserver: ')}{hint}")
        self.code = code
        self.expired = code == UNAUTHENTICATED or "auth store is old" in message


class Stream:
    """Messages of a stream from one endpoint, as they come; nothing is lost when waiting for one
    is cancelled."""

    def __init__(self, endpoint: str, response: aiohttp.ClientResponse) -> None:
        self.endpoint = endpoint
        self._response = response
        self._buffer = bytearray()
        _keep_alive(response)

    def close(self) -> None:
        self._response.close()

    async def message(self) -> Any:
        """
        Raises:
            Failed: The stream has ended.
        """
        message = parsed(json.loads, await self._line())
        result = message.get("result") if isinstance(message, dict) else None
        if not isinstance(result, dict):
            raise _trouble(200, json.dumps(message).encode())
        return result

    async def _line(self) -> bytes:
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > _MOST_BYTES:
                raise Failed(f"sent more than {_MOST_BYTES >> 20} MiB at once")
            try:
                chunk = await self._response.content.readany()
            except (OSError, aiohttp.ClientError) as error:
                raise _in_words(error) from error
            if not chunk:
                raise Failed("ended the watch", passing=True)
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Has the kernel notice a connection that somebody in between has forgotten."""
    connection = response.connection
    if connection and connection.transport:
        sock = connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_BYTES:
            response.close()
            raise Failed(f"sent more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)


def parsed(parse: Callable[[Any], T], answer: Any) -> T:
    try:
        return parse(answer)
    except _NONSENSE as error:
        raise Failed("sent something that is no answer of an etcd") from error


def _trouble(status: int, body: bytes) -> Exception:
    """
    What an error means.

    It is ``{"error": text, "code": number}``, in a stream ``{"error": {"grpc_code": number,
    "message": text}}``; since 3.6 ``message`` takes the place of the one, ``code`` of the other.
    """
    try:
        answer = json.loads(body)
        error = answer.get("error")
        inner: dict[str, Any] = error if isinstance(error, dict) else answer
        code = int(inner.get("grpc_code") or inner.get("code") or 0)
        message = str(inner.get("message") or answer["error"])
    except _NONSENSE:
        if status == 404:
            return Failed("has no JSON gateway (it is for etcd 3.4 or later)", refused=True)
        return Failed(f"answered HTTP {status}, which is no answer of an etcd")
    if code in _FINAL or (code == EXHAUSTED and "space exceeded" in message):
        return SaidNo(code, message)
    return Failed(message, passing=True)


def _in_words(error: OSError | aiohttp.ClientError) -> Failed:
    """Why there was no answer."""
    # aiohttp's own errors are ssl's as well, but say less than those that they come from.
    cause: BaseException | None = error
    while isinstance(cause, aiohttp.ClientError) or not isinstance(cause, ssl.SSLError | None):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLError):
        return _tls_in_words(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionResetError):
            return Failed("closed the connection at once (does it speak TLS?)")
        if isinstance(error.os_error, ConnectionRefusedError):
            return Failed("connection refused (does an etcd listen there?)")
        return Failed(_why(error.os_error))
    # A connection from before its restart, most often.
    return Failed("closed the connection", passing=True)


def _tls_in_words(error: ssl.SSLError) -> Failed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed(f"certificate not trusted: {error.verify_message}", refused=True)
    reason = _why(error)
    if "wrong version" in reason:
        return Failed("does not speak TLS (http:// instead of https://)", refused=True)
    if "alert" in reason:
        return Failed(f"does not accept our certificate: {reason}", refused=True)
    return Failed(f"TLS: {reason}", refused=True)


def _url(endpoint: str) -> str:
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    with suppress(ValueError):
        parts = urlsplit(url)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and bare:
            return url.rstrip("/")
    raise ConfigError(f"{endpoint!r} is no endpoint of an etcd (as in https://192.0.2.7:2379)")


def _tls(cafile: str, certfile: str, keyfile: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cafile or None)
    except OSError as error:
        raise ConfigError(f"cannot use CA file {cafile}: {_why(error)}") from error
    if bool(certfile) != bool(keyfile):
        raise ConfigError("a client certificate and its key go together, one of them is missing")
    if certfile:
        try:
            # A key with a password would be asked for on the terminal.
            context.load_cert_chain(certfile, keyfile, password="")
        except OSError as error:
            raise ConfigError(
                f"cannot use client certificate {certfile} with key {keyfile}: {_why(error)}"
            ) from error
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if error.errno and error.errno > 0:  # names that cannot be resolved have numbers below
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()
