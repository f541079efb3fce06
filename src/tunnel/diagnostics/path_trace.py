"""
The way that one packet takes, step by step, and the entry that decides at each.

    Facts  ->  walk()  ->  Walk

Each rule looks at one thing on the way and gives one step, or none where there is nothing to see.
The way ends at the first step that says so. Whose packet it is, which socket sends it and what
is put before it is not reckoned here: the packet path itself was asked, and its answer is a fact.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tunnel.diagnostics.flow import IP_HEADER, TTL, Flow
from tunnel.status import PeerState, PeerStatus, Status
from tunnel.types import ANY_VTEP_MAC, Address, KernelNeighbour, KernelRoute, Prefix

_UDP_HEADER, _VXLAN_HEADER = 8, 8  # bytes
_VLAN = 0x8100
_IP6_MTU_MIN = 1280
_UNREACHED = ("FAILED", "INCOMPLETE")


class Outcome(Enum):
    GOES_ON = "goes on"
    ENDS = "ends"


@dataclass(frozen=True)
class Passage:
    """
    What one worker of the packet path does with the packet.

    Attributes:
        peer: Who gets it, None where nobody does, or everybody.
        reason: Why it is dropped, empty where it is not; `meaning` is what to do.
        flooded: It goes to every peer.
        port: UDP port that it is sent from, 0 where it is not.
        headers: VXLAN and Ethernet, as they are put before it.
    """

    peer: PeerStatus | None = None
    reason: str = ""
    meaning: str = ""
    flooded: bool = False
    port: int = 0
    headers: bytes = b""


@dataclass(frozen=True)
class TraceInputs:
    """
    All that is known about the packet's way.

    Attributes:
        inbound: It comes from a peer; else it goes to one, or nowhere.
        mode: ``tun``, ``tap``, or empty without a device.
        up: Whether the device is.
        arrival: The device by which a packet that is forwarded comes into this host; empty for one
            made here, None where no device is known to have its source behind it.
        kernel: What the kernel does with it: as it sets out or, inbound, when it comes out of our
            device. None without a device.
        neighbour: What the kernel knows of the next hop behind that, where it needs to know.
        bridge: Of which our device is a port, empty where it is of none.
        forwards: Whether this host forwards the packet's family.
        passages: Of each worker, for a packet that goes out.
        entry: Of our FDB, where frames go by it.
        owner: Whose packet it is, inbound.
        underlay: What the kernel does with the datagram around it.
        hop: What the kernel knows of that way's next hop.
        local: Our own address there.
    """

    flow: Flow
    status: Status
    inbound: bool
    mode: str = ""
    up: bool = True
    arrival: str | None = ""
    kernel: KernelRoute | None = None
    neighbour: KernelNeighbour | None = None
    bridge: str = ""
    forwards: bool = True
    passages: Sequence[Passage] = ()
    entry: str = ""
    owner: PeerStatus | None = None
    underlay: KernelRoute | None = None
    hop: KernelNeighbour | None = None
    local: Address | None = None

    @property
    def size(self) -> int:
        """Bytes of the inner packet that leaves first."""
        return self.flow.piece(self.status.mtu) if self.mode else self.flow.size

    @property
    def passage(self) -> Passage:
        """Of the first worker; in all but the port they are alike."""
        return self.passages[0]

    @property
    def peer(self) -> PeerStatus | None:
        return self.owner if self.inbound else self.passage.peer


@dataclass(frozen=True)
class TraceStep:
    """
    One step on the way.

    Attributes:
        entry: What decides there.
        next: What to do where the way ends; a command stands at its end, behind a colon.
    """

    step: str
    entry: str
    verdict: Outcome
    why: str
    next: str = ""


@dataclass(frozen=True)
class TraceLayer:
    """One header of the datagram, from the outside."""

    name: str
    bytes: int
    fields: Mapping[str, str]


@dataclass(frozen=True)
class PathTrace:
    """
    Attributes:
        headers: Of the datagram that carries the packet; empty where it does not come so far.
        ends: At which step the way ends, None where nothing stands in it.
    """

    packet: str
    direction: str
    steps: tuple[TraceStep, ...]
    headers: tuple[TraceLayer, ...] = ()
    ends: str | None = None


Rule = Callable[[TraceInputs], Iterator[TraceStep]]


def walk(facts: TraceInputs) -> PathTrace:
    """The steps up to the one at which the way ends, if it does."""
    steps: list[TraceStep] = []
    for rule in _IN if facts.inbound else _OUT:
        steps += rule(facts)
        if steps and steps[-1].verdict is Outcome.ENDS:
            break
    ends = steps[-1].step if steps[-1].verdict is Outcome.ENDS else None
    seen = any(step.step == "headers" for step in steps)
    return PathTrace(
        packet=str(facts.flow),
        direction="inbound" if facts.inbound else "outbound",
        steps=tuple(steps),
        headers=tuple(draw(facts)) if seen else (),
        ends=ends,
    )


# Out: from this host, or one behind it, to a peer.


def _packet(facts: TraceInputs) -> Iterator[TraceStep]:
    flow, entry = facts.flow, str(facts.flow)
    if facts.arrival is None:
        why = f"{flow.source} is not this host's, and no kernel route leads to it"
        yield _ends("packet", entry, why, "see what this host has: ip address; ip route")
    elif facts.arrival:
        yield _goes_on("packet", entry, f"comes from {facts.arrival}: this host forwards it")
    else:
        yield _goes_on("packet", entry, "made on this host")


def _kernel_route(facts: TraceInputs) -> Iterator[TraceStep]:
    route, flow = facts.kernel, facts.flow
    if route is None:
        yield _goes_on("kernel route", "none", "no device: the program itself hands packets over")
        return
    owner = next((peer for peer in facts.status.peers if _prefix_of(peer, flow.destination)), None)
    see = f"ip route get {flow.destination}"
    if facts.arrival:
        see += f" from {flow.source} iif {facts.arrival}"
    ours = (facts.status.device, facts.bridge)
    if owner is not None and not facts.up and (route.error or route.device not in ours):
        # The kernel removes the routes of a device that is set down.
        yield _ends(
            "kernel route",
            route.entry or "none",
            f"{facts.status.device} is down, and with it the kernel route for "
            f"{_prefix_of(owner, flow.destination)} of peer {owner.endpoint} is gone",
            f"set it up, and it is put back: ip link set {facts.status.device} up",
        )
    elif route.error:
        yield _refused(facts, see, into_overlay=True)
    elif facts.arrival and not facts.forwards:
        yield _not_forwarded(facts, route.entry)
    elif route.kind != "unicast":
        yield _ends("kernel route", route.entry, f"{flow.destination} is this host's own")
    elif route.device == facts.status.device:
        why = "the longest prefix that matches: into our device"
        yield _goes_on("kernel route", route.entry, why)
    elif facts.bridge and route.device == facts.bridge:
        why = f"the longest prefix that matches: {facts.status.device} is a port of that bridge"
        yield _goes_on("kernel route", route.entry, why)
    elif owner is None:
        yield _ends(
            "kernel route",
            route.entry,
            f"leaves by {route.device}, not through the overlay: no peer owns {flow.destination}",
            "see who owns what: tunnel route list",
        )
    else:
        yield _ends(
            "kernel route",
            route.entry,
            f"leaves by {route.device}, though peer {owner.endpoint} owns "
            f"{_prefix_of(owner, flow.destination)}: a longer prefix, or a lower metric, wins",
            f"see all that match: ip route show match {flow.destination}",
        )


def _refused(facts: TraceInputs, see: str, *, into_overlay: bool) -> TraceStep:
    """Where the kernel has no way, by the errno with which it says so."""
    route, flow = facts.kernel, facts.flow
    assert route is not None
    device = facts.arrival or facts.status.device
    match route.error:
        case errno.ENETUNREACH:
            why, what = f"no kernel route matches {flow.destination}", "see the kernel's routes"
            owner = next((p for p in facts.status.peers if _prefix_of(p, flow.destination)), None)
            if owner is not None and into_overlay:
                prefix = _prefix_of(owner, flow.destination)
                why = f"the kernel route for {prefix} of peer {owner.endpoint} is gone"
                see, what = f"ip route add {prefix} dev {device} proto 84", "put it back"
        case errno.EHOSTUNREACH if not facts.forwards:
            return _not_forwarded(facts, "")
        case errno.EHOSTUNREACH:
            why, what = "an unreachable route matches, on purpose", "see it"
        case errno.EACCES:
            why, what = "a prohibit route matches, on purpose", "see it"
        case errno.EINVAL | errno.EXDEV if facts.arrival or facts.inbound:
            why = (
                f"the reverse-path filter of {device} refuses it: the way back to {flow.source} "
                "leads elsewhere, or that address is this host's own"
            )
            what = "see where the way back leads"
            see = f"ip route get {flow.source}"
        case errno.EINVAL:
            why, what = f"a blackhole route matches, or {flow.source} is not this host's", "see it"
        case _:
            why, what = f"the kernel refuses it (errno {route.error})", "see it"
    return _ends("kernel route", "none", why, f"{what}: {see}")


def _not_forwarded(facts: TraceInputs, entry: str) -> TraceStep:
    four = facts.flow.version == 4
    switch = "net.ipv4.ip_forward" if four else "net.ipv6.conf.all.forwarding"
    why = f"this host forwards no IPv{facts.flow.version}"
    return _ends("kernel route", entry or "none", why, f"switch it on: sysctl -w {switch}=1")


def _neighbour(facts: TraceInputs) -> Iterator[TraceStep]:
    """Frames need a MAC to go to: that of the next hop, the peer's VTEP."""
    route, known = facts.kernel, facts.neighbour
    if facts.mode != "tap" or route is None:
        return
    hop = route.gateway or facts.flow.destination
    entry = _spell(hop, known)
    if known is not None and known.port and known.port != facts.status.device:
        why = f"the bridge has that MAC behind its port {known.port}, not in the overlay"
        what = f"see what it knows: bridge fdb show br {known.device}"
        yield _ends("neighbour", entry, why, what)
    elif known is not None and known.mac:
        how = "put there by us" if known.state == "PERMANENT" else "answered ARP or NDP"
        yield _goes_on("neighbour", entry, f"the next hop's MAC: {how}")
    elif known is not None and known.state == "FAILED":
        yield _ends(
            "neighbour",
            entry,
            f"nobody in the overlay answered for {hop}",
            "see which MAC and peer each prefix has: tunnel neighbour list",
        )
    else:
        why = "not known yet: the kernel asks by ARP or NDP, which goes to every peer"
        yield _ends(
            "neighbour", entry, why, f"have it asked for: ping -c 1 {facts.flow.destination}"
        )


