"""
What a tunnel counts and knows, for Prometheus, and whether it is well, for whoever asks.

    a scrape  ->  status and counters  ->  metric families  ->  text

Nothing is kept between two scrapes, and a scrape is no look: it makes no echo more frequent.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from types import TracebackType
from typing import NamedTuple, Self

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from tunnel._native import DROP_REASONS
from tunnel.config.options import OFFLOADS
from tunnel.errors import ConfigError, UnderlayError
from tunnel.status import PeerState, PeerStatus, Stats, Status, StoreStatus
from tunnel.tunnel import Tunnel

log = logging.getLogger(__name__)

STRAY = ""
"""The label `peer` of what belongs to no peer that is known."""

_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_WORDS = "text/plain; charset=utf-8"
_MOST_HEAD = 8192  # bytes of a request
_MOST_CLIENTS = 32
_PATIENCE = 5.0  # seconds that a client has, from its connection to its last byte


# Families: names and units by Prometheus' conventions.

_Rows = Iterable[tuple[tuple[str, ...], float]]
"""Label values and the value."""


def _is_up(peer: PeerStatus) -> float | None:
    return None if peer.state is PeerState.UNKNOWN else peer.state is PeerState.UP


_PEER_GAUGES: tuple[tuple[str, str, Callable[[PeerStatus], float | None]], ...] = (
    ("tunnel_peer_up", "Whether it answers echoes; absent as long as it never did", _is_up),
    ("tunnel_peer_rtt_seconds", "Smoothed round trip of echoes", lambda peer: peer.rtt),
    ("tunnel_peer_loss_ratio", "Share of the last 20 echoes lost", lambda peer: peer.loss),
    ("tunnel_peer_trains", "Whether it gets trains of datagrams", lambda peer: peer.trains),
    ("tunnel_path_mtu_bytes", "Largest inner packet that reaches it", lambda peer: peer.path_mtu),
)


def families(status: Status, stats: Stats) -> Iterator[Metric]:
    """
    Everything there is.

    A peer's series come and go with it, and its counters begin at 0 when it comes. What is not
    known is absent. No family has a sum over peers beside them: each packet is in one series.
    """
    peers = [(str(peer.endpoint), peer) for peer in status.peers]
    yield _info(status)
    if status.device is not None:
        text = "0 where somebody has set the device down"
        yield _gauge("tunnel_device_up", text, [((), status.device_up)])
    yield _gauge("tunnel_mtu_bytes", "MTU of the device", [((), status.mtu)])
    yield _gauge("tunnel_workers", "Threads that move packets", [((), status.workers)])
    offloads = [((offload,), offload in status.offloads) for offload in OFFLOADS]
    yield _gauge("tunnel_offload", "Whether it is in use now", offloads, labels=["offload"])
    for name, text, value_of in _PEER_GAUGES:
        found = [((label,), value_of(peer)) for label, peer in peers]
        known = [(labels, value) for labels, value in found if value is not None]
        yield _gauge(name, text, known, labels=["peer"])
    if status.store is not None:
        yield from _store(status.store)
    ways = [((label, "outbound"), peer.outbound) for label, peer in peers]
    ways += [((label, "inbound"), peer.inbound) for label, peer in peers]
    labels = ["peer", "direction"]
    packets = [(values, traffic.packets) for values, traffic in ways]
    yield _counter("tunnel_packets_total", "Inner packets that went through", packets, labels)
    sizes = [(values, traffic.bytes) for values, traffic in ways]
    yield _counter("tunnel_bytes_total", "Bytes of these, IP headers and all", sizes, labels)
    yield _counter(
        "tunnel_drops_total",
        "Packets that were not forwarded, by reason (see tunnel drops); without a peer where "
        "theirs is not known",
        _drops(peers, stats),
        ["peer", "reason"],
    )
    work = [((kind,), count) for kind, count in stats.work.items()]
    yield _counter("tunnel_work_total", "How packets were moved", work, ["kind"])


def _store(store: StoreStatus) -> Iterator[Metric]:
    yield _gauge("tunnel_store_up", "Whether the store answers", [((), store.connected)])
    if store.lease_remaining is not None:
        text = "Until its lease ends unless it is renewed"
        yield _gauge("tunnel_lease_seconds", text, [((), store.lease_remaining)])
    text = "Records and settings in the store that something is wrong with"
    yield _gauge("tunnel_store_troubles", text, [((), len(store.troubles))])


def _info(status: Status) -> Metric:
    words = {
        "version": version("tunnel"),
        "name": status.name,
        "device": status.device or "",
        "vni": str(status.vni),
        "mac": str(status.mac),
    }
    return InfoMetricFamily("tunnel", "What it is", value=words)


def _drops(peers: Iterable[tuple[str, PeerStatus]], stats: Stats) -> _Rows:
    """Of strays every reason, so that each is there from the first scrape; of peers, who may be
    many, those that occurred."""
    for reason, _, _ in DROP_REASONS:
        yield (STRAY, reason), stats.strays.get(reason, 0)
    for label, peer in peers:
        for reason, count in peer.drops.items():
            yield (label, reason), count


def _gauge(name: str, text: str, rows: _Rows, *, labels: Iterable[str] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, rows: _Rows, labels: Iterable[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(values, value)
    return family


class TunnelCollector:
    """
    A tunnel in a prometheus_client registry, for programs that have one already::

        registry.register(TunnelCollector(tunnel))
    """

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def collect(self) -> Iterator[Metric]:
        """In the thread of the tunnel's loop."""
        return families(self._tunnel.status(watch=False), self._tunnel.stats)


