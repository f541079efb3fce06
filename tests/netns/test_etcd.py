"""The client of etcd when etcd fails."""

import asyncio
import itertools
import random
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from tests.netns.etcd import Authority, Etcd
from tunnel.cluster.stores import etcd as client
from tunnel.cluster.stores.base import Batch, Entry
from tunnel.cluster.stores.etcd import EtcdStore
from tunnel.errors import (
    ConfigError,
    ConflictError,
    StoreRefusedError,
    StoreUnavailableError,
    WatchGapError,
)

PATIENCE = 30.0  # seconds for what takes a fraction of one

_keys = itertools.count()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("three"), members=3) as etcd:
        yield etcd


@pytest.fixture
def three(members: Etcd) -> Iterator[Etcd]:
    """Three members, all of them healthy."""
    yield members
    members.heal()


@pytest.fixture
def key() -> str:
    return f"/{next(_keys)}/"


async def keys_of(watch: AsyncGenerator[Batch, None]) -> list[str]:
    """The keys in the next batch."""
    async with asyncio.timeout(PATIENCE):
        return [change.key for change in (await anext(watch)).changes]


# Members that fail.


async def test_the_endpoint_that_answers_is_kept(three: Etcd, key: str) -> None:
    async with EtcdStore(["http://127.0.0.1:1", *three.endpoints]) as store:
        await store.put(key, b"", expect=0)
        first = three.endpoints.index(store.address)
        three.kill(first)
        assert (await store.read(key)).entries
        second = store.address
        assert second != three.endpoints[first]
        three.start(first)
        three.wait(first)
        await store.read(key)
        assert store.address == second


async def test_an_election_is_waited_for(three: Etcd, key: str) -> None:
    async with EtcdStore(three.endpoints) as store:
        revision = await store.put(key, b"before", expect=0)
        lease = await store.grant(60)
        three.kill(three.leader())
        await store.put(key, b"after", expect=revision)
        assert await store.keep_alive(lease) == 60