def _device(facts: TraceInputs) -> Iterator[TraceStep]:
    status, flow = facts.status, facts.flow
    if not facts.mode:
        return
    offloads = "+".join(word for word in ("tso", "uso") if word in status.offloads) or "no offloads"
    state = "up" if facts.up else "down"
    entry = f"{status.device} {facts.mode} mtu {status.mtu} {state} {offloads}"
    cut = flow.protocol == "tcp" and "tso" in status.offloads
    if not facts.up:
        what = f"set it up: ip link set {status.device} up"
        yield _ends("device", entry, "the device is down", what)
    elif flow.size <= status.mtu:
        yield _goes_on("device", entry, f"{flow.size} of {status.mtu} bytes")
    elif cut:
        why = "a super-packet: the node cuts it into segments of the MTU"
        yield _goes_on("device", entry, why)
    elif facts.arrival:
        why = f"{flow.size} bytes are more than its MTU: the sender gets ICMP, with {status.mtu}"
        payload = status.mtu - IP_HEADER[flow.version] - 8
        what = f"does it hear that? from there: ping -M do -s {payload} {flow.destination}"
        yield _ends("device", entry, why, what)
    else:
        why = f"{flow.size} bytes are more than its MTU: the kernel sends it as fragments"
        yield _goes_on("device", entry, why)


