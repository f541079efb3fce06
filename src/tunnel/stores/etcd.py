"""
etcd as a store: its v3 JSON gateway, which etcd has had at this path since 3.4.

A call asks one endpoint after another, from the one that answered last, until one does or the
time is over. Every write is a transaction guarded by a revision, so a write whose answer was lost
may be sent again, even where the first is still on its way: only one of them can find the
revision that it expects.

What comes back is believed to be an etcd's, but not to be sane: its size is bounded, and what
does not parse counts as no answer.

Source: etcd's api/etcdserverpb/rpc.proto and api/v3rpc/rpctypes/error.go.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from tunnel.errors import (
    ConfigError,
    Conflict,
    Gap,
    LeaseGone,
    StoreAway,
    StoreRefused,
)
from tunnel.store import Batch, Change, Entry, Snapshot

T = TypeVar("T")

_PAGE = 500  # keys of one answer to a read
_MOST_KEYS = 100_000  # of one read
_MOST_BYTES = 16 << 20  # of one answer, and of the changes of one revision
_PAUSE = 0.2  # seconds before all endpoints are asked again: an election takes about one
_SILENCE = 15.0  # seconds after which a silent watch is doubted
_SHORTEST = 1.0  # seconds that a watch has to last, or opening it again would go round and round

# Codes of gRPC.
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _PRECONDITION, _RANGE = 3, 5, 7, 8, 9, 11
_UNIMPLEMENTED, _UNAUTHENTICATED = 12, 16
_FINAL = {_INVALID, _NOT_FOUND, _DENIED, _PRECONDITION, _RANGE, _UNIMPLEMENTED, _UNAUTHENTICATED}

_NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What parsing raises when an answer is not what etcd would say."""


