"""The underlay as one tunnel sees it: names, routes to peers, sockets of each family."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterable

from tunnel.config import Config
from tunnel.errors import ConfigError, UnderlayError
from tunnel.linux import udp
from tunnel.linux.netlink import Netlink, Path
from tunnel.types import Address, Endpoint

log = logging.getLogger(__name__)

OVERHEAD = {4: 50, 6: 70}
"""Bytes around an inner packet, by underlay family: IP, UDP, VXLAN and Ethernet headers."""

_ETHERNET_MTU = 1500  # where no peer's path is known yet
_TRAIN_BYTES = 65_000  # most that one send carries, so a datagram is no longer either
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
        self._sockets: dict[int, tuple[socket.socket, ...]] = {}
        self._paths: dict[int, Path] = {}  # by peer index

    @property
    def endpoints(self) -> list[str]:
        """Where we listen, for people."""
        port = self._config.port
        return [
            f"[{local}]:{port}" if local.version == 6 else f"{local}:{port}"
            for local in self.locals.values()
        ]

    @property
    def mtu(self) -> int:
        """Largest inner packet, in bytes, that every known path carries."""
        carried = [_carried(path) for path in self._paths.values()]
        return min(carried, default=_ETHERNET_MTU - max(OVERHEAD[family] for family in self.locals))

    async def resolve(self, endpoint: Endpoint) -> Address | None:
        """The address of a peer; None, and a line in the log, for a name that has none in
        time."""
        if endpoint.address is not None:
            return endpoint.address
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT):
                found = await asyncio.get_running_loop().getaddrinfo(
                    endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
                )
        except OSError as error:  # socket.gaierror and TimeoutError are OSErrors
            log.warning("peer %s: its name has no address: %s", endpoint, error or "no answer")
            return None
        return ipaddress.ip_address(found[0][4][0])

    async def choose_locals(self, peers: Iterable[Address]) -> None:
        """Our own address in each family of `peers`: the one configured, else that of the
        route to the first of them. The IPv4 wildcard if nothing tells."""
        if self._config.local is not None:
            self.locals[self._config.local.version] = self._config.local
        for address in peers:
            if address.version not in self.locals:
                path = await self._netlink.path_to(address)
                if path is not None:
                    self.locals[address.version] = path.source
        if not self.locals:
            self.locals[4] = ipaddress.IPv4Address("0.0.0.0")

    async def reach(self, index: int, endpoint: Endpoint, address: Address) -> None:
        """
        Learns the path to a peer. One that no route leads to may still get one.

        Raises:
            ConfigError: The configured MTU is more than the path carries.
        """
        path = await self._netlink.path_to(address)
        if path is None:
            log.warning("peer %s: no route to %s yet (see ip route get)", endpoint, address)
            return
        self.locals.setdefault(address.version, path.source)
        if self._config.mtu is not None and self._config.mtu > _carried(path):
            raise ConfigError(
                f"mtu {self._config.mtu} is more than the underlay carries to {endpoint} "
                f"(at most {_carried(path)})",
                key=("mtu",),
            )
        self._paths[index] = path

    def forget(self, index: int) -> None:
        self._paths.pop(index, None)

    async def open(self, family: int) -> list[int] | None:
        """
        Opens the sockets of a family and returns their descriptors, the one that receives
        first; None where they are open already.

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
            )
        except UnderlayError as error:
            raise await self._blame(error) from error.__cause__
        return [sock.fileno() for sock in self._sockets[family]]

    def close(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()

    async def _blame(self, error: UnderlayError) -> UnderlayError:
        """A port in use is most often a kernel vxlan device's, which ss does not show."""
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            holder = await self._netlink.vxlan_on(self._config.port)
            if holder is not None:
                return UnderlayError(
                    f"UDP port {self._config.port} is in use by the kernel's vxlan device {holder} "
                    f'(remove it with "ip link delete {holder}", or choose another --port)'
                )
        return error


def _carried(path: Path) -> int:
    return min(path.mtu, _TRAIN_BYTES) - OVERHEAD[path.source.version]