def _route(facts: TraceInputs) -> Iterator[TraceStep]:
    """Our own table, as the packet path answers from it."""
    passage, flow = facts.passage, facts.flow
    if facts.mode == "tap":
        return
    if passage.peer is None:
        what = f"give a peer a prefix with it: tunnel peer add ENDPOINT={flow.destination}"
        yield _ends("route", "none", f"{passage.reason}: {passage.meaning}", what)
        return
    entry = f"{_prefix_of(passage.peer, flow.destination)} -> {passage.peer.endpoint}"
    yield _goes_on("route", entry, "the overlay's own route, asked of the packet path")


def _fdb(facts: TraceInputs) -> Iterator[TraceStep]:
    passage = facts.passage
    if facts.mode != "tap":
        return
    mac = facts.neighbour.mac if facts.neighbour else "?"
    if passage.flooded:
        count = len(facts.status.peers)
        why = f"not in the FDB: a copy goes to each of {count} peers, who owns the MAC takes it"
        yield _goes_on("fdb", f"{mac} unknown, flooded", why)
    elif passage.peer is None:
        what = f"put it there: tunnel fdb add {mac} PEER"
        yield _ends("fdb", f"{mac} none", f"{passage.reason}: {passage.meaning}", what)
    else:
        yield _goes_on("fdb", facts.entry, f"the MAC is behind {passage.peer.endpoint}")