class EtcdStore:
    """
    The keys of an etcd, as a :class:`tunnel.store.Store`.

    Args:
        endpoints: URLs, ``http`` or ``https``; without a scheme it is ``http``.
        cafile: Whom to trust, instead of the system's authorities; PEM.
        certfile, keyfile: Who we are, for an etcd that wants to know by certificate; PEM.
        username, password: For an etcd that wants to know by those.
        timeout: Seconds that a call takes at the most; each endpoint gets its share of them.

    Raises:
        ConfigError: An endpoint that is no URL, or a file that cannot be used.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        cafile: str = "",
        certfile: str = "",
        keyfile: str = "",
        username: str = "",
        password: str = "",
        timeout: float = 10.0,
    ) -> None:
        if not endpoints:
            raise ConfigError("an etcd needs at least one endpoint")
        self._endpoints = [_url(endpoint) for endpoint in endpoints]
        self._tls = _tls(cafile, certfile, keyfile)
        self._username, self._password = username, password
        self._timeout = timeout
        self._turn = 0
        self._token = ""
        self._log_in = asyncio.Lock()
        self._cluster = ""  # id of the cluster that was read last

    @property
    def address(self) -> str:
        return self._endpoints[self._turn]

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},  # no bombs
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        await self._session.close()

    async def read(self, prefix: str) -> Snapshot:
        while True:
            try:
                return await self._read_pages(prefix)
            except _SaidNo as no:
                # The revision of the first page was compacted before the last was read.
                if no.code != _RANGE:
                    raise

    async def _read_pages(self, prefix: str) -> Snapshot:
        """All of a prefix at the revision of its first page."""
        request = {**_keys(prefix), "limit": _PAGE}
        entries: dict[str, Entry] = {}
        revision, more = 0, True
        while more:
            request["revision"] = revision
            (self._cluster, first), page, more = await self._ask("kv/range", request, _page)
            revision = revision or first
            entries |= {_key(key): entry for key, entry in page}
            if len(entries) > _MOST_KEYS:
                raise StoreRefused(f"etcd: more than {_MOST_KEYS:,} keys under {prefix}")
            if more:
                request["key"] = _base64(page[-1][0] + b"\0")
        return Snapshot(revision, entries)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        put = {"key": _base64(key.encode()), "value": _base64(value), "lease": lease or 0}
        try:
            revision, there = await self._guarded(key, expect, {"request_put": put})
        except _SaidNo as no:
            if no.code == _NOT_FOUND and lease is not None:
                raise LeaseGone(lease) from None
            raise
        if revision:
            return revision
        if there and (there.value, there.lease) == (value, lease):
            return there.revision
        raise Conflict(key, expect=expect, revision=there.revision if there else 0)

    async def delete(self, key: str, *, expect: int) -> None:
        delete = {"key": _base64(key.encode())}
        revision, there = await self._guarded(key, expect, {"request_delete_range": delete})
        if not revision and there:
            raise Conflict(key, expect=expect, revision=there.revision)

    async def _guarded(
        self, key: str, expect: int, operation: Mapping[str, object]
    ) -> tuple[int, Entry | None]:
        """The revision of what was done; or 0, and what was there instead."""
        one = {"key": _base64(key.encode())}
        # A key that is not there compares as revision 0.
        guard = {**one, "target": "MOD", "result": "EQUAL", "mod_revision": expect}
        request = {"compare": [guard], "success": [operation], "failure": [{"request_range": one}]}
        return await self._ask("kv/txn", request, _outcome)

    async def grant(self, ttl: int) -> int:
        return await self._ask("lease/grant", {"TTL": ttl}, lambda answer: int(answer["ID"]))

    async def keep_alive(self, lease: int) -> float:
        return await self._left("lease/keepalive", lease)

    async def time_left(self, lease: int) -> float:
        return await self._left("lease/timetolive", lease)

    async def _left(self, method: str, lease: int) -> float:
        def seconds(answer: Any) -> float:
            return float(answer.get("result", answer).get("TTL", 0))

        ttl = await self._ask(method, {"ID": lease}, seconds)
        if ttl <= 0:
            raise LeaseGone(lease)
        return ttl

    async def revoke(self, lease: int) -> None:
        try:
            await self._ask("lease/revoke", {"ID": lease}, lambda answer: None)
        except _SaidNo as no:
            if no.code != _NOT_FOUND:
                raise

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        clock = asyncio.get_running_loop().time
        while True:
            stream = await self._open_watch(prefix, after=after)
            opened = clock()
            try:
                while True:
                    batch = await self._next(stream, prefix)
                    after = batch.revision
                    yield batch
            except _Failed as failed:
                self._skip(stream.endpoint)
                if clock() < opened + _SHORTEST:
                    raise StoreAway(f"etcd: {stream.endpoint}: {failed}") from failed
            finally:
                stream.close()

    async def _open_watch(self, prefix: str, *, after: int) -> _Stream:
        create = {**_keys(prefix), "start_revision": after + 1, "fragment": True}

        async def opened(endpoint: str) -> _Stream:
            # Without the header a member that is cut off from the others would just be silent.
            headers = {"Grpc-Metadata-hasleader": "true"}
            response = await self._post(
                endpoint, "watch", {"create_request": create}, headers=headers
            )
            return await _Stream.begin(endpoint, response)

        stream = await self._first(opened)
        # A store that was restored from a backup, or is another one: the watch would be silent
        # until it has caught up with us, and what it lost would stay for ever. A member that lags
        # looks the same for a moment; then reading again is a small price.
        if stream.revision < after or stream.cluster != (self._cluster or stream.cluster):
            stream.close()
            raise Gap(f"etcd is at revision {stream.revision}, expected {after} (was it restored?)")
        return stream

    async def _next(self, stream: _Stream, prefix: str) -> Batch:
        """The next changes, however long that takes; while there are none, the member is asked
        from time to time for what it can answer only if most of the others answer it."""
        while True:
            try:
                async with asyncio.timeout(_SILENCE):
                    return await stream.batch()
            except TimeoutError:
                request = {**_keys(prefix), "count_only": True}
                await self._at(stream.endpoint, self._asking("kv/range", request, _header))

    async def _ask(
        self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> T:
        """
        What the first endpoint says that can answer.

        Raises:
            _SaidNo: Every endpoint would say so.
        """
        return await self._first(self._asking(method, request, parse))

    def _asking(
        self, method: str, request: Mapping[str, object], parse: Callable[[Any], T]
    ) -> Callable[[str], Awaitable[T]]:
        async def asked(endpoint: str) -> T:
            response = await self._post(endpoint, method, request)
            try:
                answer = await _body(response)
            finally:
                response.release()
            return _parsed(lambda text: parse(json.loads(text)), answer)

        return asked

    async def _first(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """What comes of an attempt at the first endpoint where it does not fail."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout
        failed: dict[str, _Failed] = {}
        while clock() < deadline:
            for endpoint in self._endpoints[self._turn :] + self._endpoints[: self._turn]:
                try:
                    return await self._at(endpoint, attempt)
                except _Failed as failure:
                    failed[endpoint] = failure
                    self._skip(endpoint)
            if not any(failure.passing for failure in failed.values()):
                break
            await asyncio.sleep(_PAUSE)
        kind = StoreRefused if all(one.refused for one in failed.values()) else StoreAway
        raise kind("etcd: " + "; ".join(f"{endpoint}: {why}" for endpoint, why in failed.items()))

    async def _at(self, endpoint: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        """What comes of an attempt at one endpoint, within its share of the time."""
        share = self._timeout / len(self._endpoints)
        try:
            async with asyncio.timeout(share):
                return await self._logged_in(endpoint, attempt)
        except TimeoutError as error:
            raise _Failed(f"no answer within {share:.1f} s") from error
        except (OSError, aiohttp.ClientError) as error:
            raise _in_words(error) from error

    def _skip(self, endpoint: str) -> None:
        """The next call begins with the one after this; others may have moved on already."""
        if self.address == endpoint:
            self._turn = (self._turn + 1) % len(self._endpoints)

    async def _logged_in(self, endpoint: str, attempt: Callable[[str], Awaitable[T]]) -> T:
        """An attempt under our name; once more if the token has expired."""
        used = self._token
        if used or not self._username:
            try:
                return await attempt(endpoint)
            except _SaidNo as no:
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
            return await self._asking(
                "auth/authenticate", request, lambda answer: str(answer["token"])
            )(endpoint)
        except _SaidNo as no:
            if no.code == _PRECONDITION:  # it asks nobody who he is
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


class _Failed(Exception):
    """
    No answer from one endpoint: another may have one.

    Attributes:
        passing: The same endpoint may have one, too, in a moment.
        refused: It is not the one that we are looking for, or it does not want us.
    """

    def __init__(self, reason: str, *, passing: bool = False, refused: bool = False) -> None:
        super().__init__(reason)
        self.passing, self.refused = passing, refused


class _SaidNo(StoreRefused):
    """etcd's answer is an error that every endpoint would give."""

    def __init__(self, code: int, message: str) -> None:
        # Its gateway takes nobody's name from a certificate.
        hint = " (it wants a user and a password)" if "user name is empty" in message else ""
        super().__init__(f"etcd: {message.removeprefix('etcdserver: ')}{hint}")
        self.code = code
        self.expired = code == _UNAUTHENTICATED or "auth store is old" in message


class _Stream:
    """
    A watch at one endpoint.

    Attributes:
        cluster, revision: Of the store, when the watch began.
    """

    def __init__(self, endpoint: str, response: aiohttp.ClientResponse) -> None:
        self.endpoint = endpoint
        self.cluster, self.revision = "", 0
        self._response = response
        self._buffer = bytearray()
        self._pieces: list[tuple[int, Change]] = []

    @classmethod
    async def begin(cls, endpoint: str, response: aiohttp.ClientResponse) -> _Stream:
        """Reads the first message: where the store is, or that we may not watch."""
        stream = cls(endpoint, response)
        try:
            _keep_alive(response)
            result = await stream._message()
            if result.get("canceled"):
                # 3.4 says so of an expired token as well; a new one is worth the attempt.
                raise _SaidNo(_UNAUTHENTICATED, str(result.get("cancel_reason")))
            stream.cluster, stream.revision = _parsed(_header, result)
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        self._response.close()

    async def batch(self) -> Batch:
        """
        The next changes; cancelled and called again, nothing is lost.

        Raises:
            Gap: They are no longer there.
            _Failed: The watch has ended.
        """
        while True:
            result = await self._message()
            if result.get("canceled"):
                raise _parsed(_canceled, result)
            self._pieces += _parsed(_changes, result)
            if self._pieces and not result.get("fragment"):
                changes, self._pieces = self._pieces, []
                return Batch(changes[-1][0], tuple(change for _, change in changes))

    async def _message(self) -> Any:
        message = _parsed(json.loads, await self._line())
        result = message.get("result") if isinstance(message, dict) else None
        if not isinstance(result, dict):
            raise _trouble(200, json.dumps(message).encode())
        return result

    async def _line(self) -> bytes:
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > _MOST_BYTES:
                raise _Failed(f"sent more than {_MOST_BYTES >> 20} MiB at once")
            try:
                chunk = await self._response.content.readany()
            except (OSError, aiohttp.ClientError) as error:
                raise _in_words(error) from error
            if not chunk:
                raise _Failed("ended the watch", passing=True)
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
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_BYTES:
            response.close()
            raise _Failed(f"sent more than {_MOST_BYTES >> 20} MiB")
    return bytes(body)


def _parsed(parse: Callable[[Any], T], answer: Any) -> T:
    try:
        return parse(answer)
    except _NONSENSE as error:
        raise _Failed("sent something that is no answer of an etcd") from error


def _header(answer: Any) -> tuple[str, int]:
    """Id of the cluster and revision of the store."""
    header = answer["header"]
    return str(header["cluster_id"]), int(header["revision"])


def _page(answer: Any) -> tuple[tuple[str, int], list[tuple[bytes, Entry]], bool]:
    """Cluster and revision, keys in their order, and whether there are more of them."""
    page = [_entry(one) for one in answer.get("kvs", ())]
    return _header(answer), page, bool(page and answer.get("more"))


def _outcome(answer: Any) -> tuple[int, Entry | None]:
    if answer.get("succeeded"):
        return int(answer["header"]["revision"]), None
    found = answer["responses"][0]["response_range"].get("kvs", ())
    return 0, _entry(found[0])[1] if found else None


def _canceled(result: Any) -> Exception:
    compacted = int(result.get("compact_revision", 0))
    if compacted:
        return Gap(f"etcd has forgotten what was before revision {compacted}")
    return _Failed(str(result.get("cancel_reason", "watch canceled")))


def _changes(result: Any) -> list[tuple[int, Change]]:
    """What has changed, each with its revision."""
    changes = []
    for event in result.get("events", ()):
        key, entry = _entry(event["kv"])
        deleted = event.get("type") == "DELETE"
        changes.append((entry.revision, Change(_key(key), None if deleted else entry)))
    return changes


def _entry(found: Any) -> tuple[bytes, Entry]:
    """A key and what is under it; fields that are zero or empty are left out by etcd."""
    entry = Entry(
        b64decode(found.get("value", "")),
        revision=int(found["mod_revision"]),
        lease=int(found.get("lease", 0)) or None,
        created=int(found.get("create_revision", 0)),
    )
    return b64decode(found["key"]), entry


def _key(key: bytes) -> str:
    """Ours are text; of others it is enough that they can be shown."""
    return key.decode(errors="backslashreplace")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _keys(prefix: str) -> dict[str, object]:
    """All keys that begin with a prefix, until before the first that does not."""
    start = prefix.encode()
    end = start[:-1] + bytes([start[-1] + 1])  # no byte of UTF-8 is 255
    return {"key": _base64(start), "range_end": _base64(end)}


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
        message = str(inner.get("message") or error)
    except _NONSENSE:
        if status == 404:
            return _Failed("has no JSON gateway (it is for etcd 3.4 or later)", refused=True)
        return _Failed(f"answered HTTP {status}, which is no answer of an etcd")
    if code in _FINAL or (code == _EXHAUSTED and "space exceeded" in message):
        return _SaidNo(code, message)
    return _Failed(message, passing=True)


def _in_words(error: OSError | aiohttp.ClientError) -> _Failed:
    """Why there was no answer."""
    # aiohttp's own errors are ssl's as well, but say less than those that they come from.
    cause: BaseException | None = error
    while isinstance(cause, aiohttp.ClientError) or not isinstance(cause, ssl.SSLError | None):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLError):
        return _tls_in_words(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionResetError):
            return _Failed("closed the connection at once (does it speak TLS?)")
        return _Failed(_why(error.os_error))
    # A connection from before its restart, most often.
    return _Failed("closed the connection", passing=True)


def _tls_in_words(error: ssl.SSLError) -> _Failed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Failed(f"certificate not trusted: {error.verify_message}", refused=True)
    reason = _why(error)
    if "wrong version" in reason:
        return _Failed("does not speak TLS (http:// instead of https://)", refused=True)
    if "alert" in reason:
        return _Failed(f"does not accept our certificate: {reason}", refused=True)
    return _Failed(f"TLS: {reason}", refused=True)


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
