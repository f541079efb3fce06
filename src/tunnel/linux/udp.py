"""UDP sockets of one underlay family, and the UDP offloads of this kernel."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from tunnel.errors import UnderlayError
from tunnel.linux.bpf import DROP_ALL, attach_filter
from tunnel.types import Address

_UDP_SEGMENT, _UDP_GRO = 103, 104
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_RXQ_OVFL = 32, 33, 40
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_PROBE = 10, 23, 0, 3
_TTL = 64

BUFFER = 8 << 20
"""Bytes of a socket's buffer in each direction: 5 ms of 10 Gbit/s, as long as one slow wake-up."""


@dataclass(frozen=True)
class Abilities:
    """
    The UDP offloads of this kernel.

    Attributes:
        segments: Most datagrams in one train, 1 for no trains.
        gro: Whether the kernel may deliver received trains unsegmented.
        reasons: One line for each offload that is wanted and off.
    """

    segments: int
    gro: bool
    reasons: tuple[str, ...] = ()


def probe(offloads: frozenset[str], *, release: str | None = None) -> Abilities:
    """
    Returns which of ``trains`` and ``gro`` to use, of those that `offloads` contains.

    Args:
        release: The kernel's, like ``6.8.0-31-generic``; by default that of the running one. It
            decides, because no local test shows the faults of a bad version.
    """
    kernel = _version(os.uname().release if release is None else release)
    segments, gro, reasons = 1, False, []
    if "trains" in offloads:
        if (7, 0, 0) <= kernel <= (7, 1, 4):
            reasons.append("trains off: kernels 7.0 to 7.1.4 corrupt them")
        elif not _has_option(_UDP_SEGMENT):
            reasons.append("trains off: this kernel has no UDP_SEGMENT (Linux 4.18)")
        else:
            segments = 127 if kernel >= (6, 9, 0) else 63
    if "gro" in offloads:
        gro = kernel >= (5, 12, 0) and _has_option(_UDP_GRO)
        if not gro:
            reasons.append("gro off: UDP_GRO is broken or missing before Linux 5.12")
    return Abilities(segments, gro, tuple(reasons))


def open_sockets(
    local: Address, *, port: int, count: int, gro: bool, workers: int = 1
) -> list[list[socket.socket]]:
    """
    Opens non-blocking sockets on `local`, a list of them for each worker.

    The first of each list is bound to `port` and receives: the kernel assigns each flow of
    datagrams to one of them. The others, `count` - 1 in all, have ports of their own and only send.

    Raises:
        UnderlayError: The address is not one of this host, or the port is in use (its cause has
            errno EADDRINUSE).
    """
    opened: list[list[socket.socket]] = [[] for _ in range(workers)]
    try:
        for number in range(workers):
            receiving = _open_socket(local)
            opened[number].append(receiving)
            _prepare_input(receiving, gro=gro)
            # Not before the first is bound: another program's port must not be shared.
            if number:
                receiving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            receiving.bind((str(local), port))
            if workers > 1 and not number:
                receiving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for number in range(count - 1):
            sending = _open_socket(local)
            # The first worker sends from `port` already.
            opened[(number + 1) % workers].append(sending)
            _drop_input(sending)
            sending.bind((str(local), 0))
    except OSError as error:
        close_sockets(opened)
        raise UnderlayError(_reason(local, port, error)) from error
    return opened


def open_probe_socket(local: Address) -> socket.socket:
    """
    Opens a socket whose datagrams no router may fragment, and that ignores the kernel's path MTU:
    they arrive whole or not at all. It has a port of its own and only sends.

    Raises:
        OSError
    """
    sock = _open_socket(local)
    try:
        if local.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
        _drop_input(sock)
        sock.bind((str(local), 0))
    except OSError:
        sock.close()
        raise
    return sock


def send_train(sock: socket.socket, train: bytes, size: int, to: tuple[str, int]) -> None:
    """Sends `train` in one call as datagrams of `size` bytes, of which the last may be shorter."""
    segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", size))
    sock.sendmsg([train], [segment], 0, to)


def granted_buffers() -> tuple[int, int]:
    """Bytes of the send and the receive buffer that this process gets, :data:`BUFFER` at most."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _set_buffer(sock, force=_SO_SNDBUFFORCE, plain=socket.SO_SNDBUF)
        _set_buffer(sock, force=_SO_RCVBUFFORCE, plain=socket.SO_RCVBUF)
        # The kernel doubles the request, for its own bookkeeping.
        send = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        return send, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def close_sockets(opened: Iterable[Iterable[socket.socket]]) -> None:
    for sock in chain.from_iterable(opened):
        sock.close()


def _open_socket(local: Address) -> socket.socket:
    """A socket that sends as a kernel vxlan device does: TTL 64, never DF, and with checksums,
    which UDP_SEGMENT and IPv6 require."""
    sock = socket.socket(
        socket.AF_INET if local.version == 4 else socket.AF_INET6,
        socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    if local.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _TTL)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _TTL)
    _set_buffer(sock, force=_SO_SNDBUFFORCE, plain=socket.SO_SNDBUF)
    return sock


def _prepare_input(sock: socket.socket, *, gro: bool) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    if gro:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
    _set_buffer(sock, force=_SO_RCVBUFFORCE, plain=socket.SO_RCVBUF)


def _drop_input(sock: socket.socket) -> None:
    """Drops everything that arrives at a socket that is never read."""
    attach_filter(sock, DROP_ALL)


def _set_buffer(sock: socket.socket, *, force: int, plain: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, BUFFER)
    except PermissionError:
        # Capped by net.core.[rw]mem_max, silently.
        sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)


def _has_option(option: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(socket.IPPROTO_UDP, option)
        except OSError:
            return False
    return True


def _version(release: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", release.partition("-")[0])]
    return tuple([*numbers, 0, 0][:3])


def _reason(local: Address, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"UDP port {port} on {local} is in use "
                f'(find the process with "ss -ulnp sport = :{port}", or choose another --port)'
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"local address {local} is not on this host "
                '(choose one that "ip address" shows with --local)'
            )
        case errno.EACCES:
            return f"UDP port {port} is privileged (choose a --port from 1024 up)"
        case errno.EAFNOSUPPORT:
            return f"local address {local}: this kernel has no IPv6"
    return f"cannot open UDP port {port} on {local}: {error.strerror}"