def _name(facts: TraceInputs) -> Iterator[TraceStep]:
    """A peer that goes by a name is somewhere only when that has an address."""
    peer = facts.peer
    if peer is None or peer.endpoint.address is not None:
        return
    host = peer.endpoint.host
    if peer.address is None:
        what = f"check DNS: getent hosts {host}"
        yield _ends("name", f"{host} unresolved", "the name has no address", what)
    else:
        yield _goes_on(
            "name", f"{host} is {peer.address}", "asked again when the peer falls silent"
        )


def _path(facts: TraceInputs) -> Iterator[TraceStep]:
    passage, peer = facts.passage, facts.peer
    if peer is None:
        return
    known = peer.path_mtu
    entry = f"path MTU {known}" if known else "path MTU not known"
    size = facts.size
    if passage.reason == "too_big":
        why = f"{size} bytes and not to be fragmented: the sender gets ICMP, with the MTU"
        what = f"see what fits: tunnel ping {peer.endpoint} --size {known or _IP6_MTU_MIN}"
        yield _ends("path", entry, why, what)
    elif passage.reason:
        yield _ends("path", entry, f"{passage.reason}: {passage.meaning}", "see: tunnel drops")
    elif known is None:
        yield _goes_on(
            "path", entry, "the peer answers no probes: what its first hop takes is tried"
        )
    elif size > known:
        yield _goes_on("path", entry, "longer, but may be fragmented: the underlay does that")
    else:
        yield _goes_on("path", entry, f"{size} bytes fit, as probes to the peer have shown")


def _worker(facts: TraceInputs) -> Iterator[TraceStep]:
    ports = [str(passage.port) for passage in facts.passages]
    if facts.passage.flooded:  # each peer's copy has a port of its own
        return
    if len(ports) == 1:
        entry, why = (
            f"source port {ports[0]}",
            "a hash of the inner flow picks it, so order is kept",
        )
    else:
        entry = f"one of {len(ports)} workers, source port {' or '.join(dict.fromkeys(ports))}"
        why = "the kernel's own hash of the flow picks the worker, ours among his source ports"
    yield _goes_on("worker", entry, why)


def _headers(facts: TraceInputs) -> Iterator[TraceStep]:
    if facts.passage.flooded:
        return
    layers = list(draw(facts))
    added = [layer for layer in layers if not layer.name.startswith("inner")]
    entry = " | ".join(f"{layer.name} {layer.bytes}" for layer in added)
    if facts.mode == "tap":
        why = "the frame's own Ethernet header stays; what is before it is new"
    elif _to_any(facts):
        why = f"{ANY_VTEP_MAC} is any node's: each of ours takes it beside its own MAC"
    else:
        why = "put before the packet as it is; its TTL stays, the kernel has counted it down"
    yield _goes_on("headers", entry, why)


