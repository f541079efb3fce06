"""The underlay as one tunnel sees it: names, routes to peers, sockets of each family."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tunnel.config.node import Config
from tunnel.errors import ConfigError, UnderlayError
from tunnel.linux import udp
from tunnel.linux.netlink import Netlink, UnderlayPath
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Mac, Prefix

log = logging.getLogger(__name__)

OVERHEAD = {4: 50, 6: 70}
"""Bytes around an inner packet, by underlay family: IP, UDP, VXLAN and Ethernet headers."""

_ETHERNET_MTU = 1500  # where no peer's path is known yet
_TRAIN_BYTES = 65_000  # most that one send carries, so a datagram is no longer either
_GSO_MAX_SIZE = 65_536  # bytes; the kernel's default
_INNER_HEADERS = 52  # bytes
_TCP_RESERVE = 320  # bytes of the limit that sk_setup_caps() keeps back, 193 to 321
_RESOLVE_TIMEOUT = 3.0  # seconds


class Underlay:
    """
    Our addresses, sockets and paths outside the tunnel.

    Attributes:
        locals: Our address in each family (4, 6) that is used; may be the wildcard.
        abilities: What the sockets can do.
    """

    def __init__(self, config: Config, *, netlink: Netlink) -> None:
        self.locals: dict[int, Address] = {}
        self.abilities = udp.probe(config.offload)
        self._config = config
        self._netlink = netlink
        self._sockets: dict[int, list[list[socket.socket]]] = {}
        self._probes: dict[int, socket.socket] = {}
        self._paths: dict[int, UnderlayPath] = {}  # by peer index
        self._addresses: dict[int, Address] = {}  # by peer index

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where peers reach us, as far as we know: the wildcard says nothing."""
        return [
            Endpoint(str(local), self._config.port)
            for local in self.locals.values()
            if not local.is_unspecified
        ]

    @property
    def mac(self) -> Mac:
        """Our VTEP's: the one configured, else made of VNI, address and port, so that it is
        the same after a restart. The wildcard tells nodes not apart: there the machine's own
        id stands in for it (machine-id(5)), or chance where there is none."""
        if self._config.mac is not None:
            return self._config.mac
        local = next(iter(self.locals.values()))
        place = _machine_id() if local.is_unspecified else str(local)
        identity = f"{self._config.vni} {place} {self._config.port}"
        digest = bytearray(hashlib.blake2s(identity.encode(), digest_size=6).digest())
        digest[0] = digest[0] & 0xFC | 0x02  # unicast, locally administered
        if bytes(digest) == ANY_VTEP_MAC.packed:
            digest[5] ^= 1
        return Mac(bytes(digest))

    @property
    def mtu(self) -> int:
        """Largest inner packet, in bytes: the one configured, else what every known path
        carries."""
        if self._config.mtu is not None:
            return self._config.mtu
        unknown = _ETHERNET_MTU - max(OVERHEAD[family] for family in self.locals)
        return min((_carried_by(path) for path in self._paths.values()), default=unknown)

    @property
    def gso_max_size(self) -> int:
        """
        Largest super-packet, in bytes, of which the kernel's TCP makes one train: each
        datagram repeats the inner headers and adds 22 bytes of VXLAN and Ethernet.

        Inner headers are counted as IPv4 with TCP timestamps has them. IPv6 has 20 bytes
        more, which makes no whole segment more at any MTU that IPv6 allows.

        A host that forwards keeps the kernel's default: containers make super-packets as
        large as their own devices allow, and the kernel cuts up in software what is larger
        than ours. That more than halves their throughput (2.4 for 5.9 Gbit/s, one stream,
        two cores), while two trains for one super-packet cost the host's own streams about
        a tenth.
        """
        # Forwarding is often turned on later, by the one who adds the first container.
        if self.abilities.segments == 1 or _forwards() or self._config.networks:
            return _GSO_MAX_SIZE
        datagrams = min(self.abilities.segments, _TRAIN_BYTES // (self.mtu + 22))
        return _INNER_HEADERS + datagrams * (self.mtu - _INNER_HEADERS) + _TCP_RESERVE

    def listening_addresses(self) -> list[str]:
        """Where we listen, for people."""
        port = self._config.port
        return [
            f"[{local}]:{port}" if local.version == 6 else f"{local}:{port}"
            for local in self.locals.values()
        ]

    async def resolve(self, endpoint: Endpoint) -> Address | UnderlayError:
        """The address of a peer; returns why not for a name that has none in time."""
        if endpoint.address is not None:
            return endpoint.address
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT):
                found = await asyncio.get_running_loop().getaddrinfo(
                    endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
                )
        except OSError as error:  # socket.gaierror and TimeoutError are OSErrors
            return UnderlayError(f"its name has no address: {error.strerror or 'no answer'}")
        return ipaddress.ip_address(found[0][4][0])

    async def choose_local_addresses(self, peers: Iterable[Address]) -> None:
        """Our own address in each family of `peers`: the one configured, else that of the
        route to the first of them. The IPv4 wildcard if nothing tells."""
        if self._config.local is not None:
            self.locals[self._config.local.version] = self._config.local
        for address in peers:
            if address.version not in self.locals:
                path = await self._netlink.get_path(address)
                if path is not None:
                    self.locals[address.version] = path.source
        if not self.locals:
            self.locals[4] = ipaddress.IPv4Address("0.0.0.0")

    async def resolve_paths(
        self, peers: Mapping[int, tuple[Endpoint, Address]]
    ) -> dict[Endpoint, ConfigError]:
        """Learns the paths to peers, by index. One that no route leads to may still get one.
        Returns those that cannot be peers, with why."""
        refused = {}
        paths = await self._netlink.get_paths([address for _, address in peers.values()])
        for (index, (endpoint, address)), path in zip(peers.items(), paths, strict=True):
            if path is None:
                log.warning("peer %s: no route to %s yet (see ip route get)", endpoint, address)
            elif (fault := self._check(endpoint, address, path)) is not None:
                refused[endpoint] = fault
                continue
            else:
                self._paths[index] = path
            self._addresses[index] = address
        return refused

    def _check(
        self, endpoint: Endpoint, address: Address, path: UnderlayPath
    ) -> ConfigError | None:
        local = self.locals.setdefault(address.version, path.source)
        if (address, endpoint.port) == (local, self._config.port):
            return ConfigError(f"peer {endpoint} is this node itself (leave it out)")
        carried, wanted = _carried_by(path), self._config.mtu
        if wanted is not None and wanted > carried:
            return ConfigError(
                f"mtu {wanted} is more than the underlay carries (at most {carried})", key=("mtu",)
            )
        return None

    def has_path_to(self, index: int, address: Address) -> bool:
        """Whether a peer was there already when it was last reached for."""
        return self._addresses.get(index) == address

    def remove_peer(self, index: int) -> None:
        self._paths.pop(index, None)
        self._addresses.pop(index, None)

    async def check_prefixes(
        self, prefixes: Iterable[Prefix], *, device: int
    ) -> dict[Prefix, ConfigError]:
        """Sees that datagrams to peers inside of overlay prefixes stay outside of the tunnel.
        Returns those of `prefixes` for which the kernel would send them to our own `device`, for
        ever."""
        held = _held(self._addresses.values(), prefixes)
        paths = await self._netlink.get_paths(list(held))
        return {
            prefix: ConfigError(
                f"prefix {prefix} holds the peer address {address} itself: its datagrams "
                f"would go into the tunnel (give {address} a kernel route of its own first)"
            )
            for (address, prefix), path in zip(held.items(), paths, strict=True)
            if path is not None and path.device == device
        }

    async def open(self, family: int, *, workers: int) -> list[list[int]] | None:
        """
        Opens the sockets of a family and returns each worker's descriptors, the one that
        receives first; None where they are open already.

        Raises:
            UnderlayError: The port is in use, or the local address is not ours.
        """
        if family in self._sockets:
            return None
        wildcard = ipaddress.ip_address("0.0.0.0" if family == 4 else "::")
        local = self.locals.setdefault(family, wildcard)
        try:
            self._sockets[family] = udp.open_sockets(
                local,
                port=self._config.port,
                count=self._config.source_ports,
                gro=self.abilities.gro,
                workers=workers,
            )
        except UnderlayError as error:
            raise await self._blame(error) from error.__cause__
        return [[sock.fileno() for sock in own] for own in self._sockets[family]]

    def max_inner_packet(self, index: int) -> int | None:
        """Largest inner packet, in bytes, that the first hop towards a peer takes; None where no
        route leads to it."""
        path = self._paths.get(index)
        return None if path is None else _carried_by(path)

    def source_port(self, descriptor: int) -> int:
        """UDP port that a socket of ours, known by its descriptor, sends from."""
        every = (sock for sockets in self._sockets.values() for own in sockets for sock in own)
        return next(int(sock.getsockname()[1]) for sock in every if sock.fileno() == descriptor)

    def send(self, datagram: bytes, address: Address, port: int, *, dont_fragment: bool) -> None:
        """Sends from the port that receives, or, where it must arrive whole or not at all, from
        one for that. What cannot be sent is lost."""
        with suppress(OSError):
            sock = self._sockets[address.version][0][0]
            if dont_fragment:
                sock = self._probe(address.version)
            sock.sendto(datagram, (str(address), port))

    def send_train(self, datagrams: Sequence[bytes], address: Address, port: int) -> None:
        """Sends datagrams of one size as one train, or not at all."""
        with suppress(OSError):
            sock = self._sockets[address.version][0][0]
            udp.send_train(sock, b"".join(datagrams), len(datagrams[0]), (str(address), port))

    def _probe(self, family: int) -> socket.socket:
        if family not in self._probes:
            self._probes[family] = udp.open_probe_socket(self.locals[family])
        return self._probes[family]

    def close(self) -> None:
        udp.close_sockets([self._probes.values()])
        for sockets in self._sockets.values():
            udp.close_sockets(sockets)

    async def _blame(self, error: UnderlayError) -> UnderlayError:
        """A port in use is most often a kernel vxlan device's, which ss does not show."""
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            holder = await self._netlink.find_vxlan_device(self._config.port)
            if holder is not None:
                return UnderlayError(
                    f"UDP port {self._config.port} is in use by the kernel's vxlan device {holder} "
                    f'(remove it with "ip link delete {holder}", or choose another --port)'
                )
        return error


def _carried_by(path: UnderlayPath) -> int:
    return min(path.mtu, _TRAIN_BYTES) - OVERHEAD[path.source.version]


def _held(addresses: Iterable[Address], prefixes: Iterable[Prefix]) -> dict[Address, Prefix]:
    """Those addresses that are in one of the prefixes, of which there may be very many, but of
    few lengths."""
    every = set(prefixes)
    lengths = {(prefix.version, prefix.prefixlen) for prefix in every}
    around = (
        (address, ipaddress.ip_network((address, length), strict=False))
        for address in addresses
        for version, length in lengths
        if version == address.version
    )
    return {address: prefix for address, prefix in around if prefix in every}


def _forwards() -> bool:
    """Whether this host, in our network namespace, routes others' packets."""
    switches = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    paths = [Path("/proc/sys/net", switch) for switch in switches]
    return any(path.exists() and path.read_text().strip() != "0" for path in paths)


def _machine_id() -> str:
    try:
        with open("/etc/machine-id", encoding="utf-8") as file:
            return file.read().strip() or os.urandom(16).hex()
    except OSError:
        return os.urandom(16).hex()
