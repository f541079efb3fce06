"""The C core. Buffers are bytes-like objects; addresses are packed, 4 or 16 bytes."""

from collections.abc import Sequence
from typing import Any, Final, final

from _typeshed import structseq
from typing_extensions import Buffer

ANY_VTEP_MAC: Final[bytes]
"""02:76:74:65:70:00, the destination MAC for a peer whose MAC is unknown."""

DROP_REASONS: Final[tuple[tuple[str, str, str], ...]]
"""``(name, "outbound" | "inbound", meaning and advice)`` of each drop reason."""

WORK: Final[tuple[str, ...]]
"""The keys of :meth:`Forwarder.work`."""

UNKNOWN_PEER: Final = -1
"""Key of :func:`read_counters` for packets that belong to no known peer."""

REMOVED_PEERS: Final = -2
"""Key of :func:`read_counters` for the peers that were removed, together."""

@final
class Counters(structseq[Any], tuple[int, int, int, int, dict[str, int], str | None, bool]):
    """The counters of one peer. Bytes are those of inner packets, with their IP headers."""

    @property
    def outbound_packets(self) -> int: ...
    @property
    def outbound_bytes(self) -> int: ...
    @property
    def inbound_packets(self) -> int: ...
    @property
    def inbound_bytes(self) -> int: ...
    @property
    def drops(self) -> dict[str, int]:
        """Packets by drop reason; only reasons that occurred."""

    @property
    def last_drop(self) -> str | None:
        """Reason of the last drop, None if there was none."""

    @property
    def trains(self) -> bool:
        """Whether every worker sends this peer trains."""

def read_counters(forwarders: Sequence[Forwarder]) -> dict[int, Counters]:
    """
    The counters of each peer by index, added up over the workers, and those of
    :data:`UNKNOWN_PEER` and :data:`REMOVED_PEERS`. Each worker is locked once.
    """

def checksum_backend() -> str:
    """The checksum implementation for this CPU: ``"avx2"`` or ``"portable"``."""

def encode(packet: Buffer, vni: int, source: bytes, destination: bytes) -> bytes: ...
def decode(datagram: Buffer) -> tuple[int, bytes, bytes, int, bytes]: ...
def encode_batch(
    packets: Buffer, sizes: Buffer, out: Buffer, vni: int, source: bytes, destination: bytes
) -> int: ...
def decode_batch(datagrams: Buffer, sizes: Buffer, out: Buffer) -> int: ...
def decap(datagram: Buffer, vni: int, mac: bytes, ecn: int, bridged: bool) -> str | None:
    """Returns why a node with this VNI and MAC drops a datagram that arrives with these outer ECN
    bits, as far as the datagram alone decides; None if it does not. A `bridged` node forwards
    frames to any MAC."""

@final
class Fdb:
    """
    The forwarding database: maps a MAC and VLAN to the index of a peer; shared by all workers.

    A VLAN is 1 to 4,094, or None for frames without a tag. Entries are static, or learned from
    frames; learning never replaces a static entry.

    Args:
        limit: Most learned entries, at most 2**20. Memory is allocated as entries are learned.
        share: Most learned entries of one peer, so that a flood of MACs from one peer leaves space
            for the others.
        ageing: Seconds after its last frame until a learned entry expires.
    """

    def __init__(self, *, limit: int, share: int, ageing: int) -> None: ...
    def put(self, mac: bytes, vlan: int | None, index: int) -> None:
        """Adds or replaces an entry by a static one. OverflowError if there are 65,536."""

    def remove(self, mac: bytes, vlan: int | None) -> bool:
        """Removes a static or learned entry. Returns whether there was one."""

    def lookup(self, mac: bytes, vlan: int | None) -> int:
        """Returns the index of the peer, -1 if there is no entry."""

    def flush(self, index: int | None, learned_only: bool) -> None:
        """Removes the entries of one peer, or of all peers (None)."""

    def entries(self) -> list[tuple[bytes, int | None, int, bool, int]]:
        """``(MAC, VLAN, peer index, static, age)`` of each entry. `age` is the seconds since its
        last frame, 0 for a static entry."""

    def counters(self) -> dict[str, int]:
        """``learned``: entries that were learned. ``moved``: entries that changed to another peer.
        ``aged``: entries that expired. ``refused_full``: frames whose source was not learned
        because a limit was reached."""

