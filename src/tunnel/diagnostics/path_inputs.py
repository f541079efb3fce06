"""
What is to be known of one packet's way through a running tunnel, gathered for ``control/walk.py``.

    kernel routes and neighbours, the packet path itself, peers  ->  Facts

Nothing is sent and nothing changes: the kernel and the packet path are asked what they would do.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunnel._native import DROP_REASONS
from tunnel.diagnostics.flow import Flow
from tunnel.diagnostics.host_report import FORWARDING
from tunnel.diagnostics.path_trace import Passage, TraceInputs
from tunnel.errors import ConfigError
from tunnel.linux import hostinfo
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.node.node import Node
from tunnel.status import PeerStatus, Status
from tunnel.types import Address, KernelNeighbour, KernelRoute, Mac

_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}


@dataclass(frozen=True)
class Explainer:
    """Asks the parts of a node, whose `status` is as it is now."""

    node: Node
    status: Status

    async def gather(
        self,
        destination: Address,
        *,
        source: Address | None,
        size: int,
        protocol: str,
        sport: int,
        dport: int,
    ) -> TraceInputs:
        """
        Raises:
            ConfigError: There is no such packet, or nobody can tell whose it is.
        """
        if self.node.fdb is not None and isinstance(self.node.device, SocketPair):
            raise ConfigError(
                f"{self.status.name} has no device: the program itself says to which MAC a packet "
                "goes (open it with a device, or with mode tun)"
            )
        inbound = await self._is_ours(destination)
        if source is None:
            if inbound:
                raise ConfigError(
                    f"{destination} is ours: whose packet is on its way to it? "
                    f"(add --from ADDRESS{self._example(destination.version)})"
                )
            source = await self._choose_source(destination)
        elif inbound:
            inbound = not await self._is_ours(source)
        flow = Flow(destination, source, size, protocol, sport, dport)
        return await (self._inbound(flow) if inbound else self._outbound(flow))

    async def _outbound(self, flow: Flow) -> TraceInputs:
        kernel, neighbour, known = None, None, True
        arrival: str | None = ""
        if isinstance(self.node.device, Device):
            arrival = await self._arrival(flow.source)
            kernel = await self.node.netlink.get_route(
                flow.destination, source=flow.source, arrival=arrival or ""
            )
            neighbour = await self._next_hop(kernel, flow.destination)
            known = self.node.fdb is None or bool(neighbour and neighbour.mac)
        passages = self._trace(flow, kernel, neighbour) if known else []
        peer = passages[0].peer if passages else None
        route, hop, local = await self._underlay_of(peer)
        return TraceInputs(
            flow=flow,
            status=self.status,
            inbound=False,
            mode=self._mode,
            up=self.status.device_up,
            arrival=arrival,
            kernel=kernel,
            neighbour=neighbour,
            bridge=await self._bridge(),
            forwards=_forwards(flow.version),
            passages=passages,
            entry=self._entry(neighbour),
            underlay=route,
            hop=hop,
            local=local,
        )

    async def _inbound(self, flow: Flow) -> TraceInputs:
        kernel, neighbour = None, None
        if isinstance(self.node.device, Device):
            arrival = await self._bridge() or self.node.device.name
            kernel = await self.node.netlink.get_route(
                flow.destination, source=flow.source, arrival=arrival
            )
            neighbour = await self._next_hop(kernel, flow.destination)
        return TraceInputs(
            flow=flow,
            status=self.status,
            inbound=True,
            mode=self._mode,
            up=self.status.device_up,
            kernel=kernel,
            neighbour=neighbour,
            forwards=_forwards(flow.version),
            owner=self._peer_at(self.node.workers.owner(flow.source.packed)),
        )

    # The packet path.

    def _trace(
        self, flow: Flow, kernel: KernelRoute | None, neighbour: KernelNeighbour | None
    ) -> list[Passage]:
        packet = flow.packet(self.status.mtu if self._mode else flow.size)
        if self.node.fdb is not None and kernel is not None and neighbour is not None:
            ends = Mac.parse(neighbour.mac).packed + Mac.parse(kernel.mac).packed
            packet = ends + _ETHERTYPES[flow.version] + packet
        return [self._passage(*found) for found in self.node.workers.trace(packet)]

    def _passage(
        self, index: int, flooded: bool, reason: int, descriptor: int, headers: bytes
    ) -> Passage:
        name, _, meaning = DROP_REASONS[reason] if reason >= 0 else ("", "", "")
        return Passage(
            peer=self._peer_at(index),
            reason=name,
            meaning=meaning,
            flooded=flooded,
            port=self.node.underlay.source_port(descriptor) if descriptor >= 0 else 0,
            headers=headers,
        )

    def _peer_at(self, index: int) -> PeerStatus | None:
        indices = self.node.peers.indices  # of those who are peers still
        found = (peer for peer in self.status.peers if indices.get(peer.endpoint) == index)
        return next(found, None)

    def _entry(self, neighbour: KernelNeighbour | None) -> str:
        """The FDB's, of the MAC that a frame goes to."""
        if self.node.fdb is None or neighbour is None or not neighbour.mac:
            return ""
        mac = Mac.parse(neighbour.mac)
        for packed, vlan, index, fixed, age in self.node.fdb.entries():
            peer = self._peer_at(index)
            if (packed, vlan) == (mac.packed, None) and peer is not None:
                return f"{mac} -> {peer.endpoint} {'static' if fixed else f'learned {age} s ago'}"
        return ""

    # This host.

    @property
    def _mode(self) -> str:
        return self.node.config.mode if isinstance(self.node.device, Device) else ""

    async def _bridge(self) -> str:
        if not isinstance(self.node.device, Device):
            return ""
        return await self.node.netlink.bridge_of(self.node.device.index)

    async def _is_ours(self, address: Address) -> bool:
        """Whether it is this host's, or of what lives behind it."""
        if any(address in subnet for subnet in self.node.config.subnets):
            return True
        return self._mode != "" and (await self.node.netlink.get_route(address)).kind == "local"

    async def _choose_source(self, destination: Address) -> Address:
        """As the kernel chooses for a packet made here; without a device, of a subnet of ours."""
        if isinstance(self.node.device, Device):
            chosen = (await self.node.netlink.get_route(destination)).source
            if chosen is not None:
                return chosen
        for subnet in self.node.config.subnets:
            if subnet.version == destination.version:
                return subnet.network_address
        raise ConfigError(
            f"no address of this node's could send to {destination} (add --from ADDRESS)"
        )

    async def _arrival(self, source: Address) -> str | None:
        """By which device a packet comes that this host did not make itself; empty where it did,
        None where no route leads to its source."""
        home = await self.node.netlink.get_route(source)
        if home.error:
            return None
        return "" if home.kind == "local" else home.device

    async def _next_hop(self, route: KernelRoute, to: Address) -> KernelNeighbour | None:
        if route.error or route.kind == "local":
            return None
        return await self.node.netlink.neighbour(route.gateway or to, device=route.device)

    async def _underlay_of(
        self, peer: PeerStatus | None
    ) -> tuple[KernelRoute | None, KernelNeighbour | None, Address | None]:
        """The way of datagrams to a peer, its next hop, and our own address there."""
        if peer is None or peer.address is None:
            return None, None, next(iter(self.node.underlay.locals.values()), None)
        local = self.node.underlay.locals.get(peer.address.version)
        bound = None if local is None or local.is_unspecified else local
        route = await self.node.netlink.get_route(peer.address, source=bound)
        return route, await self._next_hop(route, peer.address), bound or route.source

    def _example(self, version: int) -> str:
        prefixes = (prefix for peer in self.status.peers for prefix in peer.prefixes)
        first = next((one for one in prefixes if one.version == version), None)
        return f", like --from {first.network_address}" if first else ""


def _forwards(version: int) -> bool:
    return bool(hostinfo.sysctl(FORWARDING[version].removeprefix("net.").replace(".", "/")))
