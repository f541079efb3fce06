"""The underlay of one node: names, paths to peers, sockets of each family."""

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
from tunnel.linux.resolver import Resolver
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Mac, Prefix

log = logging.getLogger(__name__)

OVERHEAD = {4: 50, 6: 70}
"""Bytes around an inner packet, by underlay family: IP, UDP, VXLAN and Ethernet headers."""

_ETHERNET_MTU = 1500  # where no peer's path is known yet
_TRAIN_BYTES = 65_000  # at most in one send, and so in one datagram
_GSO_MAX_SIZE = 65_536  # bytes; the kernel's default
_INNER_HEADERS = 52  # bytes
_TCP_RESERVE = 320  # bytes of the limit that sk_setup_caps() reserves, 193 to 321
_RESOLVE_TIMEOUT = 3.0  # seconds


class Underlay:
    """
    The addresses, sockets and paths of this node outside the tunnel.

    Attributes:
        locals: The local address of each family (4, 6) in use; may be the wildcard.
        abilities: What the sockets can do.
    """

    def __init__(self, config: Config, *, netlink: Netlink) -> None:
        self.locals: dict[int, Address] = {}
        self.abilities = udp.probe(config.offload)
        self._config = config
        self._netlink = netlink
        self._resolver = Resolver()
        # Without a machine id the MAC differs after a restart, but not from one frame to the next.
        self._machine_id = _machine_id() or os.urandom(16).hex()
        self._sockets: dict[int, list[list[socket.socket]]] = {}
        self._probes: dict[int, socket.socket] = {}
        self._paths: dict[int, UnderlayPath] = {}  # by peer index
        self._addresses: dict[int, Address] = {}  # by peer index

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints that peers can send to; none for the wildcard."""
        return [
            Endpoint(str(local), self._config.port)
            for local in self.locals.values()
            if not local.is_unspecified
        ]

    @property
    def mac(self) -> Mac:
        """
        The MAC of this node's VTEP: the one configured, else a hash of VNI, local address and port,
        so that it is the same after a restart.

        The wildcard address does not distinguish nodes. In place of it the hash has the machine id
        (machine-id(5)), or a random number when there is none, as in most containers.
        """
        if self._config.mac is not None:
            return self._config.mac
        local = next(iter(self.locals.values()))
        place = self._machine_id if local.is_unspecified else str(local)
        identity = f"{self._config.vni} {place} {self._config.port}"
        digest = bytearray(hashlib.blake2s(identity.encode(), digest_size=6).digest())
        digest[0] = digest[0] & 0xFC | 0x02  # unicast, locally administered
        if bytes(digest) == ANY_VTEP_MAC.packed:
            digest[5] ^= 1
        return Mac(bytes(digest))

    @property
    def mtu(self) -> int:
        """Largest inner packet in bytes: the one configured, else the largest that every known path
        carries."""
        if self._config.mtu is not None:
            return self._config.mtu
        unknown = _ETHERNET_MTU - max(OVERHEAD[family] for family in self.locals)
        return min((_carried_by(path) for path in self._paths.values()), default=unknown)

    @property
    def gso_max_size(self) -> int:
        """
        Largest super-packet in bytes that the kernel's TCP may make, so that it becomes one train:
        each datagram repeats the inner headers and adds 22 bytes of VXLAN and Ethernet.

        Inner headers are counted as those of IPv4 with TCP timestamps. IPv6 has 20 bytes more,
        which is never a whole segment at an MTU that IPv6 allows.

        A host that forwards keeps the kernel's default. Containers make super-packets as large as
        their own devices allow, and the kernel segments larger ones than this device's in software.
        That more than halves their throughput (2.4 instead of 5.9 Gbit/s, one stream, two cores),
        while two trains for one super-packet cost the host's own streams about a tenth.
        """
        # Forwarding is often turned on later, with the first container.
        if self.abilities.segments == 1 or _forwards() or self._config.networks:
            return _GSO_MAX_SIZE
        datagrams = min(self.abilities.segments, _TRAIN_BYTES // (self.mtu + 22))
        return _INNER_HEADERS + datagrams * (self.mtu - _INNER_HEADERS) + _TCP_RESERVE

    def listening_addresses(self) -> list[str]:
        """The local addresses with their port, for messages."""
        port = self._config.port
        return [
            f"[{local}]:{port}" if local.version == 6 else f"{local}:{port}"
            for local in self.locals.values()
        ]

    async def resolve(self, endpoint: Endpoint) -> Address | UnderlayError:
        """Returns the address of a peer, or the error when its name has none within 3 s or the
        node closes. If cancelled, nothing waits for the look-up."""
        if endpoint.address is not None:
            return endpoint.address
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT):
                return await self._resolver.resolve(endpoint.host)
        except OSError as error:  # socket.gaierror and TimeoutError are OSErrors
            return UnderlayError(f"its name has no address: {error.strerror or 'no answer'}")

    async def choose_local_addresses(self, peers: Iterable[Address]) -> None:
        """Sets the local address of each family of `peers`: the one configured, else the source of
        the route to the first of them. Without either it is the IPv4 wildcard."""
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
        """Reads the paths to peers, given by their indices. A peer without a route is accepted: it
        may get one later. Returns why peers were refused."""
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
        """Whether `address` is the one to which the peer's path was last read."""
        return self._addresses.get(index) == address

    def remove_peer(self, index: int) -> None:
        self._paths.pop(index, None)
        self._addresses.pop(index, None)

    async def check_prefixes(
        self, prefixes: Iterable[Prefix], *, device: int
    ) -> dict[Prefix, ConfigError]:
        """Returns those of `prefixes` that contain the underlay address of a peer which the kernel
        routes to this node's own `device`: its datagrams would loop."""
        held = _peers_within(self._addresses.values(), prefixes)
        paths = await self._netlink.get_paths(list(held))
        return {
            prefix: ConfigError(
                f"prefix {prefix} contains the peer address {address} itself: its datagrams "
                f"would go into the tunnel (give {address} a kernel route of its own first)"
            )
            for (address, prefix), path in zip(held.items(), paths, strict=True)
            if path is not None and path.device == device
        }

    async def open(self, family: int, *, workers: int) -> list[list[int]] | None:
        """
        Opens the sockets of a family and returns each worker's descriptors, beginning with the one
        that receives; None when they are open already.

        Raises:
            UnderlayError: The port is in use, or the local address is not one of this host.
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
            del self.locals[family]  # nothing listens there
            raise await self._name_port_owner(error) from error.__cause__
        return [[sock.fileno() for sock in own] for own in self._sockets[family]]

    def max_inner_packet(self, index: int) -> int | None:
        """Largest inner packet in bytes that fits the first hop towards a peer; None when no route
        leads to it."""
        path = self._paths.get(index)
        return None if path is None else _carried_by(path)

    def source_port(self, descriptor: int) -> int:
        """UDP port from which the socket with this descriptor sends."""
        every = (sock for sockets in self._sockets.values() for own in sockets for sock in own)
        return next(int(sock.getsockname()[1]) for sock in every if sock.fileno() == descriptor)

    def send(self, datagram: bytes, address: Address, port: int, *, dont_fragment: bool) -> None:
        """Sends from the port that receives, or, when the datagram must not be fragmented, from a
        socket for that. A datagram that cannot be sent is lost."""
        with suppress(OSError):
            sock = self._sockets[address.version][0][0]
            if dont_fragment:
                sock = self._probe(address.version)
            sock.sendto(datagram, (str(address), port))

    def send_train(self, datagrams: Sequence[bytes], address: Address, port: int) -> None:
        """Sends datagrams of one size as one train, or none of them."""
        with suppress(OSError):
            sock = self._sockets[address.version][0][0]
            udp.send_train(sock, b"".join(datagrams), len(datagrams[0]), (str(address), port))

    def _probe(self, family: int) -> socket.socket:
        if family not in self._probes:
            self._probes[family] = udp.open_probe_socket(self.locals[family])
        return self._probes[family]

    def close(self) -> None:
        """Closes the sockets and ends every look-up."""
        self._resolver.close()
        udp.close_sockets([self._probes.values()])
        for sockets in self._sockets.values():
            udp.close_sockets(sockets)

    async def _name_port_owner(self, error: UnderlayError) -> UnderlayError:
        """Adds the name of a kernel vxlan device that has the port, which ss does not show."""
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


def _peers_within(
    addresses: Iterable[Address], prefixes: Iterable[Prefix]
) -> dict[Address, Prefix]:
    """The addresses within one of the prefixes, of which there may be very many, but of few
    lengths."""
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
    """Whether this network namespace forwards packets."""
    switches = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
    paths = [Path("/proc/sys/net", switch) for switch in switches]
    return any(path.exists() and path.read_text().strip() != "0" for path in paths)


def _machine_id() -> str:
    """Empty when there is none."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