# The server: small enough to be read, bounded in all that comes from outside.


class Place(NamedTuple):
    """Where a server listens; without a host on every address."""

    host: str | None
    port: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """
        ``127.0.0.1:9472``, ``[::1]:9472``, ``:9472``.

        Raises:
            ConfigError: It is none of these.
        """
        host, colon, digits = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        number = int(digits) if digits.isascii() and digits.isdigit() else 0
        if not colon or not 0 < number < 65536 or (":" in host and not bracketed):
            raise ConfigError(f"metrics {text!r} is no ADDR:PORT (like 127.0.0.1:9472)")
        return cls(host.strip("[]") or None, number)

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def listen(self) -> list[socket.socket]:
        """A socket for each of its addresses. Raises UnderlayError."""
        opened: list[socket.socket] = []
        # A kernel without IPv6 names its wildcard all the same.
        family = socket.AF_UNSPEC if socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            found = socket.getaddrinfo(*self, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, *_, address in found:
                opened.append(socket.create_server(address, family=family))
        except OSError as error:
            for sock in opened:
                sock.close()
            why = (error.strerror or str(error)).lower()
            raise UnderlayError(
                f"cannot listen on {self} for metrics: {why} (choose another --metrics)"
            ) from error
        return opened


class MetricsServer:
    """
    Answers GET of these, over HTTP, in the running loop, until the ``async with`` block ends:

    ``/metrics``
        All of :func:`families` and of the process, as text or OpenMetrics.
    ``/healthz``
        200: the process runs and its loop turns.
    ``/readyz``
        200 if :attr:`Tunnel.ready`, else 503.

    One request a connection; a client has 5 seconds and 8 KiB, and there are 32 at a time. Its
    port is taken when it is made, which a program may do before it gives up the right to low ones.

    Raises:
        UnderlayError: The address is not ours or in use.
    """

    def __init__(self, tunnel: Tunnel, *, place: Place) -> None:
        self._tunnel = tunnel
        self._listeners = place.listen()
        self._process = ProcessCollector(registry=None)
        self._scraping = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._servers = [
            await asyncio.start_server(self._welcome, sock=listener, limit=_MOST_HEAD)
            for listener in self._listeners
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MOST_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                writer.write(await self._converse(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError):
            pass  # it left, or was too slow, which TimeoutError says; nobody else is concerned
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large", b"")
        try:
            return await self._answer(head)
        except Exception:
            log.exception("%s: a scrape failed", self._tunnel.config.name)
            return _response("500 Internal Server Error", b"")

    async def _answer(self, head: bytes) -> bytes:
        request, *headers = head.decode("latin-1").split("\r\n")
        words = request.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request", b"")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD")
        status, body, kind = await self._page(target.partition("?")[0], headers)
        return _response(status, body, f"Content-Type: {kind}", bodiless=method == "HEAD")

    async def _page(self, path: str, headers: Iterable[str]) -> tuple[str, bytes, str]:
        if path == "/metrics":
            accepted = " ".join(one for one in headers if one.lower().startswith("accept:"))
            if "application/openmetrics-text" in accepted:
                body = await self._scrape(openmetrics.generate_latest)
                return "200 OK", body, openmetrics.CONTENT_TYPE_LATEST
            return "200 OK", await self._scrape(generate_latest), _METRICS
        if path == "/healthz":
            return "200 OK", b"ok\n", _WORDS
        if path == "/readyz" and self._tunnel.ready:
            return "200 OK", b"ready\n", _WORDS
        if path == "/readyz":
            return "503 Service Unavailable", b"not ready: it ends, or its device is down\n", _WORDS
        return "404 Not Found", b"there are /metrics, /healthz and /readyz\n", _WORDS

    async def _scrape(self, encode: Callable[[_Scraped], bytes]) -> bytes:
        # With many peers most of the time goes into the text, which a thread makes while the loop
        # goes on. One at a time: many who ask hold it up no more than one who asks often.
        async with self._scraping:
            status, stats = self._tunnel.status(watch=False), self._tunnel.stats
            return await asyncio.to_thread(encode, _Scraped(status, stats, self._process))


class _Scraped(NamedTuple):
    """What the tunnel said at one moment, as prometheus_client takes it."""

    status: Status
    stats: Stats
    process: ProcessCollector

    def collect(self) -> Iterator[Metric]:
        yield from families(self.status, self.stats)
        yield from self.process.collect()


def _response(status: str, body: bytes, *headers: str, bodiless: bool = False) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if bodiless else head + body
