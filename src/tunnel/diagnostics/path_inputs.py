"""
Gathers what a path trace is computed from.

    kernel routes and neighbours, the packet path, peers  ->  TraceInputs

Sends nothing and changes nothing: the kernel and the packet path are asked what they would do.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunnel._native import DROP_REASONS
from tunnel.diagnostics.flow import Flow
from tunnel.diagnostics.host_inspection import forwards
from tunnel.diagnostics.path_trace import ForwardingDecision, TraceInputs
from tunnel.errors import ConfigError
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.node.node import Node
from tunnel.status import PeerStatus, Status
from tunnel.types import Address, KernelNeighbour, KernelRoute, Mac

_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}


@dataclass(frozen=True)
class PathInputReader:
    """Reads the inputs of a trace from a running node; `status` is the node's current one."""

    node: Node
    status: Status

    async def read(
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
        Returns the inputs for one packet. If cancelled, nothing changes.

        Raises:
            ConfigError: There is no such packet, or its source is needed and missing.
        """
        if self.node.fdb is not None and isinstance(self.node.device, SocketPair):
            raise ConfigError(
                f"{self.status.name} has no device: the program itself chooses the destination "
                "MAC of a packet (open it with a device, or in TUN mode)"
            )
        inbound = await self._is_local(destination)
        if source is None:
            if inbound:
                raise ConfigError(
                    f"{destination} is on this side: the packet's source is needed "
                    f"(add --from ADDRESS{self._example(destination.version)})"
                )
            source = await self._choose_source(destination)
        elif inbound:
            inbound = not await self._is_local(source)
        flow = Flow(destination, source, size, protocol, sport, dport)
        return await (self._inbound(flow) if inbound else self._outbound(flow))

    async def _outbound(self, flow: Flow) -> TraceInputs:
        route, neighbour, resolved = None, None, True
        ingress: str | None = ""
        if isinstance(self.node.device, Device):
            ingress = await self._ingress(flow.source)
            route = await self.node.netlink.get_route(
                flow.destination, source=flow.source, arrival=ingress or ""
            )
            neighbour = await self._next_hop(route, flow.destination)
            resolved = self.node.fdb is None or bool(neighbour and neighbour.mac)
        decisions = self._decisions(flow, route, neighbour) if resolved else []
        peer = decisions[0].peer if decisions else None
        underlay_route, underlay_neighbour, local_address = await self._underlay(peer)
        return TraceInputs(
            flow=flow,
            status=self.status,
            inbound=False,
            mode=self._mode,
            device_up=self.status.device_up,
            ingress=ingress,
            kernel_route=route,
            kernel_neighbour=neighbour,
            bridge=await self._bridge(),
            forwarding=forwards(flow.version),
            decisions=decisions,
            fdb_entry=self._fdb_entry(neighbour),
            underlay_route=underlay_route,
            underlay_neighbour=underlay_neighbour,
            local_address=local_address,
        )

    async def _inbound(self, flow: Flow) -> TraceInputs:
        route, neighbour = None, None
        if isinstance(self.node.device, Device):
            ingress = await self._bridge() or self.node.device.name
            route = await self.node.netlink.get_route(
                flow.destination, source=flow.source, arrival=ingress
            )
            neighbour = await self._next_hop(route, flow.destination)
        return TraceInputs(
            flow=flow,
            status=self.status,
            inbound=True,
            mode=self._mode,
            device_up=self.status.device_up,
            kernel_route=route,
            kernel_neighbour=neighbour,
            forwarding=forwards(flow.version),
            owner=self._peer_at(self.node.workers.owner(flow.source.packed)),
        )

    # The packet path.

    def _decisions(
        self, flow: Flow, route: KernelRoute | None, neighbour: KernelNeighbour | None
    ) -> list[ForwardingDecision]:
        packet = flow.packet(self.status.mtu if self._mode else flow.size)
        if self.node.fdb is not None and route is not None and neighbour is not None:
            macs = Mac.parse(neighbour.mac).packed + Mac.parse(route.mac).packed
            packet = macs + _ETHERTYPES[flow.version] + packet
        return [self._decision(*found) for found in self.node.workers.trace(packet)]

    def _decision(
        self, index: int, flooded: bool, reason: int, descriptor: int, headers: bytes
    ) -> ForwardingDecision:
        name, _, meaning = DROP_REASONS[reason] if reason >= 0 else ("", "", "")
        return ForwardingDecision(
            peer=self._peer_at(index),
            reason=name,
            meaning=meaning,
            flooded=flooded,
            port=self.node.underlay.source_port(descriptor) if descriptor >= 0 else 0,
            headers=headers,
        )

    def _peer_at(self, index: int) -> PeerStatus | None:
        """Returns the peer with this index in the packet path, None if it was removed."""
        indices = self.node.peers.indices
        found = (peer for peer in self.status.peers if indices.get(peer.endpoint) == index)
        return next(found, None)

    def _fdb_entry(self, neighbour: KernelNeighbour | None) -> str:
        """Returns the FDB entry of the MAC that the frame goes to, empty if there is none."""
        if self.node.fdb is None or neighbour is None or not neighbour.mac:
            return ""
        mac = Mac.parse(neighbour.mac)
        for packed, vlan, index, static, age in self.node.fdb.entries():
            peer = self._peer_at(index)
            if (packed, vlan) == (mac.packed, None) and peer is not None:
                return f"{mac} -> {peer.endpoint} {'static' if static else f'learned {age} s ago'}"
        return ""

    # This host.

    @property
    def _mode(self) -> str:
        return self.node.config.mode if isinstance(self.node.device, Device) else ""

    async def _bridge(self) -> str:
        if not isinstance(self.node.device, Device):
            return ""
        return await self.node.netlink.bridge_of(self.node.device.index)

    async def _is_local(self, address: Address) -> bool:
        """Returns whether the address is in a subnet of the node, or this host's own."""
        if any(address in subnet for subnet in self.node.config.subnets):
            return True
        return self._mode != "" and (await self.node.netlink.get_route(address)).kind == "local"

    async def _choose_source(self, destination: Address) -> Address:
        """Returns the kernel's choice; without a device, the first address of a subnet."""
        if isinstance(self.node.device, Device):
            chosen = (await self.node.netlink.get_route(destination)).source
            if chosen is not None:
                return chosen
        for subnet in self.node.config.subnets:
            if subnet.version == destination.version:
                return subnet.network_address
        raise ConfigError(
            f"this node has no address that can send to {destination} (add --from ADDRESS)"
        )

    async def _ingress(self, source: Address) -> str | None:
        """Returns the device on which a packet enters that this host forwards; empty for one that
        it sends itself, None if no kernel route leads to the source."""
        route = await self.node.netlink.get_route(source)
        if route.error:
            return None
        return "" if route.kind == "local" else route.device

    async def _next_hop(self, route: KernelRoute, destination: Address) -> KernelNeighbour | None:
        if route.error or route.kind == "local":
            return None
        return await self.node.netlink.neighbour(route.gateway or destination, device=route.device)

    async def _underlay(
        self, peer: PeerStatus | None
    ) -> tuple[KernelRoute | None, KernelNeighbour | None, Address | None]:
        """Returns the route of datagrams to the peer, its next hop and the source address."""
        if peer is None or peer.address is None:
            return None, None, next(iter(self.node.underlay.locals.values()), None)
        local = self.node.underlay.locals.get(peer.address.version)
        bound = None if local is None or local.is_unspecified else local
        route = await self.node.netlink.get_route(peer.address, source=bound)
        return route, await self._next_hop(route, peer.address), bound or route.source

    def _example(self, version: int) -> str:
        prefixes = (prefix for peer in self.status.peers for prefix in peer.prefixes)
        first = next((one for one in prefixes if one.version == version), None)
        return f", for example --from {first.network_address}" if first else ""
