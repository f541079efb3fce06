"""Requests to the kernel: their answers, and missing answers."""

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel.errors import DeviceError
from tunnel.linux import netlink_socket, rtnetlink
from tunnel.linux.netlink import Netlink
from tunnel.linux.netlink_socket import NetlinkSocket, pack_attributes, parse_attributes

LINKS = rtnetlink.link_request()


@pytest.fixture
def kernel() -> Iterator[NetlinkSocket]:
    opened = NetlinkSocket()
    yield opened
    opened.close()


@pytest.fixture
def silent(kernel: NetlinkSocket, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The far end of `kernel`, which answers nothing by itself."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        kernel._socket.close()
        monkeypatch.setattr(kernel, "_socket", near)
        monkeypatch.setattr(netlink_socket, "TIME_LIMIT", 0.05)
        yield far


def ask(kernel: NetlinkSocket, call: str) -> asyncio.Task[list[Any]]:
    if call == "request":
        return asyncio.create_task(kernel.request(rtnetlink.GETLINK, [LINKS], flags=0))
    return asyncio.create_task(kernel.dump(rtnetlink.GETLINK, LINKS, bool))


def message(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body


async def test_each_request_has_its_answer(kernel: NetlinkSocket) -> None:
    bodies = [rtnetlink.link_by_name("lo"), rtnetlink.link_by_name("nowhere0")] * 100
    answers = await kernel.request(rtnetlink.GETLINK, bodies, flags=0)
    for found, missing in zip(answers[::2], answers[1::2], strict=True):
        assert isinstance(found, bytes)
        assert rtnetlink.Link.parse(found).name == "lo"
        assert missing == errno.ENODEV


async def test_a_dump_leaves_out_unwanted_messages(kernel: NetlinkSocket) -> None:
    links = await kernel.dump(rtnetlink.GETLINK, LINKS, rtnetlink.Link.parse)
    assert "lo" in [link.name for link in links]
    assert await kernel.dump(rtnetlink.GETLINK, LINKS, lambda _: None) == []


async def test_a_filter_that_the_kernel_does_not_know_is_refused(kernel: NetlinkSocket) -> None:
    with pytest.raises(DeviceError, match="invalid argument"):
        await kernel.dump(rtnetlink.GETLINK, rtnetlink.link_request(7), lambda _: None)
    assert await kernel.dump(rtnetlink.GETLINK, LINKS, bool)


@pytest.mark.parametrize("call", ["request", "dump"])
async def test_an_answer_that_does_not_come_is_an_error(
    kernel: NetlinkSocket, silent: socket.socket, call: str
) -> None:
    for _ in range(2):
        asking = ask(kernel, call)
        with pytest.raises(DeviceError, match="did not answer on netlink within"):
            await asking


async def test_a_late_answer_is_discarded(kernel: NetlinkSocket, silent: socket.socket) -> None:
    with pytest.raises(DeviceError):
        await kernel.request(rtnetlink.GETLINK, [LINKS], flags=0)
    (late,) = struct.unpack_from("=8xI", silent.recv(1000))
    silent.send(message(16, late, b"late"))
    asking = asyncio.create_task(kernel.request(rtnetlink.GETLINK, [LINKS], flags=0))
    await asyncio.sleep(0)
    (number,) = struct.unpack_from("=8xI", silent.recv(1000))
    silent.send(message(16, number, b"in time"))
    assert await asking == [b"in time"]


@pytest.mark.parametrize("call", ["request", "dump"])
async def test_closing_ends_every_request_at_once(
    kernel: NetlinkSocket, silent: socket.socket, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink_socket, "TIME_LIMIT", 60.0)
    waiting = [ask(kernel, call) for _ in range(3)]
    await asyncio.sleep(0.01)
    kernel.close()
    kernel.close()
    async with asyncio.timeout(1):
        for task in [*waiting, ask(kernel, call)]:
            with pytest.raises(DeviceError, match="the node is closed"):
                await task


async def test_once_closed_every_method_raises_at_once() -> None:
    async with Netlink() as netlink:
        pass
    begun = time.monotonic()
    for call in (netlink.interfaces(), netlink.is_up("lo"), netlink.routes(1)):
        with pytest.raises(DeviceError, match="the node is closed"):
            await call
    assert time.monotonic() - begun < 1


async def test_a_cancelled_dump_holds_up_nothing(kernel: NetlinkSocket) -> None:
    for steps in range(5):
        dump = asyncio.create_task(kernel.dump(rtnetlink.GETLINK, LINKS, bool))
        for _ in range(steps):
            await asyncio.sleep(0)
        dump.cancel()
        await asyncio.wait([dump])
        assert await kernel.dump(rtnetlink.GETLINK, LINKS, bool)


async def test_a_send_that_fails_is_a_device_error(
    kernel: NetlinkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def send(self, _: bytes) -> None:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        def close(self) -> None:
            pass

    kernel._socket.close()
    monkeypatch.setattr(kernel, "_socket", Full())
    with pytest.raises(DeviceError, match="no buffer space available") as caught:
        await kernel.request(rtnetlink.GETLINK, [LINKS])
    assert isinstance(caught.value.__cause__, OSError)


def test_attributes_are_aligned_and_read_again() -> None:
    attributes = {1: b"", 2: b"x", 3: b"1234", 4: b"12345"}
    packed = pack_attributes(attributes)
    assert len(packed) % 4 == 0
    assert parse_attributes(packed) == attributes
    nested = struct.pack("=HH", 4, 0x8000 | 5)  # NLA_F_NESTED
    assert parse_attributes(nested) == {5: b""}
    assert parse_attributes(bytes(8)) == {0: b""}  # a length of 0 ends it
