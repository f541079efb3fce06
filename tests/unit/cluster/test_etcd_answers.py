"""The client of etcd with servers that send something else than etcd does."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tunnel.cluster.stores import etcd as client
from tunnel.cluster.stores import etcd_gateway
from tunnel.cluster.stores.etcd import EtcdStore
from tunnel.errors import ConfigError, StoreRefusedError, StoreUnavailableError, WatchGapError

HEADER = {"cluster_id": "1", "revision": "7"}


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[tuple[str, list[str]]]:
    """Sends its answers in turn, the last again and again, and closes each connection. Yields its
    URL and the paths of the requests."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split()[1].decode())
            writer.write(answers[min(len(asked), len(answers)) - 1])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", asked


def http(body: bytes | object, *, status: int = 200, more: str = "") -> bytes:
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return f"HTTP/1.1 {status} Some\r\nConnection: close\r\n{more}\r\n".encode() + body


def no(code: int, message: str, *, status: int = 503) -> bytes:
    return http({"error": message, "message": message, "code": code}, status=status)


def text(data: str) -> str:
    return b64encode(data.encode()).decode()


NOTHING = http({"header": HEADER})
PAGE = {"header": HEADER, "kvs": [{"key": text("/a"), "mod_revision": "7"}], "more": True}

NONSENSE = {
    "nothing": b"",
    "no http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no body": http(b""),
    "html": http(b"<html>"),
    "a list": http([]),
    "null": http(None),
    "no header": http({}),
    "no revision": http({"header": {"cluster_id": "1"}}),
    "a strange revision": http({"header": {**HEADER, "revision": "seven"}}),
    "an endless revision": http(b'{"header": {"cluster_id": "1", "revision": 1e999}}'),
    "no keys": http({"header": HEADER, "kvs": 5}),
    "strange keys": http({"header": HEADER, "kvs": ["a"]}),
    "a key without revision": http({"header": HEADER, "kvs": [{"key": text("/a")}]}),
    "a key that is no base64": http({"header": HEADER, "kvs": [{"key": "a", "mod_revision": 1}]}),
    "nested": http(b"[" * 100_000),
    "too much": http(b" " * (1 << 20)),
    "another length": http(b"{}", more="Content-Length: 5\r\n"),
    "an error of a proxy": http(b"<html>bad gateway</html>", status=502),
    "a redirect": http(b"", status=302, more="Location: http://127.0.0.1:1/\r\n"),
    "an error that is none": http({"error": {"code": "x"}}, status=500),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_no_answer(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_gateway, "_MOST_BYTES", 500_000)
    async with server(answer) as (url, _), EtcdStore([url], timeout=0.3) as store:
        with pytest.raises(StoreUnavailableError, match=url):
            await store.read("/")
    async with (
        server(answer) as (url, _),
        server(NOTHING) as (good, _),
        EtcdStore([url, good]) as store,
    ):
        assert (await store.read("/")).revision == 7


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_no_watch(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_gateway, "_MOST_BYTES", 500_000)
    body = answer.partition(b"\r\n\r\n")[2]
    for bad in (answer, BEGUN + body + b"\n"):
        async with server(bad) as (url, _), EtcdStore([url], timeout=0.3) as store:
            with pytest.raises(StoreUnavailableError, match=url):
                await anext(store.watch("/", after=7))


async def test_no_gateway() -> None:
    not_found = http(b"404 page not found\n", status=404)
    async with server(not_found) as (url, _), EtcdStore([url]) as store:
        with pytest.raises(StoreRefusedError, match="has no JSON gateway"):
            await store.read("/")


async def test_pages_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_KEYS", 10)
    async with server(http(PAGE)) as (url, _), EtcdStore([url]) as store:
        with pytest.raises(StoreRefusedError, match="more than 10 keys"):
            await store.read("/")


async def test_a_page_that_was_compacted_is_read_again() -> None:
    compacted = no(11, "etcdserver: mvcc: required revision has been compacted", status=400)
    async with server(http(PAGE), compacted, NOTHING) as (url, asked), EtcdStore([url]) as store:
        assert (await store.read("/")).entries == {}
        assert len(asked) == 3


LEADERLESS = {
    "3.4": no(14, "etcdserver: no leader"),
    "3.6": http({"code": 14, "message": "etcdserver: no leader", "details": []}, status=503),
    "busy": no(8, "etcdserver: too many requests", status=429),
    "late": no(14, "etcdserver: request timed out"),
    "gone": b"",
}


@pytest.mark.parametrize("answer", LEADERLESS.values(), ids=LEADERLESS.keys())
async def test_a_passing_failure_is_tried_again(answer: bytes) -> None:
    async with server(answer, NOTHING) as (url, asked), EtcdStore([url]) as store:
        assert (await store.read("/")).revision == 7
        assert len(asked) == 2


def line(**result: object) -> bytes:
    return json.dumps({"result": {"header": HEADER, **result}}).encode() + b"\n"


def event(key: str, revision: int) -> dict[str, object]:
    return {"kv": {"key": text(key), "mod_revision": str(revision), "value": text("1")}}


BEGUN = http(line(created=True))

STREAMED = {
    "3.4": {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}},
    "3.6": {"error": {"code": 14, "message": "etcdserver: no leader", "details": []}},
    "canceled": {"result": {"header": HEADER, "canceled": True, "cancel_reason": "no leader"}},
}