def _to_any(facts: TraceInputs) -> bool:
    """Whether the frame goes to the MAC that stands for every node's."""
    return facts.passage.headers[_VXLAN_HEADER:].startswith(ANY_VTEP_MAC.packed)


def _underlay(facts: TraceInputs) -> Iterator[TraceStep]:
    route, peer = facts.underlay, facts.peer
    if peer is None or route is None:
        return
    see = f"ip route get {peer.address}"
    if route.error:
        why = f"this host has no route to {peer.address}"
        yield _ends("underlay", "none", why, f"see what it has: {see}")
        return
    entry, hop = route.entry, route.gateway or peer.address
    if route.device == facts.status.device:
        yield _ends(
            "underlay",
            entry,
            "the datagram would go into the tunnel again, for ever",
            f"give the peer a route of its own: ip route add {peer.address} via GATEWAY dev DEVICE",
        )
    elif facts.hop is not None and facts.hop.state == "FAILED":
        asked = "ARP" if peer.address and peer.address.version == 4 else "NDP"
        why = f"the next hop {hop} does not answer {asked} on {route.device}"
        yield _ends("underlay", entry, why, f"is it there? ping -c 1 {hop}")
    else:
        to = f"by way of {route.gateway}" if route.gateway else "directly"
        yield _goes_on("underlay", entry, f"out of {route.device} {to}{_behind(facts.hop)}")


def _behind(hop: KernelNeighbour | None) -> str:
    return f", MAC {hop.mac}" if hop is not None and hop.mac else ""


def _peer(facts: TraceInputs) -> Iterator[TraceStep]:
    peer = facts.peer
    if peer is None:
        return
    entry = f"{peer.endpoint} {peer.state.value}"
    last = f"; last drop of its packets here: {peer.last_drop}" if peer.last_drop else ""
    match peer.state:
        case PeerState.UP:
            trip = f", round trip {peer.rtt * 1e3:.3g} ms" if peer.rtt is not None else ""
            yield _goes_on("peer", entry, f"answers{trip}{last}")
        case PeerState.UNKNOWN:
            why = "never answered, as a kernel vxlan device never does"
            yield _goes_on("peer", entry, f"{why}{last}")
        case PeerState.SILENT:
            what = f"look at its own side, then: tunnel ping {peer.endpoint}"
            yield _ends("peer", entry, f"silent for {peer.state_age:.0f} s{last}", what)


def _their_checks(facts: TraceInputs) -> Iterator[TraceStep]:
    """What the peer's checks say, as far as it shows from here."""
    peer, flow, subnets = facts.peer, facts.flow, facts.status.subnets
    if peer is None:
        return
    ours = next((prefix for prefix in subnets if flow.source in prefix), None)
    bridged = facts.mode == "tap" and not any(
        _prefix_of(one, flow.source) for one in facts.status.peers
    )
    if ours is None and subnets and bridged:
        why = "in nobody's prefix: a peer with --mode tap takes it, any other drops it as spoofed"
        yield _goes_on("their checks", f"source {flow.source}", why)
        return
    if ours is None and subnets:
        listed = ", ".join(str(prefix) for prefix in subnets)
        of_family = [prefix for prefix in subnets if prefix.version == flow.version]
        source = of_family[0].network_address if of_family else "ADDRESS"
        yield _ends(
            "their checks",
            f"source {flow.source}",
            f"not in our {listed}: the peer drops it as spoofed, unless it was given more of ours",
            f"send from one of ours: tunnel explain {flow.destination} --from {source}",
        )
        return
    entry = f"source {flow.source} in {ours}" if ours else f"source {flow.source}"
    if peer.state is PeerState.UP:
        why = "it answers: so our address, VNI and MACs are right"
    elif _to_any(facts):
        why = (
            f"it has to know our address and VNI, and take {ANY_VTEP_MAC}: a kernel device does not"
        )
    else:
        why = "it has to know our address and VNI"
    yield _goes_on("their checks", entry, f"{why}; and it has to have our prefixes as we have them")


