"""
A tunnel's state as Prometheus metrics, and its health, over HTTP.

    scrape  ->  status and counters  ->  metric families  ->  text

Nothing is kept between two scrapes, and a scrape does not make echoes more frequent.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
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
from tunnel.status import PeerState, PeerStatus, Stats, Status, StoreStatus, TaskHealth
from tunnel.tunnel import Tunnel
from tunnel.version import VERSION

log = logging.getLogger(__name__)

STRAY = ""
"""The label `peer` of packets that belong to no known peer."""

_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN_TEXT = "text/plain; charset=utf-8"
_MAX_HEAD = 8192  # bytes of a request line and its headers
_MAX_CLIENTS = 32
_TIMEOUT = 5.0  # seconds from a client's connection to the last byte of its answer


# Families. Names and units follow the conventions of Prometheus.

_Rows = Iterable[tuple[tuple[str, ...], float]]
"""Label values, and the value of that series."""


def _is_up(peer: PeerStatus) -> float | None:
    return None if peer.state is PeerState.UNKNOWN else peer.state is PeerState.UP


_PEER_GAUGES: tuple[tuple[str, str, Callable[[PeerStatus], float | None]], ...] = (
    ("tunnel_peer_up", "Whether the peer answers echoes; absent until it first did", _is_up),
    ("tunnel_peer_rtt_seconds", "Smoothed round-trip time of echoes", lambda peer: peer.rtt),
    ("tunnel_peer_loss_ratio", "Share of the last 20 echoes lost", lambda peer: peer.loss),
    ("tunnel_peer_trains", "Whether the peer gets trains of datagrams", lambda peer: peer.trains),
    (
        "tunnel_path_mtu_bytes",
        "Largest inner packet that reaches the peer",
        lambda peer: peer.path_mtu,
    ),
)


def families(status: Status, stats: Stats) -> Iterator[Metric]:
    """
    Yields every metric family.

    The series of a peer exist as long as the peer, and its counters start at 0 when it is added. An
    unknown value has no series. No series is a sum of others: each packet is counted in one.
    """
    peers = [(str(peer.endpoint), peer) for peer in status.peers]
    yield _info(status)
    if status.device is not None:
        text = "Whether the device is up; 0 if another program has set it down"
        yield _gauge("tunnel_device_up", text, [((), status.device_up)])
    yield _gauge("tunnel_mtu_bytes", "MTU of the device", [((), status.mtu)])
    yield _gauge("tunnel_workers", "Threads that move packets", [((), status.workers)])
    offloads = [((offload,), offload in status.offloads) for offload in OFFLOADS]
    yield _gauge("tunnel_offload", "Whether the offload is in use", offloads, labels=["offload"])
    yield from _tasks(status.tasks)
    for name, text, value_of in _PEER_GAUGES:
        found = [((label,), value_of(peer)) for label, peer in peers]
        known = [(labels, value) for labels, value in found if value is not None]
        yield _gauge(name, text, known, labels=["peer"])
    if status.store is not None:
        yield from _store(status.store)
    traffic = [((label, "outbound"), peer.outbound) for label, peer in peers]
    traffic += [((label, "inbound"), peer.inbound) for label, peer in peers]
    labels = ["peer", "direction"]
    packets = [(values, one.packets) for values, one in traffic]
    yield _counter("tunnel_packets_total", "Inner packets forwarded", packets, labels)
    sizes = [(values, one.bytes) for values, one in traffic]
    yield _counter("tunnel_bytes_total", "Bytes of these packets, with IP headers", sizes, labels)
    yield _counter(
        "tunnel_drops_total",
        "Packets not forwarded, by reason (see tunnel drops); the peer is empty if it is unknown",
        _drops(peers, stats),
        ["peer", "reason"],
    )
    work = [((kind,), count) for kind, count in stats.work.items()]
    yield _counter("tunnel_work_total", "How packets were moved", work, ["kind"])


def _tasks(tasks: Iterable[TaskHealth]) -> Iterator[Metric]:
    healthy = [((task.name,), task.healthy) for task in tasks]
    text = "Whether the task runs; 0 while it waits for its restart after a failure"
    yield _gauge("tunnel_task_healthy", text, healthy, labels=["task"])
    failures = [((task.name,), task.failures) for task in tasks]
    yield _counter("tunnel_task_failures_total", "Failures of the task", failures, ["task"])


def _store(store: StoreStatus) -> Iterator[Metric]:
    yield _gauge("tunnel_store_up", "Whether the store answers", [((), store.connected)])
    if store.lease_remaining is not None:
        text = "Seconds until the node's lease expires unless it is renewed"
        yield _gauge("tunnel_lease_seconds", text, [((), store.lease_remaining)])
    text = "Invalid records and settings in the store"
    yield _gauge("tunnel_store_troubles", text, [((), len(store.troubles))])


def _info(status: Status) -> Metric:
    labels = {
        "version": VERSION,
        "name": status.name,
        "device": status.device or "",
        "vni": str(status.vni),
        "mac": str(status.mac),
    }
    return InfoMetricFamily("tunnel", "The node", value=labels)


def _drops(peers: Iterable[tuple[str, PeerStatus]], stats: Stats) -> _Rows:
    """Every reason for packets of no known peer, so that each exists from the first scrape. Peers
    may be many: for them, only reasons that occurred."""
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
    A tunnel as a collector, for programs that have a prometheus_client registry of their own::

        registry.register(TunnelCollector(tunnel))
    """

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def collect(self) -> Iterator[Metric]:
        """Yields every metric family. Call it in the thread of the tunnel's loop."""
        return families(*self._tunnel.snapshot())


