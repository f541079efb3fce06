"""Metrics as a real Prometheus parser reads them, and a server that no client can block."""

import asyncio
import importlib.metadata
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from tunnel import metrics
from tunnel._native import DROP_REASONS, WORK
from tunnel.errors import ConfigError, UnderlayError
from tunnel.metrics import MetricsServer, Place, TunnelCollector
from tunnel.status import PeerState, PeerStats, PeerStatus, Stats, Status, Traffic
from tunnel.tunnel import Tunnel
from tunnel.types import Endpoint, Mac
from tunnel.version import VERSION

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana-dashboard.json"

KNOWN = PeerStatus(
    endpoint=Endpoint("192.0.2.2"),
    address=ip_address("192.0.2.2"),
    mac=None,
    prefixes=(ip_network("10.2.0.0/16"),),
    state=PeerState.UP,
    state_age=5.0,
    rtt=0.002,
    loss=0.25,
    path_mtu=1400,
    trains=True,
    outbound=Traffic(3, 300),
    inbound=Traffic(4, 400),
    drops={"spoofed": 2},
    last_drop="spoofed",
)
UNKNOWN = replace(
    KNOWN,
    endpoint=Endpoint("kernel.example", 4789),
    state=PeerState.UNKNOWN,
    rtt=None,
    loss=None,
    path_mtu=None,
    trains=False,
    drops={},
    last_drop=None,
)


def made(*peers: PeerStatus, strays: dict[str, int]) -> tuple[Status, Stats]:
    status = Status(
        name="tunnel7",
        device="tunnel7",
        vni=7,
        endpoints=("192.0.2.1:8472",),
        mac=Mac.parse("02:00:5e:00:53:01"),
        subnets=(),
        mtu=1450,
        offloads=frozenset({"tso", "gro"}),
        workers=2,
        uptime=60.0,
        peers=peers,
        drops={},
    )
    counted = {one.endpoint: PeerStats(one.outbound, one.inbound, one.drops) for one in peers}
    work = dict.fromkeys([*WORK, "device_overflows"], 9)
    return status, Stats(Traffic(), Traffic(), {}, counted, work, status.offloads, strays)