# In: from a peer to this host, or one behind it.


def _arrives(facts: TraceInputs) -> Iterator[TraceStep]:
    yield _goes_on("packet", str(facts.flow), "comes in a datagram of a peer's")


def _outer_source(facts: TraceInputs) -> Iterator[TraceStep]:
    flow, owner = facts.flow, facts.owner
    if owner is None and facts.mode == "tap":
        why = "has to be a peer's, whichever: the inner source is in nobody's prefix"
        yield _goes_on("outer source", "any peer's", why)
        return
    if owner is None:
        yield _ends(
            "source check",
            f"inner source {flow.source}",
            "no peer owns it: dropped as spoofed, or as unknown_source if its datagram is nobody's",
            f"give it to the peer that has it: tunnel peer add ENDPOINT={flow.source}",
        )
        return
    entry = f"outer source {owner.address} is {owner.endpoint}"
    why = "known, whatever port it comes from; any other is dropped as unknown_source"
    yield _goes_on("outer source", entry, why)


def _frame(facts: TraceInputs) -> Iterator[TraceStep]:
    status = facts.status
    yield _goes_on("vni", f"vni {status.vni}", "ours; any other is dropped as other_vni")
    if facts.mode == "tap":
        why = "any destination MAC is taken, for a bridge may be behind; the kernel takes its own"
        yield _goes_on("mac", str(status.mac), why)
        return
    why = f"ours, or any node's, {ANY_VTEP_MAC}; any other is dropped as other_mac"
    yield _goes_on("mac", str(status.mac), why)


def _inner_source(facts: TraceInputs) -> Iterator[TraceStep]:
    owner = facts.owner
    if owner is None:
        return
    entry = f"{_prefix_of(owner, facts.flow.source)} -> {owner.endpoint}"
    drops = ", ".join(f"{reason} {count}" for reason, count in owner.drops.items())
    so_far = f"; drops of this peer's so far: {drops}" if drops else ""
    yield _goes_on("source check", entry, f"the inner source is that peer's, not spoofed{so_far}")


def _out_of_device(facts: TraceInputs) -> Iterator[TraceStep]:
    status = facts.status
    if not facts.mode:
        yield _goes_on("device", "none", "no device: the program itself takes the packet")
        return
    entry = f"{status.device} {facts.mode} mtu {status.mtu} {'up' if facts.up else 'down'}"
    if facts.up:
        yield _goes_on("device", entry, "written to it: the kernel takes it as come from a link")
    else:
        what = f"set it up: ip link set {status.device} up"
        yield _ends("device", entry, "the device is down", what)


def _home_route(facts: TraceInputs) -> Iterator[TraceStep]:
    route, flow, device = facts.kernel, facts.flow, facts.status.device
    if route is None:
        return
    see = f"ip route get {flow.destination} from {flow.source} iif {device}"
    if route.error:
        yield _refused(facts, see, into_overlay=False)
    elif route.kind == "local":
        yield _goes_on("kernel route", route.entry, "this host's own address: it has arrived")
    elif not facts.forwards:
        yield _not_forwarded(facts, route.entry)
    elif route.device == device:
        yield _ends(
            "kernel route",
            route.entry,
            "back into the tunnel: nothing here has that address",
            f"see the kernel's routes: ip route show match {flow.destination}",
        )
    else:
        yield _goes_on("kernel route", route.entry, f"forwarded to {route.device}")


def _last_hop(facts: TraceInputs) -> Iterator[TraceStep]:
    route, known = facts.kernel, facts.neighbour
    if route is None or route.kind == "local":
        return
    hop = route.gateway or facts.flow.destination
    entry = _spell(hop, known)
    if known is None or (known.state in _UNREACHED and known.state != "FAILED"):
        why = f"the kernel asks for its MAC on {route.device} when the packet comes"
        yield _goes_on("neighbour", f"{hop} dev {route.device} not known yet", why)
    elif known.state == "FAILED":
        why = f"nobody on {route.device} answers for {hop}"
        yield _ends("neighbour", entry, why, f"is it up? ping -c 1 {hop}")
    elif known.port:
        end = ", whose other end is in another network namespace" if known.namespace else ""
        why = f"the bridge {known.device} hands it to its port {known.port}{end}"
        yield _goes_on("neighbour", entry, why)
    else:
        yield _goes_on("neighbour", entry, f"out of {known.device} to that MAC")