async def test_a_watch_loses_nothing_when_members_go(
    three: Etcd, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SHORTEST", 0.0)
    async with (
        EtcdStore(three.endpoints) as store,
        EtcdStore(three.endpoints) as other,
        aclosing(store.watch(key, after=(await store.read(key)).revision)) as watch,
    ):
        for number in range(2):
            await other.put(f"{key}{number}", b"", expect=0)
            assert await keys_of(watch) == [f"{key}{number}"]
            three.kill(three.endpoints.index(store.address))
            await other.put(f"{key}again{number}", b"", expect=0)
            assert await keys_of(watch) == [f"{key}again{number}"]
            three.heal()


async def test_a_minority_is_away(three: Etcd, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SHORTEST", 0.0)
    async with (
        EtcdStore(three.endpoints, timeout=1) as store,
        aclosing(store.watch(key, after=(await store.read(key)).revision)) as watch,
    ):
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.2)
        three.kill(0)
        three.kill(1)
        with pytest.raises(StoreUnavailableError, match="connection refused"):
            await store.put(key, b"", expect=0)
        with pytest.raises(StoreUnavailableError, match=r"no leader|no answer within"):
            await asyncio.wait_for(waiting, PATIENCE)
        three.heal()
        await store.read(key)


async def test_no_write_is_lost_or_done_twice(three: Etcd, key: str) -> None:
    """Each writer adds its words to one value, while members are killed."""
    random_ = random.Random(6)

    async def add(store: EtcdStore, word: str) -> None:
        while True:
            try:
                there = (await store.read(key)).entries.get(key)
                words = there.value.decode().split() if there else []
                if word in words:
                    return
                value = " ".join([*words, word]).encode()
                await store.put(key, value, expect=there.revision if there else 0)
                return
            except (ConflictError, StoreUnavailableError):
                await asyncio.sleep(random_.uniform(0, 0.05))

    async def writer(name: str) -> None:
        async with EtcdStore(three.endpoints, timeout=2) as store:
            for number in itertools.count():
                await add(store, f"{name}{number}")
                done[name] = number + 1
                if calm.is_set():
                    return

    done: dict[str, int] = {}
    calm = asyncio.Event()
    writing = asyncio.gather(*(writer(name) for name in "abc"))
    for _ in range(2):
        await asyncio.sleep(random_.uniform(0.2, 0.5))
        killed = random_.choice([three.leader(), random_.randrange(3)])
        three.kill(killed)
        await asyncio.sleep(random_.uniform(0.2, 0.8))
        await asyncio.to_thread(three.heal)
    calm.set()
    await writing
    async with EtcdStore(three.endpoints) as store:
        words = (await store.read(key)).entries[key].value.decode().split()
    assert sorted(words) == sorted(f"{name}{n}" for name in "abc" for n in range(done[name]))
    assert min(done.values()) > 5


async def test_connections_of_a_restarted_etcd_are_opened_again(one: Etcd) -> None:
    async with EtcdStore(one.endpoints) as store:
        await store.put("/a", b"", expect=0)
        one.kill(0)
        with pytest.raises(StoreUnavailableError, match="connection refused"):
            await store.read("/a")
        one.start(0)
        one.wait(0)
        assert (await store.read("/a")).entries


@asynccontextmanager
async def deaf(etcd: Etcd) -> AsyncIterator[str]:
    """A proxy to etcd that loses every answer."""
    port = int(etcd.endpoints[0].rpartition(":")[2])

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", port)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        here.write(head + await reader.readexactly(length))
        await there.readuntil(b"\r\n\r\n")
        for end in (writer, here):
            end.close()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_an_answer_that_was_lost(one: Etcd) -> None:
    async with EtcdStore(one.endpoints) as store:
        lease = await store.grant(60)

    async with deaf(one) as lost, EtcdStore([lost, *one.endpoints]) as store:
        revision = await store.put("/a", b"1", expect=0, lease=lease)
        assert store.address == one.endpoints[0]
        read = await store.read("/a")
        assert read.entries == {"/a": Entry(b"1", revision, lease=lease, created=revision)}
        assert read.revision == revision

    async with deaf(one) as lost, EtcdStore([lost, *one.endpoints]) as store:
        await store.delete("/a", expect=revision)
        assert (await store.read("/a")).revision == revision + 1

    # Without a lease it may be another node's write of the same value.
    async with deaf(one) as lost, EtcdStore([lost, *one.endpoints]) as store:
        with pytest.raises(StoreUnavailableError, match="whether /a was written"):
            await store.put("/a", b"1", expect=0)
        assert (await store.read("/a")).revision == revision + 2

    async with deaf(one) as lost, EtcdStore([lost], timeout=1) as store:
        with pytest.raises(StoreUnavailableError, match="closed the connection"):
            await store.put("/b", b"1", expect=0)


# Members that accept connections, and never answer.


async def test_silence_is_not_waited_for(one: Etcd) -> None:
    clock = asyncio.get_running_loop().time
    async with EtcdStore(one.endpoints, timeout=0.3) as store:
        revision = await store.put("/a", b"", expect=0)
        one.freeze(0)
        calls: list[Callable[[], object]] = [
            lambda: store.read("/a"),
            lambda: store.put("/a", b"", expect=revision),
            lambda: store.delete("/a", expect=revision),
            lambda: store.grant(60),
            lambda: store.keep_alive(1),
            lambda: store.time_left(1),
            lambda: store.revoke(1),
            lambda: anext(store.watch("/a", after=revision)),
        ]
        for call in calls:
            began = clock()
            with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.3 s"):
                await call()  # type: ignore[misc]
            assert clock() - began < 5
        one.thaw(0)
        await store.read("/a")


async def test_the_next_member_is_asked(three: Etcd, key: str) -> None:
    async with EtcdStore(three.endpoints, timeout=4.5) as store:
        await store.read(key)
        silent = store.address
        three.freeze(three.endpoints.index(silent))
        await store.put(key, b"", expect=0)
        assert store.address != silent


async def test_a_silent_watch_is_doubted(
    three: Etcd, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE", 0.3)
    monkeypatch.setattr(client, "_SHORTEST", 0.0)
    async with (
        EtcdStore(three.endpoints, timeout=4.5) as store,
        aclosing(store.watch(key, after=(await store.read(key)).revision)) as watch,
    ):
        waiting = asyncio.ensure_future(anext(watch))
        silent = store.address
        await asyncio.sleep(1)
        assert store.address == silent  # silent, and alive
        three.freeze(three.endpoints.index(silent))
        async with EtcdStore([one for one in three.endpoints if one != silent]) as other:
            await other.put(key, b"", expect=0)
        assert [change.key for change in (await asyncio.wait_for(waiting, 5)).changes] == [key]
        assert store.address != silent


# History that is gone.


async def test_compaction_while_nobody_watched(one: Etcd) -> None:
    async with EtcdStore(one.endpoints) as store:
        start = await store.put("/a", b"", expect=0)
        async with aclosing(store.watch("/a", after=start)) as watch:
            revision = await store.put("/a", b"1", expect=start)
            assert await keys_of(watch) == ["/a"]
            one.compact()  # what is watched without a break does not mind
            revision = await store.put("/a", b"2", expect=revision)
            assert await keys_of(watch) == ["/a"]
        one.compact()
        async with aclosing(store.watch("/a", after=start)) as watch:
            with pytest.raises(WatchGapError, match=f"before revision {revision}"):
                await anext(watch)
        again = await store.read("/a")
        await store.put("/a", b"3", expect=revision)
        async with aclosing(store.watch("/a", after=again.revision)) as watch:
            assert await keys_of(watch) == ["/a"]


async def test_another_etcd_in_its_place(tmp_path: Path) -> None:
    with Etcd(tmp_path) as etcd:
        async with EtcdStore(etcd.endpoints) as store:
            revision = await store.put("/a", b"", expect=0)
            await store.read("/")
            etcd.kill(0)
            shutil.rmtree(tmp_path / "m0")
            etcd.words = ["--initial-cluster-token=other"]
            etcd.start(0)
            etcd.wait(0)
            async with EtcdStore(etcd.endpoints) as other:
                for name in "bcd":
                    await other.put(f"/{name}", b"", expect=0)
            async with aclosing(store.watch("/", after=revision)) as watch:
                with pytest.raises(WatchGapError):
                    await anext(watch)
            assert set((await store.read("/")).entries) == {"/b", "/c", "/d"}


async def test_a_snapshot_in_pages_is_of_one_revision(
    one: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_PAGE", 3)
    async with EtcdStore(one.endpoints) as store:
        for number in range(10):
            await store.put(f"/a/{number}", b"", expect=0)

        async def busy() -> None:
            for number in range(10, 200):
                await store.put(f"/a/{number}", b"", expect=0)
                if number % 10 == 0:
                    one.compact()

        writing = asyncio.ensure_future(busy())
        for _ in range(5):
            read = await store.read("/a/")
            assert len(read.entries) == max(entry.revision for entry in read.entries.values()) - 1
            assert read.revision == len(read.entries) + 1
        writing.cancel()
        await asyncio.wait([writing])


async def test_many_changes_at_once(one: Etcd) -> None:
    async with EtcdStore(one.endpoints) as store:
        for start in range(0, 2000, 50):
            puts = (store.put(f"/a/{start + n}", b"x" * 3000, expect=0) for n in range(50))
            await asyncio.gather(*puts)
        assert len((await store.read("/a/")).entries) == 2000
        changes = 0
        async with asyncio.timeout(PATIENCE), aclosing(store.watch("/a/", after=1)) as watch:
            async for batch in watch:
                changes += len(batch.changes)
                if batch.revision == 2001:
                    break
        assert changes == 2000


# Identification of keys and leases.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


def trusting(etcd: Etcd, ca: str, certificate: tuple[str, str] = ("", "")) -> EtcdStore:
    return EtcdStore(etcd.endpoints, cafile=ca, certfile=certificate[0], keyfile=certificate[1])


def secured(directory: Path, authority: Authority, *words: str, address: str = "127.0.0.1") -> Etcd:
    certificate, key = authority.certificate("server", address=address)
    words = (f"--cert-file={certificate}", f"--key-file={key}", *words)
    return Etcd(directory, scheme="https", words=words)


async def test_a_ca_alone_is_enough(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    with secured(tmp_path, authority) as etcd:
        async with EtcdStore(etcd.endpoints, cafile=authority.ca) as store:
            revision = await store.put("/a", b"", expect=0)
            async with aclosing(store.watch("/a", after=revision - 1)) as watch:
                assert await keys_of(watch) == ["/a"]
        for cafile in (stranger.ca, ""):
            async with EtcdStore(etcd.endpoints, cafile=cafile) as store:
                with pytest.raises(StoreRefusedError, match="certificate not trusted: "):
                    await store.read("/a")
        async with EtcdStore([etcd.endpoints[0].replace("https", "http")], timeout=1) as store:
            with pytest.raises(StoreUnavailableError):
                await store.read("/a")


async def test_a_certificate_of_another_host(tmp_path: Path, authority: Authority) -> None:
    with secured(tmp_path, authority, address="192.0.2.1") as etcd:
        async with EtcdStore(etcd.endpoints, cafile=authority.ca) as store:
            with pytest.raises(StoreRefusedError, match=r"not valid for '127\.0\.0\.1'"):
                await store.read("/a")


async def test_a_client_certificate(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    words = (f"--trusted-ca-file={authority.ca}", "--client-cert-auth")
    with secured(tmp_path, authority, *words) as etcd:
        async with trusting(etcd, authority.ca, authority.certificate("node")) as store:
            await store.put("/a", b"", expect=0)
        for certificate in (("", ""), stranger.certificate("node")):
            async with trusting(etcd, authority.ca, certificate) as store:
                with pytest.raises(
                    StoreRefusedError, match="does not accept the client certificate"
                ):
                    await store.read("/a")


async def test_tls_where_there_is_none(one: Etcd, authority: Authority) -> None:
    endpoint = one.endpoints[0].replace("http", "https")
    async with EtcdStore([endpoint], cafile=authority.ca) as store:
        with pytest.raises(StoreUnavailableError, match=r"does it speak TLS\?"):
            await store.read("/a")


async def test_one_wrong_certificate_of_two(
    tmp_path: Path, one: Etcd, authority: Authority, stranger: Authority
) -> None:
    (tmp_path / "wrong").mkdir()
    with secured(tmp_path / "wrong", stranger) as wrong:
        endpoints = [*wrong.endpoints, *one.endpoints]
        async with EtcdStore(endpoints, cafile=authority.ca) as store:
            await store.read("/a")
            assert store.address == one.endpoints[0]
            one.kill(0)
            with pytest.raises(StoreUnavailableError, match=r"connection refused.*not trusted"):
                await store.read("/a")


def test_files_that_cannot_be_used(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.certificate("files")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    missing = str(tmp_path / "missing.pem")
    other = authority.certificate("other")[1]
    for words, match in [
        ((missing, "", ""), r"CA file .*missing\.pem: no such file"),
        ((str(junk), "", ""), r"CA file .*junk\.pem: no certificate"),
        (("", certificate, ""), "needs its key"),
        (("", certificate, missing), "no such file"),
        (("", certificate, other), "key values mismatch"),
    ]:
        cafile, certfile, keyfile = words
        with pytest.raises(ConfigError, match=match):
            EtcdStore(["https://host:1"], cafile=cafile, certfile=certfile, keyfile=keyfile)
    EtcdStore(["https://host:1"], certfile=certificate, keyfile=key)


async def test_users_and_passwords(one: Etcd) -> None:
    one.enable_auth(user="node", password="secret", prefix="/a/")
    async with EtcdStore(one.endpoints, username="node", password="secret") as store:
        revision = await store.put("/a/b", b"", expect=0)
        async with aclosing(store.watch("/a/", after=revision - 1)) as watch:
            assert await keys_of(watch) == ["/a/b"]
        for call in (store.read("/b/"), anext(store.watch("/b/", after=revision))):
            with pytest.raises(StoreRefusedError, match="permission denied"):
                await call
    async with EtcdStore(one.endpoints, username="node", password="wrong") as store:
        with pytest.raises(
            StoreRefusedError, match="authentication failed, invalid user ID or password"
        ):
            await store.read("/a/")
    async with EtcdStore(one.endpoints) as store:
        with pytest.raises(StoreRefusedError, match="give a user and a password"):
            await store.read("/a/")
        with pytest.raises(StoreRefusedError, match="give a user and a password"):
            await anext(store.watch("/a/", after=revision))


async def test_a_user_where_nobody_is_asked(one: Etcd) -> None:
    async with EtcdStore(one.endpoints, username="node", password="secret") as store:
        await store.put("/a/b", b"", expect=0)


async def test_tokens_are_renewed(one: Etcd) -> None:
    """etcd removes tokens that are not used."""
    one.enable_auth(user="node", password="secret", prefix="/a/")
    async with EtcdStore(one.endpoints, username="node", password="secret") as store:
        revision = await store.put("/a/b", b"", expect=0)

        store._gateway._token = "expired.1"
        assert len(await asyncio.gather(*(store.read("/a/") for _ in range(5)))) == 5
        store._gateway._token = "expired.2"
        async with aclosing(store.watch("/a/", after=revision - 1)) as watch:
            assert await keys_of(watch) == ["/a/b"]
        store._gateway._token = "expired.3"
        await store.put("/a/b", b"", expect=revision)
