"""
etcd as a store, over the HTTP client in :mod:`tunnel.cluster.stores.etcd_gateway`.

Every write is a transaction guarded by a revision. So a write whose answer was lost can be
repeated, even while the first is on its way: only one of the two finds the revision that it
expects. If it is not clear whether one did, the call raises StoreUnavailableError.
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot
from tunnel.cluster.stores.etcd_gateway import (
    NOT_FOUND,
    PRECONDITION,
    RANGE,
    UNAUTHENTICATED,
    EndpointError,
    Gateway,
    RefusedRequestError,
    Stream,
    parsed,
)
from tunnel.errors import (
    ConflictError,
    LeaseExpiredError,
    StoreRefusedError,
    StoreUnavailableError,
    WatchGapError,
)

_PAGE = 500  # keys of one answer to a read
_MOST_KEYS = 100_000  # of one read
_SILENCE = 15.0  # seconds without a message after which a watch is checked
_SHORTEST = 1.0  # seconds that a watch has to last to be opened again at once


class EtcdStore:
    """
    The keys of an etcd, as a :class:`tunnel.cluster.stores.base.Store`.

    Args:
        endpoints: URLs, ``http`` or ``https``; without a scheme it is ``http``.
        cafile: PEM file with the trusted CA certificates, instead of the system's.
        certfile, keyfile: PEM files with the client certificate and its key, if etcd asks for one.
        username, password: If etcd asks for them.
        timeout: Seconds that a call takes at most; each endpoint gets an equal share of them.

    Raises:
        ConfigError: An endpoint is not a URL, or a file cannot be used.
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
        self._gateway = Gateway(
            endpoints,
            cafile=cafile,
            certfile=certfile,
            keyfile=keyfile,
            username=username,
            password=password,
            timeout=timeout,
        )
        self._cluster = ""  # id of the etcd cluster that was read last

    @property
    def address(self) -> str:
        return self._gateway.address

    async def __aenter__(self) -> Self:
        self._gateway.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        await self._gateway.close()

    async def read(self, prefix: str) -> Snapshot:
        while True:
            try:
                return await self._read_pages(prefix)
            except RefusedRequestError as error:
                # The revision of the first page was compacted before the last was read.
                if error.code != RANGE:
                    raise

    async def _read_pages(self, prefix: str) -> Snapshot:
        """All keys under a prefix at the revision of the first page."""
        request = {**_keys(prefix), "limit": _PAGE}
        entries: dict[str, Entry] = {}
        revision, count, more = 0, 0, True
        while more:
            request["revision"] = revision
            (self._cluster, first), page, more = await self._gateway.ask("kv/range", request, _page)
            revision = revision or first
            entries |= {_key(key): entry for key, entry in page}
            count += len(page)
            if count > _MOST_KEYS:
                raise StoreRefusedError(f"etcd: more than {_MOST_KEYS:,} keys under {prefix}")
            if more:
                request["key"] = _base64(page[-1][0] + b"\0")
        return Snapshot(revision, entries)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        put = {"key": _base64(key.encode()), "value": _base64(value), "lease": lease or 0}
        try:
            outcome, repeated = await self._guarded(key, expect, {"request_put": put})
        except RefusedRequestError as error:
            if error.code == NOT_FOUND and lease is not None:
                raise LeaseExpiredError(lease) from None
            raise
        if isinstance(outcome, int):
            return outcome
        if outcome and lease is not None and (outcome.value, outcome.lease) == (value, lease):
            return outcome.revision
        if repeated:
            raise StoreUnavailableError(
                f"etcd: an answer was lost, and with it whether {key} was written"
            )
        raise ConflictError(key, expect=expect, revision=outcome.revision if outcome else 0)

    async def delete(self, key: str, *, expect: int) -> None:
        delete = {"key": _base64(key.encode())}
        outcome, _ = await self._guarded(key, expect, {"request_delete_range": delete})
        if isinstance(outcome, Entry):
            raise ConflictError(key, expect=expect, revision=outcome.revision)

    async def _guarded(
        self, key: str, expect: int, operation: Mapping[str, object]
    ) -> tuple[int | Entry | None, bool]:
        """The new revision, or the entry that was found instead; and whether an earlier attempt,
        whose answer was lost, may have done the operation."""
        one = {"key": _base64(key.encode())}
        # A key that does not exist compares as revision 0.
        guard = {**one, "target": "MOD", "result": "EQUAL", "mod_revision": expect}
        request = {"compare": [guard], "success": [operation], "failure": [{"request_range": one}]}
        return await self._gateway.ask_with_retries("kv/txn", request, _outcome)

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        # Always with an id: the gateway repeats a request whose answer was lost.
        lease = lease or secrets.randbits(62) + 1
        request = {"TTL": ttl, "ID": lease}
        try:
            await self._gateway.ask("lease/grant", request, lambda answer: int(answer["ID"]))
        except RefusedRequestError as error:
            if error.code != PRECONDITION or "already exists" not in str(error):
                raise
            await self.keep_alive(lease)
        return lease

    async def keep_alive(self, lease: int) -> float:
        return await self._left("lease/keepalive", lease)

    async def time_left(self, lease: int) -> float:
        return await self._left("lease/timetolive", lease)

    async def _left(self, method: str, lease: int) -> float:
        ttl = await self._gateway.ask(method, {"ID": lease}, _ttl)
        if ttl <= 0:
            raise LeaseExpiredError(lease)
        return ttl

    async def revoke(self, lease: int) -> None:
        try:
            await self._gateway.ask("lease/revoke", {"ID": lease}, lambda answer: None)
        except RefusedRequestError as error:
            if error.code != NOT_FOUND:
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
            except EndpointError as error:
                self._gateway.skip(stream.endpoint)
                if clock() < opened + _SHORTEST:
                    raise StoreUnavailableError(f"etcd: {stream.endpoint}: {error}") from error
            finally:
                stream.close()

    async def _open_watch(self, prefix: str, *, after: int) -> Stream:
        create = {**_keys(prefix), "start_revision": after + 1, "fragment": True}
        stream, (cluster, revision) = await self._gateway.stream(
            "watch", {"create_request": create}, _created
        )
        # The store was restored from a backup, or is another one: until its revision is reached
        # the watch would report nothing, and keys that it lost would never be removed. A member
        # that lags looks the same for a moment; then reading again is a small price.
        if revision < after or cluster != (self._cluster or cluster):
            stream.close()
            raise WatchGapError(
                f"etcd is at revision {revision}, expected {after} (was it restored?)"
            )
        return stream

    async def _next(self, stream: Stream, prefix: str) -> Batch:
        """The changes of one or more revisions; etcd sends large ones in fragments."""
        changes: list[tuple[int, Change]] = []
        while len(changes) <= _MOST_KEYS:
            result = await self._message(stream, prefix)
            if result.get("canceled"):
                raise parsed(_canceled, result)
            changes += parsed(_changes, result)
            if changes and not result.get("fragment"):
                return Batch(changes[-1][0], tuple(change for _, change in changes))
        raise EndpointError(f"sent more than {_MOST_KEYS:,} changes at once")

    async def _message(self, stream: Stream, prefix: str) -> Any:
        """The next message, after any time. A silent member is sent a read from time to time, which
        it answers only if it has a quorum."""
        while True:
            try:
                async with asyncio.timeout(_SILENCE):
                    return await stream.message()
            except TimeoutError:
                request = {**_keys(prefix), "count_only": True}
                await self._gateway.probe(stream.endpoint, "kv/range", request, _header)