# The server. Everything that a client controls is bounded.


class Place(NamedTuple):
    """An address and port to listen on; without a host, every address."""

    host: str | None
    port: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """
        ``127.0.0.1:9472``, ``[::1]:9472``, ``:9472``.

        Raises:
            ConfigError: The text has none of these forms.
        """
        host, colon, digits = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        number = int(digits) if digits.isascii() and digits.isdigit() else 0
        if not colon or not 0 < number < 65536 or (":" in host and not bracketed):
            raise ConfigError(f"metrics {text!r} is not ADDR:PORT (like 127.0.0.1:9472)")
        return cls(host.strip("[]") or None, number)

    def __str__(self) -> str:
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def listen(self) -> list[socket.socket]:
        """Opens a socket for each address of the host. Raises UnderlayError."""
        opened: list[socket.socket] = []
        # getaddrinfo returns the IPv6 wildcard even on a kernel without IPv6.
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
    Serves these over HTTP, in the running loop, until the ``async with`` block ends:

    ``/metrics``
        All of :func:`families`, and metrics of the process, as text or OpenMetrics.
    ``/healthz``
        200: the process runs, and its loop answers.
    ``/readyz``
        200 if :attr:`Tunnel.ready`, else 503 and the reason.

    A connection serves one request. A client has 5 seconds and 8 KiB; at most 32 are served at a
    time. The constructor opens the port, so that a program can drop its privileges afterwards.

    Raises:
        UnderlayError: The address is not on this host, or it is in use.
    """

    def __init__(self, tunnel: Tunnel, *, place: Place) -> None:
        self._tunnel = tunnel
        self._listeners = place.listen()
        self._process = ProcessCollector(registry=None)
        self._scraping = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._servers = [
            await asyncio.start_server(self._accept, sock=listener, limit=_MAX_HEAD)
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

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MAX_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                writer.write(await self._respond(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError):
            pass  # the client closed the connection, or was too slow (TimeoutError)
        finally:
            writer.transport.abort()

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
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
        parts = request.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _response("400 Bad Request", b"")
        method, target, _ = parts
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD")
        status, body, kind = await self._page(target.partition("?")[0], headers)
        return _response(status, body, f"Content-Type: {kind}", bodiless=method == "HEAD")

    async def _page(self, path: str, headers: Iterable[str]) -> tuple[str, bytes, str]:
        if path == "/metrics":
            accepted = " ".join(one for one in headers if one.lower().startswith("accept:"))
            if "application/openmetrics-text" in accepted:
                body = await self._read(openmetrics.generate_latest)
                return "200 OK", body, openmetrics.CONTENT_TYPE_LATEST
            return "200 OK", await self._read(generate_latest), _PROMETHEUS_TEXT
        if path == "/healthz":
            return "200 OK", b"ok\n", _PLAIN_TEXT
        if path == "/readyz" and self._tunnel.ready:
            return "200 OK", b"ready\n", _PLAIN_TEXT
        if path == "/readyz":
            text = f"not ready: {self._why_not_ready()}\n"
            return "503 Service Unavailable", text.encode(), _PLAIN_TEXT
        return "404 Not Found", b"try /metrics, /healthz or /readyz\n", _PLAIN_TEXT

    def _why_not_ready(self) -> str:
        if self._tunnel.phase != "open":
            return self._tunnel.phase
        failed = [task for task in self._tunnel.supervisor.tasks if not task.healthy]
        return "; ".join(f"{task.name} failed: {task.why}" for task in failed) or "device is down"

    async def _read(self, encode: Callable[[_Scrape], bytes]) -> bytes:
        # With many peers the text takes most of the time, so a thread makes it. One scrape at a
        # time: many clients delay the loop no more than one frequent client does.
        async with self._scraping:
            status, stats = self._tunnel.snapshot()
            return await asyncio.to_thread(encode, _Scrape(status, stats, self._process))


class _Scrape(NamedTuple):
    """The state of the tunnel at one moment, as a collector."""

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
