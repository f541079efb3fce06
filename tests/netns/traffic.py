"""
Traffic between hosts that counts what arrives.

A socket belongs to the namespace it was made in, for ever: the test's own process makes one
on each host, and holds both ends.
"""

import ctypes
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tunnel.testing.lab import Host

_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_TIMEOUT = 10.0  # seconds without any progress
_PAYLOAD = 1200  # bytes of a numbered datagram
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Sockets that this thread makes in the block are the host's."""
    with open("/proc/thread-self/ns/net") as home, open(f"/proc/{host.pid}/ns/net") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def exchange(a: Host, b: Host, address: str, *, size: int = 32 << 20) -> None:
    """Sends `size` random bytes each way at once over one TCP connection from `a` to `b` at
    `address`. What arrives is what was sent."""
    contents = os.urandom(size), os.urandom(size)
    with connected(a, b, address) as ends, ThreadPoolExecutor(4) as pool:
        received = [pool.submit(_receive, end) for end in ends]
        for end, content in zip(ends, contents, strict=True):
            pool.submit(_send, end, content)
        assert [one.result() for one in received] == [_digest(one) for one in reversed(contents)]


@contextmanager
def connected(a: Host, b: Host, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection from `a` to `b` at `address`."""
    family = _family(address)
    with inside(b):
        server = socket.create_server((address, 0), family=family)
    with inside(a):
        near = socket.socket(family)
    with server, near:
        near.settimeout(_TIMEOUT)
        server.settimeout(_TIMEOUT)
        near.connect(server.getsockname())
        far, _ = server.accept()
        with far:
            far.settimeout(_TIMEOUT)
            yield near, far


def _send(end: socket.socket, content: bytes) -> None:
    end.sendall(content)
    end.shutdown(socket.SHUT_WR)


def _receive(end: socket.socket) -> tuple[int, str]:
    received = bytearray()
    while piece := end.recv(1 << 20):
        received += piece
    return _digest(received)


def _digest(content: bytes | bytearray) -> tuple[int, str]:
    """Short enough for the message of a failed assertion."""
    return len(content), hashlib.sha256(content).hexdigest()


@contextmanager
def numbered(a: Host, b: Host, address: str, *, pause: float = 0.0005) -> Iterator[None]:
    """Sends numbered datagrams from `a` to `b` at `address` for as long as the block takes,
    one each `pause` seconds. Every one arrives, once and in order."""
    family = _family(address)
    with inside(a):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with inside(b):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
    with sender, receiver, ThreadPoolExecutor(2) as pool:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        receiver.bind((address, 0))
        sender.connect(receiver.getsockname())
        stop = threading.Event()
        sent = pool.submit(_send_numbers, sender, stop, pause=pause)
        arrived = pool.submit(_receive_numbers, receiver)
        try:
            yield
        finally:
            stop.set()
    missing = sorted(set(range(sent.result())) - set(arrived.result()))
    assert not missing, f"{len(missing)} of {sent.result()} lost: {missing[:20]}"
    assert arrived.result() == list(range(sent.result()))


def _send_numbers(sender: socket.socket, stop: threading.Event, *, pause: float) -> int:
    number = 0
    while not stop.is_set():
        sender.send(number.to_bytes(8).ljust(_PAYLOAD, b"."))
        number += 1
        time.sleep(pause)
    # What follows is no number: the receiver stops there.
    sender.send(b"end")
    return number


def _receive_numbers(receiver: socket.socket) -> list[int]:
    numbers = []
    receiver.settimeout(_TIMEOUT)
    while len(datagram := receiver.recv(2048)) == _PAYLOAD:
        numbers.append(int.from_bytes(datagram[:8]))
    return numbers


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