def _header(answer: Any) -> tuple[str, int]:
    """The id of the cluster and the revision of the store."""
    header = answer["header"]
    return str(header["cluster_id"]), int(header["revision"])


def _page(answer: Any) -> tuple[tuple[str, int], list[tuple[bytes, Entry]], bool]:
    """Cluster and revision, the keys in their order, and whether more follow."""
    page = [_entry(one) for one in answer.get("kvs", ())]
    return _header(answer), page, bool(page and answer.get("more"))


def _outcome(answer: Any) -> int | Entry | None:
    if answer.get("succeeded"):
        return int(answer["header"]["revision"])
    found = answer["responses"][0]["response_range"].get("kvs", ())
    return _entry(found[0])[1] if found else None


def _created(result: Any) -> tuple[str, int]:
    """Cluster and revision at the start of a watch."""
    if result.get("canceled"):
        # 3.4 says this of an expired token as well; a new token may help.
        raise RefusedRequestError(UNAUTHENTICATED, str(result.get("cancel_reason")))
    return _header(result)


def _canceled(result: Any) -> Exception:
    compacted = int(result.get("compact_revision", 0))
    if compacted:
        return WatchGapError(f"etcd has compacted the changes before revision {compacted}")
    return EndpointError(str(result.get("cancel_reason", "watch canceled")))


def _ttl(answer: Any) -> int:
    """Seconds; keepalive answers are messages of a stream."""
    return int(answer.get("result", answer).get("TTL", 0))


def _changes(result: Any) -> list[tuple[int, Change]]:
    """The changes, each with its revision."""
    changes = []
    for event in result.get("events", ()):
        key, entry = _entry(event["kv"])
        deleted = event.get("type") == "DELETE"
        changes.append((entry.revision, Change(_key(key), None if deleted else entry)))
    return changes


def _entry(found: Any) -> tuple[bytes, Entry]:
    """A key and its entry; etcd leaves out fields that are zero or empty."""
    entry = Entry(
        b64decode(found.get("value", "")),
        revision=int(found["mod_revision"]),
        lease=int(found.get("lease", 0)) or None,
        created=int(found.get("create_revision", 0)),
    )
    return b64decode(found["key"]), entry


def _key(key: bytes) -> str:
    """This program's keys are text; other keys are only displayed."""
    return key.decode(errors="backslashreplace")


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _keys(prefix: str) -> dict[str, object]:
    """The range of all keys that begin with a prefix."""
    start = prefix.encode()
    end = start[:-1] + bytes([start[-1] + 1])  # UTF-8 has no byte 255
    return {"key": _base64(start), "range_end": _base64(end)}
