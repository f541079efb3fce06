"""
An HTTP client for etcd's v3 JSON gateway, which has been at this path since 3.4.

A request goes to one endpoint after another, beginning with the one that answered last, until one
answers or the time is over. Answers are not trusted to be well-formed: their size is bounded, and
one that does not parse counts as none.

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
_PAUSE = 0.2  # seconds before all endpoints are tried again: an election takes about one
_IDLE = 15  # seconds after which the kernel probes a silent connection

# The codes of gRPC that decide what to do.
INVALID, NOT_FOUND, DENIED, EXHAUSTED, PRECONDITION, RANGE = 3, 5, 7, 8, 9, 11
UNIMPLEMENTED, UNAUTHENTICATED = 12, 16
_FINAL = {INVALID, NOT_FOUND, DENIED, PRECONDITION, RANGE, UNIMPLEMENTED, UNAUTHENTICATED}

_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What parsing raises if an answer is malformed."""


class Gateway:
    """
    All endpoints of an etcd, used as one.

    Args: As for :class:`tunnel.cluster.stores.etcd.EtcdStore`.
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
            raise ConfigError("etcd needs at least one endpoint")
        self._endpoints = [_url(endpoint) for endpoint in endpoints]
        secure = any(endpoint.startswith("https:") for endpoint in self._endpoints)
        self._tls = _tls(cafile, certfile, keyfile) if secure else False
        self._username, self._password = username, password
        self._timeout = timeout
        self._current = 0
        self._token = ""
        self._log_in = asyncio.Lock()

    @property
    def address(self) -> str:
        """The endpoint that gets the next request first."""
        return self._endpoints[self._current]

    def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},  # no decompression bombs
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]) -> T:
        """
        The answer of the first endpoint that has one.

        Raises:
            RefusedRequestError: etcd refused the request, as every endpoint would.
        """
        answer, _ = await self.ask_with_retries(method, request, parse)
        return answer

    async def ask_with_retries(
        self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> tuple[T, bool]:
        """The same; and whether an earlier attempt may have succeeded, its answer lost."""
        return await self._try_endpoints(self._requester(method, request, parse))

    async def probe(
        self, endpoint: str, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> T:
        """
        The answer of one endpoint.

        Raises:
            EndpointError: There is none.
        """
        return await self._at(endpoint, self._requester(method, request, parse))

    async def stream(
        self, method: str, request: Mapping[str, object], begin: Callable[[Any], T]
    ) -> tuple[Stream, T]:
        """A stream from the first endpoint that opens one, and its first message, parsed."""

        async def begun(endpoint: str) -> tuple[Stream, T]:
            # With this a member without a quorum ends the stream instead of being silent.
            headers = {"Grpc-Metadata-hasleader": "true"}
            stream = Stream(endpoint, await self._post(endpoint, method, request, headers=headers))
            try:
                return stream, parsed(begin, await stream.message())
            except BaseException:
                stream.close()
                raise

        stream, _ = await self._try_endpoints(begun)
        return stream

    def skip(self, endpoint: str) -> None:
        """Makes the next request begin with another endpoint than this."""
        if self.address == endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    def _requester(
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

    async def _try_endpoints(self, attempt: Callable[[str], Awaitable[T]]) -> tuple[T, bool]:
        """The result of the first attempt that succeeds, one endpoint after another, and whether
        others failed before."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        failed: dict[str, EndpointError] = {}
        while clock() < deadline:
            for endpoint in self._endpoints[self._current :] + self._endpoints[: self._current]:
                try:
                    result = await self._at(endpoint, attempt, until=deadline)
                except EndpointError as failure:
                    failed[endpoint] = failure
                else:
                    self._current = self._endpoints.index(endpoint)
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
        """The result of an attempt at one endpoint, within its share of the time."""
        share = self._timeout / len(self._endpoints)
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + share, until)):
                return await self._with_token(endpoint, attempt)
        except TimeoutError as error:
            raise EndpointError(f"no answer within {share:.1f} s") from error
        except (OSError, aiohttp.ClientError) as error:
            raise _describe_error(error) from error

    async def _with_token(self, endpoint: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        """The result of an attempt with a token; it is repeated once if the token has expired."""
        used = self._token
        if used or not self._username:
            try:
                return await attempt(endpoint)
            except RefusedRequestError as error:
                if not (error.expired and self._username):
                    raise
        async with self._log_in:
            if self._token == used:
                self._token = await self._new_token(endpoint)
        return await attempt(endpoint)

    async def _new_token(self, endpoint: str) -> str:
        self._token = ""
        request = {"name": self._username, "password": self._password}
        try:
            log_in = self._requester(
                "auth/authenticate", request, lambda answer: str(answer["token"])
            )
            return await log_in(endpoint)
        except RefusedRequestError as error:
            if error.code == PRECONDITION:  # authentication is off
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
        """A response with status 200, which the caller closes. Raises what an error means."""
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
            raise _parse_error(response.status, await _body(response))
        finally:
            response.release()


class EndpointError(Exception):
    """
    One endpoint did not answer; another may.

    Attributes:
        passing: The same endpoint may answer in a moment.
        refused: The endpoint is not the right one, or refuses this client.
    """

    def __init__(self, reason: str, *, passing: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.passing, self.refused = passing, refused


class RefusedRequestError(StoreRefusedError):
    """etcd answered with an error that every endpoint would give."""

    def __init__(self, code: int, message: str) -> None:
        # The gateway does not take the user name from the client certificate.
        hint = " (give a user and a password)" if "user name is empty" in message else ""
        super().__init__(f"etcd: {message.removeprefix('etcdserver: ')}{hint}")
        self.code = code
        self.expired = code == UNAUTHENTICATED or "auth store is old" in message


class Stream:
    """The messages of a stream from one endpoint. Cancelling the wait for one loses nothing."""

    def __init__(self, endpoint: str, response: aiohttp.ClientResponse) -> None:
        self.endpoint = endpoint
        self._response = response
        self._buffer = bytearray()
        _enable_keepalive(response)

    def close(self) -> None:
        self._response.close()

    async def message(self) -> Any:
        """
        The next message.

        Raises:
            EndpointError: The stream has ended.
        """
        message = parsed(json.loads, await self._line())
        result = message.get("result") if isinstance(message, dict) else None
        if not isinstance(result, dict):
            raise _parse_error(200, json.dumps(message).encode())
        return result

    async def _line(self) -> bytes:
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > _MOST_BYTES:
                raise EndpointError(f"sent more than {_MOST_BYTES >> 20} MiB at once")
            try:
                chunk = await self._response.content.readany()
            except (OSError, aiohttp.ClientError) as error:
                raise _describe_error(error) from error
            if not chunk:
                raise EndpointError("ended the watch", passing=True)
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _enable_keepalive(response: aiohttp.ClientResponse) -> None:
    """Makes the kernel probe a silent connection, which a firewall may have dropped."""
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
            raise EndpointError(f"sent more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)


def parsed(parse: Callable[[Any], T], answer: Any) -> T:
    try:
        return parse(answer)
    except _MALFORMED as error:
        raise EndpointError("sent something that is not an answer of etcd") from error


def _parse_error(status: int, body: bytes) -> Exception:
    """
    The exception for an error of etcd.

    The error is ``{"error": text, "code": number}``, and in a stream ``{"error": {"grpc_code":
    number, "message": text}}``; since 3.6 ``message`` replaces ``error``, and ``code`` replaces
    ``grpc_code``.
    """
    try:
        answer = json.loads(body)
        error = answer.get("error")
        inner: dict[str, Any] = error if isinstance(error, dict) else answer
        code = int(inner.get("grpc_code") or inner.get("code") or 0)
        message = str(inner.get("message") or answer["error"])
    except _MALFORMED:
        if status == 404:
            return EndpointError("has no JSON gateway (etcd 3.4 or later has one)", refused=True)
        return EndpointError(f"answered HTTP {status}, which is not an answer of etcd")
    if code in _FINAL or (code == EXHAUSTED and "space exceeded" in message):
        return RefusedRequestError(code, message)
    return EndpointError(message, passing=True)


def _describe_error(error: OSError | aiohttp.ClientError) -> EndpointError:
    """The failure for an exception of the HTTP client."""
    # aiohttp's errors derive from ssl's, but say less than their cause.
    cause: BaseException | None = error
    while isinstance(cause, aiohttp.ClientError) or not isinstance(cause, ssl.SSLError | None):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLError):
        return _describe_tls_error(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionResetError):
            return EndpointError("closed the connection at once (does it speak TLS?)")
        if isinstance(error.os_error, ConnectionRefusedError):
            return EndpointError("connection refused (does an etcd listen there?)")
        return EndpointError(_why(error.os_error))
    # Most often a connection from before a restart of etcd.
    return EndpointError("closed the connection", passing=True)


def _describe_tls_error(error: ssl.SSLError) -> EndpointError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return EndpointError(f"certificate not trusted: {error.verify_message}", refused=True)
    reason = _why(error)
    if "wrong version" in reason:
        return EndpointError("does not speak TLS (http:// instead of https://)", refused=True)
    if "alert" in reason:
        return EndpointError(f"does not accept the client certificate: {reason}", refused=True)
    return EndpointError(f"TLS: {reason}", refused=True)


def _url(endpoint: str) -> str:
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    with suppress(ValueError):
        parts = urlsplit(url)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and bare:
            return url.rstrip("/")
    raise ConfigError(f"{endpoint!r} is not an endpoint of etcd (as in https://192.0.2.7:2379)")


def _tls(cafile: str, certfile: str, keyfile: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cafile or None)
    except OSError as error:
        raise ConfigError(f"cannot use CA file {cafile}: {_why(error)}") from error
    if bool(certfile) != bool(keyfile):
        raise ConfigError("a client certificate needs its key, and a key its certificate")
    if certfile:
        try:
            # Without a password openssl would ask for one on the terminal.
            context.load_cert_chain(certfile, keyfile, password="")
        except OSError as error:
            raise ConfigError(
                f"cannot use client certificate {certfile} with key {keyfile}: {_why(error)}"
            ) from error
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if error.errno and error.errno > 0:  # resolver errors are negative
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()