@pytest.mark.parametrize("message", STREAMED.values(), ids=STREAMED.keys())
async def test_a_watch_without_leader_uses_another_endpoint(
    message: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SHORTEST", 0.0)
    async with (
        server(BEGUN + json.dumps(message).encode() + b"\n") as (url, _),
        server(BEGUN + line(events=[event("/a", 8)])) as (good, _),
        EtcdStore([url, good]) as store,
    ):
        batch = await anext(store.watch("/", after=7))
        assert (batch.revision, [change.key for change in batch.changes]) == (8, ["/a"])


async def test_a_watch_that_never_lasts_is_away() -> None:
    async with server(BEGUN) as (url, asked), EtcdStore([url]) as store:
        with pytest.raises(StoreUnavailableError, match="ended the watch"):
            await anext(store.watch("/", after=7))
        assert len(asked) == 1


async def test_pieces_make_one_batch() -> None:
    pieces = (
        line(events=[event("/a", 8), event("/b", 8)], fragment=True),
        line(events=[event("/c", 8)], fragment=True),
        line(events=[event("/d", 8)]),
        line(events=[event("/e", 9)]),
    )
    async with server(BEGUN + b"".join(pieces)) as (url, _), EtcdStore([url]) as store:
        watch = store.watch("/", after=7)
        batch = await anext(watch)
        assert (batch.revision, [one.key for one in batch.changes]) == (8, ["/a", "/b", "/c", "/d"])
        assert (await anext(watch)).revision == 9


async def test_a_revision_that_went_back_is_a_gap() -> None:
    async with server(BEGUN) as (url, _), EtcdStore([url]) as store:
        with pytest.raises(WatchGapError, match="is at revision 7, expected 8"):
            await anext(store.watch("/", after=8))


async def test_a_key_that_is_no_text_can_be_shown() -> None:
    found = {"key": b64encode(b"/\xff").decode(), "mod_revision": "7"}
    async with (
        server(http({"header": HEADER, "kvs": [found]})) as (url, _),
        EtcdStore([url]) as store,
    ):
        assert [*(await store.read("/")).entries] == ["/\\xff"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("127.0.0.1:2379", "http://127.0.0.1:2379"),
        ("https://etcd.example:2379/", "https://etcd.example:2379"),
        ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
        ("https://etcd.example", "https://etcd.example"),
    ],
)
def test_endpoints(endpoint: str, url: str) -> None:
    assert EtcdStore([endpoint]).address == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://",
        "unix:///run/etcd",
        "host:port",
        "host:0",
        "host:99999",
        "http://[fd00::1:2379",
        "http://user:secret@host:2379",
        "http://host:2379/v3",
        "http://host:2379?x",
    ],
)
def test_no_endpoints(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is not an endpoint of etcd"):
        EtcdStore([endpoint])


def test_none_at_all() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        EtcdStore([])