class Fixed:
    """A collector that returns the families it was given."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def scraped(*peers: PeerStatus, strays: dict[str, int] | None = None) -> Samples:
    registry = CollectorRegistry()
    registry.register(Fixed(list(metrics.families(*made(*peers, strays=strays or {})))))
    return samples(generate_latest(registry).decode())


def test_every_family() -> None:
    found = scraped(KNOWN, UNKNOWN, strays={"no_route": 5})
    known, unknown = ("peer", "192.0.2.2:8472"), ("peer", "kernel.example:4789")
    assert found["tunnel_device_up", ()] == 1
    assert found["tunnel_mtu_bytes", ()] == 1450
    assert found["tunnel_workers", ()] == 2
    assert found["tunnel_offload", (("offload", "tso"),)] == 1
    assert found["tunnel_offload", (("offload", "trains"),)] == 0
    assert found["tunnel_peer_up", (known,)] == 1
    assert found["tunnel_peer_rtt_seconds", (known,)] == 0.002
    assert found["tunnel_peer_loss_ratio", (known,)] == 0.25
    assert found["tunnel_path_mtu_bytes", (known,)] == 1400
    assert found["tunnel_peer_trains", (unknown,)] == 0
    assert found["tunnel_packets_total", (("direction", "outbound"), known)] == 3
    assert found["tunnel_bytes_total", (("direction", "inbound"), unknown)] == 400
    assert found["tunnel_drops_total", (known, ("reason", "spoofed"))] == 2
    assert found["tunnel_drops_total", (("peer", ""), ("reason", "no_route"))] == 5
    assert found["tunnel_work_total", (("kind", "device_overflows"),)] == 9
    (info,) = [dict(labels) for name, labels in found if name == "tunnel_info"]
    assert (info["name"], info["vni"], info["device"]) == ("tunnel7", "7", "tunnel7")


def test_unknown_values_have_no_series() -> None:
    found = scraped(UNKNOWN)
    assert not {name for name, _ in found} & {
        "tunnel_peer_up",
        "tunnel_peer_rtt_seconds",
        "tunnel_peer_loss_ratio",
        "tunnel_path_mtu_bytes",
    }
    silent = scraped(replace(KNOWN, state=PeerState.SILENT))
    assert silent["tunnel_peer_up", (("peer", "192.0.2.2:8472"),)] == 0


def test_each_reason_exists_from_the_first_scrape() -> None:
    reasons = {dict(labels)["reason"] for name, labels in scraped() if name == "tunnel_drops_total"}
    assert reasons == {reason for reason, _, _ in DROP_REASONS}


def test_names_follow_the_conventions() -> None:
    for family in metrics.families(*made(KNOWN, strays={})):
        assert re.fullmatch(r"tunnel(_[a-z]+)*", family.name)
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_the_dashboard_asks_for_existing_metrics() -> None:
    families = metrics.families(*made(KNOWN, strays={}))
    there = {sample.name for family in families for sample in family.samples}
    there |= {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    text = DASHBOARD.read_text()
    asked = set(re.findall(r"\b(?:tunnel|process)_[a-z_]+", " ".join(queries(json.loads(text)))))
    assert len(asked) > 8
    assert asked <= there


def queries(board: object) -> list[str]:
    """Every PromQL expression in a dashboard."""
    match board:
        case dict():
            own = [board[key] for key in ("expr", "definition") if isinstance(board.get(key), str)]
            return own + [one for value in board.values() for one in queries(value)]
        case list():
            return [one for value in board for one in queries(value)]
    return []


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9472", "127.0.0.1", 9472),
        ("[::1]:9472", "::1", 9472),
        ("localhost:1", "localhost", 1),
        (":65535", None, 65535),
    ],
)
def test_places(text: str, host: str | None, port: int) -> None:
    assert Place.parse(text) == (host, port)
    assert str(Place.parse(text)) == text


@pytest.mark.parametrize("text", ["", "9472", "127.0.0.1", "::1:9472", "a:0", "a:65536", "a:x"])
def test_texts_that_are_no_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not ADDR:PORT \(like 127.0.0.1:9472\)"):
        Place.parse(text)


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Tunnel, Place]]:
    place = Place("127.0.0.1", free_port(socket.SOCK_STREAM))
    udp = free_port(socket.SOCK_DGRAM)
    peer = f"127.0.0.2:{udp}=10.2.0.0/16"
    async with (
        asyncio.timeout(20),
        Tunnel(device=None, local="127.0.0.1", port=udp, peers=[peer]) as tunnel,
        MetricsServer(tunnel, place=place),
    ):
        yield tunnel, place


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a counter of another's gives no signal
        await asyncio.sleep(0.01)


async def send(place: Place, request: bytes) -> bytes:
    """The whole response."""
    reader, writer = await asyncio.open_connection(place.host, place.port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def get(
    place: Place, path: str, *, method: str = "GET", accept: str = "*/*"
) -> tuple[int, str]:
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
    head, _, body = (await send(place, request.encode())).decode().partition("\r\n\r\n")
    assert "Connection: close" in head
    if method != "HEAD":
        assert f"Content-Length: {len(body.encode())}" in head
    return int(head.split()[1]), body


async def test_a_scrape() -> None:
    async with serving() as (tunnel, place):
        await tunnel.send(bytes.fromhex("45000014000000004011000a0a0100010a020001"))
        await tunnel.send(bytes.fromhex("45000014000000004011000a0a0100010a090001"))
        peer = ("peer", str(tunnel.peers[0]))
        await until(lambda: bool(tunnel.stats.strays))
        code, text = await get(place, "/metrics")
        assert code == 200
        found = samples(text)
        assert found["tunnel_packets_total", (("direction", "outbound"), peer)] == 1
        assert found["tunnel_bytes_total", (("direction", "outbound"), peer)] == 20
        assert found["tunnel_drops_total", (("peer", ""), ("reason", "no_route"))] == 1
        assert found["process_cpu_seconds_total", ()] > 0
        accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
        code, text = await get(place, "/metrics?x=1", accept=accept)
        assert code == 200
        names = {family.name for family in parse_open(text)}  # type: ignore[no-untyped-call]
        assert names >= {"tunnel_packets", "tunnel"}


async def test_counters_never_jump_or_go_back_as_peers_go() -> None:
    """What a removed peer had counted does not turn up in another series."""
    async with serving() as (tunnel, place):
        await tunnel.send(bytes.fromhex("45000014000000004011000a0a0100010a020001"))
        endpoint = tunnel.peers[0]
        await until(lambda: bool(tunnel.stats.outbound.packets))
        before = samples((await get(place, "/metrics"))[1])
        await tunnel.remove_peer(endpoint)
        after = samples((await get(place, "/metrics"))[1])
        counters = {key for key in before if key[0].startswith(("tunnel_packets", "tunnel_drops"))}
        removed = {key for key in counters if ("peer", str(endpoint)) in key[1]}
        assert removed
        assert not removed & set(after)
        assert all(after[key] == before[key] for key in counters - removed)
        assert tunnel.stats.outbound.packets == 1


async def test_a_scrape_is_no_look() -> None:
    """Echoes are as seldom as without it."""
    async with serving() as (tunnel, _):
        looks = []
        tunnel._node.peers.monitor.watch = lambda: looks.append(1)  # type: ignore[method-assign]
        list(TunnelCollector(tunnel).collect())
        assert not looks
        tunnel.status()
        assert looks


async def test_many_scrapes_at_once() -> None:
    async with serving() as (_, place):
        answers = await asyncio.gather(*(get(place, "/metrics") for _ in range(20)))
        assert {code for code, _ in answers} == {200}


async def test_health() -> None:
    async with serving() as (tunnel, place):
        assert await get(place, "/healthz") == (200, "ok\n")
        assert await get(place, "/readyz") == (200, "ready\n")
        assert await get(place, "/healthz", method="HEAD") == (200, "")
        assert (await get(place, "/"))[0] == 404
        assert (await get(place, "/metrics", method="POST"))[0] == 405
        await tunnel.close()
        assert await get(place, "/readyz") == (503, "not ready: closed\n")
        assert (await get(place, "/healthz"))[0] == 200
        assert (await get(place, "/metrics"))[0] == 200


async def test_readiness_names_the_failed_task() -> None:
    async with serving() as (tunnel, place):
        tunnel.supervisor.failed("worker 1", MemoryError("no room"))
        text = "not ready: worker 1 failed: MemoryError: no room\n"
        assert await get(place, "/readyz") == (503, text)
        assert (await get(place, "/healthz"))[0] == 200
        found = samples((await get(place, "/metrics"))[1])
        assert found["tunnel_task_healthy", (("task", "worker 1"),)] == 0
        assert found["tunnel_task_failures_total", (("task", "worker 1"),)] == 1
        tunnel.supervisor.recovered("worker 1")
        assert await get(place, "/readyz") == (200, "ready\n")
        found = samples((await get(place, "/metrics"))[1])
        assert found["tunnel_task_healthy", (("task", "worker 1"),)] == 1
        assert found["tunnel_task_failures_total", (("task", "worker 1"),)] == 1


async def test_a_scrape_reads_nothing_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user that a node runs as may not be allowed to."""

    def refuse(name: str) -> str:
        raise PermissionError(name)

    monkeypatch.setattr(importlib.metadata, "version", refuse)
    async with serving() as (_, place):
        code, text = await get(place, "/metrics")
        assert code == 200
        assert f'version="{VERSION}"' in text


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"\xff\xfe\0\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, b"431"),
    ],
)
async def test_nonsense(request_: bytes, code: bytes) -> None:
    async with serving() as (_, place):
        assert (await send(place, request_))[9:12] in (code, b"")
        assert (await get(place, "/healthz"))[0] == 200


async def test_a_silent_client_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TIMEOUT", 0.2)
    async with serving() as (_, place):
        assert await send(place, b"GET /healthz HTT") == b""


async def test_idle_connections_block_no_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MAX_CLIENTS", 3)
    async with serving() as (_, place), AsyncExitStack() as held:
        for _ in range(3):
            _, writer = await asyncio.open_connection(place.host, place.port)
            held.callback(writer.close)
        assert await send(place, b"GET /healthz HTTP/1.1\r\n\r\n") == b""


async def test_an_address_in_use() -> None:
    async with serving() as (tunnel, place):
        with pytest.raises(UnderlayError, match=r"cannot listen on .* for metrics: .*in use"):
            async with MetricsServer(tunnel, place=place):
                pass