@final
class Forwarder:
    """
    One worker: a device descriptor, UDP sockets, and the tables between them.

    Borrows its descriptors: it never opens or closes one. One thread at a time uses it, others
    wait. The GIL is released while packets move.

    Args:
        device, output: Non-blocking descriptors that read and write one packet for each call;
            usually the same.
        vnet_header: Each packet of the device has a virtio_net_hdr of 10 bytes before it.
        coalesce_tcp, coalesce_udp: Write super-packets to the device (needs `vnet_header`).
        vni: 0 to 2**24-1.
        mac: The MAC of this node, 6 bytes.
        segments: Most datagrams in a train (127, 63); 1 turns trains off.
        fdb: For a TAP device: forward Ethernet frames by this table. Routes are then used only to
            find ``spoofed`` sources.
        flood: Send frames for unknown MACs and for groups to every peer.
        learning: Learn the source MACs of frames from peers.
        storm: Most flooded frames per second to each peer, and most group frames per second from
            each peer, with a burst of one second; further ones are dropped. 0 for no limit. Each
            forwarder counts by itself.
    """

    def __init__(
        self,
        *,
        device: int,
        output: int,
        vnet_header: bool,
        coalesce_tcp: bool,
        coalesce_udp: bool,
        vni: int,
        mac: bytes,
        segments: int,
        fdb: Fdb | None = None,
        flood: bool = True,
        learning: bool = True,
        storm: int = 0,
    ) -> None: ...
    def set_sockets(self, family: int, sockets: Sequence[int]) -> None:
        """Sets the UDP sockets of an underlay family (4 or 6). The first one receives; all send,
        chosen by a hash of the inner flow. An empty sequence removes the family."""

    def set_peer(self, index: int, address: bytes | None, port: int, mac: bytes) -> None:
        """Adds or replaces the peer at `index` (0 to 65,534); its counters are kept. Without an
        address its packets are dropped as ``unresolved``."""

    def remove_peer(self, index: int) -> None:
        """Removes the peer and its FDB entries, and adds its counters to those of
        :data:`REMOVED_PEERS`. ValueError while it has routes."""

    def set_routes(self, routes: Sequence[tuple[bytes, int, int]]) -> None:
        """Replaces all routes at once; each is ``(network, prefix length, peer index)``."""

    def lookup(self, address: bytes) -> int:
        """Returns the index of the peer with the longest matching prefix, -1 if there is none."""

    def trace(self, packet: bytes) -> tuple[int, bool, int, int, bytes]:
        """
        Returns what the packet path does with a packet from the device (with an `fdb`, a frame),
        without sending or counting it: ``(peer index or -1, whether it goes to every peer, index of
        the drop reason or -1, descriptor of the sending socket or -1, VXLAN and Ethernet headers
        that are put before it)``.
        """

    def outbound(self) -> int:
        """Moves up to one budget of packets from the device to peers. Returns how many were read.
        OSError if the device no longer works."""

    def inbound(self, family: int) -> int:
        """Moves up to one budget of messages (datagrams or trains) from peers to the device.
        Returns how many were received. OSError if the socket no longer works."""

    def move(self) -> bool:
        """Moves one budget in each direction. Returns True if an offload was turned off or control
        messages arrived since it last returned True. OSError if a descriptor no longer works; its
        `filename` is the descriptor."""

    def run(self, epoll: int, stop: int) -> bool:
        """Calls :meth:`move` whenever the descriptor `epoll` is ready, until that returns True.
        Returns False once `stop`, a member of the epoll, is readable. For a thread; others can use
        the forwarder between two moves."""

    def sent(self) -> tuple[int, ...]:
        """Packets sent to each peer, by index; 0 where there is no peer."""

    def received(self) -> tuple[int, ...]:
        """Packets received from each peer, by index; 0 where there is no peer."""

    def work(self) -> dict[str, int]:
        """How packets were moved, by the names in :data:`WORK`."""

    def trains(self) -> bytes:
        """One byte for each peer index: 0 if there is no peer, 1 if it gets no trains, 2 if it
        does."""

    def set_trains(self, index: int, on: bool) -> None:
        """Turns trains to a peer on or off. The packet path turns them off if the kernel refuses
        one."""

    def set_mtu(self, index: int, mtu: int) -> None:
        """Sets the largest inner packet, in bytes, that the path to a peer takes; 0 for unknown.
        Senders of larger ones get an ICMP error."""

    def set_neighbours(self, neighbours: Sequence[tuple[bytes, bytes]]) -> None:
        """Replaces the table of ``(overlay address, MAC)`` from which ARP and NDP are answered: in
        TUN mode requests of peers for addresses of this node, with an `fdb` requests from the
        device for addresses of peers."""

    def take_control_messages(self) -> list[tuple[int, bytes, int, bytes, bytes]]:
        """Returns and removes the queued messages: ``(index of a peer at that address, packed outer
        source address, EtherType, inner source MAC, body)``. EtherType 0x88b5 is a control frame,
        0x0806 ARP, 0x86dd a whole IPv6 packet with an NDP message; the latter two are copies of
        valid messages. :meth:`move` and :meth:`run` return True if more arrived."""

    def count_bad_control(self, index: int) -> None:
        """Counts a control frame of a peer that cannot be parsed as a drop."""

    @property
    def coalescing(self) -> tuple[bool, bool]:
        """(TCP, UDP): whether the device still takes super-packets."""