_OUT: tuple[Rule, ...] = (
    _packet,
    _kernel_route,
    _neighbour,
    _device,
    _route,
    _fdb,
    _name,
    _path,
    _worker,
    _headers,
    _underlay,
    _peer,
    _their_checks,
)
_IN: tuple[Rule, ...] = (
    _arrives,
    _outer_source,
    _frame,
    _inner_source,
    _out_of_device,
    _home_route,
    _last_hop,
)


# Headers.


def draw(facts: TraceInputs) -> Iterator[TraceLayer]:
    """The headers of the datagram that carries the packet out, from the outside."""
    passage, peer, flow = facts.passage, facts.peer, facts.flow
    there = peer.address if peer else None
    version = there.version if there else 4
    inner = len(passage.headers) + facts.size
    yield TraceLayer(
        f"outer IPv{version}",
        IP_HEADER[version],
        {
            "source": str(facts.local),
            "destination": str(there) if there else "each peer",
            "ttl": str(TTL),
            "protocol": "17 (UDP)",
            "length": str(IP_HEADER[version] + _UDP_HEADER + inner),
        }
        | ({"df": "0"} if version == 4 else {}),
    )
    ports = " or ".join(dict.fromkeys(str(one.port) for one in facts.passages))
    to = str(peer.endpoint.port) if peer else "each peer's"
    length = str(_UDP_HEADER + inner)
    yield TraceLayer(
        "UDP",
        _UDP_HEADER,
        {"source": ports, "destination": to, "length": length, "checksum": "yes"},
    )
    yield from _draw_frame(passage.headers)
    yield TraceLayer(
        f"inner IPv{flow.version}", IP_HEADER[flow.version], _inner_fields(flow, facts.size)
    )


def _draw_frame(headers: bytes) -> Iterator[TraceLayer]:
    """What the packet path put there, read again from its bytes."""
    flags, vni = headers[0], int.from_bytes(headers[4:7])
    yield TraceLayer("VXLAN", _VXLAN_HEADER, {"flags": f"{flags:02x}", "vni": str(vni)})
    frame = headers[_VXLAN_HEADER:]
    fields = {"source": frame[6:12].hex(":"), "destination": frame[:6].hex(":")}
    if int.from_bytes(frame[12:14]) == _VLAN:
        fields["vlan"] = str(int.from_bytes(frame[14:16]) & 0xFFF)
    fields["type"] = frame[-2:].hex()
    yield TraceLayer("Ethernet", len(frame), fields)


def _inner_fields(flow: Flow, size: int) -> dict[str, str]:
    fields = {
        "source": str(flow.source),
        "destination": str(flow.destination),
        "protocol": flow.protocol,
        "length": str(size),
    }
    if flow.protocol != "icmp":
        fields |= {"sport": str(flow.sport), "dport": str(flow.dport)}
    return fields


# Words.


def _goes_on(step: str, entry: str, why: str) -> TraceStep:
    return TraceStep(step, entry, Outcome.GOES_ON, why)


def _ends(step: str, entry: str, why: str, what: str = "") -> TraceStep:
    return TraceStep(step, entry, Outcome.ENDS, why, what)


def _prefix_of(peer: PeerStatus, address: Address) -> Prefix | None:
    """The longest of a peer's prefixes that holds an address."""
    found = [prefix for prefix in peer.prefixes if address in prefix]
    return max(found, key=lambda prefix: prefix.prefixlen, default=None)


def _spell(hop: Address | None, known: KernelNeighbour | None) -> str:
    """A neighbour as ``ip neigh`` prints it."""
    if known is None:
        return f"{hop} none"
    mac = f" lladdr {known.mac}" if known.mac else ""
    return f"{hop} dev {known.device}{mac} {known.state}"
