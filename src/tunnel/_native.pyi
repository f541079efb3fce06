"""The C core. Buffers are bytes-like; addresses are packed, 4 or 16 bytes."""

from collections.abc import Sequence
from typing import Any, Final, final

from _typeshed import structseq
from typing_extensions import Buffer

ANY_VTEP_MAC: Final[bytes]
"""02:76:74:65:70:00, the destination MAC for a peer whose own MAC is not known."""

DROP_REASONS: Final[tuple[tuple[str, str, str], ...]]
"""``(name, "outbound" | "inbound", what it means and what to do)``, in counter order."""

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
    """``"avx2"`` or ``"portable"``: what this CPU runs."""

def encode(packet: Buffer, vni: int, source: bytes, destination: bytes) -> bytes: ...
def decode(datagram: Buffer) -> tuple[int, bytes, bytes, int, bytes]: ...
def encode_batch(
    packets: Buffer, sizes: Buffer, out: Buffer, vni: int, source: bytes, destination: bytes
) -> int: ...
def decode_batch(datagrams: Buffer, sizes: Buffer, out: Buffer) -> int: ...
def decap(datagram: Buffer, vni: int, mac: bytes, ecn: int, bridged: bool) -> str | None:
    """Why a node of this VNI and MAC would drop one datagram that came with these outer ECN bits,
    as far as the datagram shows by itself; None where it would not. `bridged` is one that
    forwards frames, whoever they are for."""

@final
class Fdb:
    """
    Which peer a MAC is behind: one table that all workers' forwarders share.

    A VLAN is 1 to 4,094, or None for frames without a tag; peers go by their index. Entries are
    put (static), or learned from frames; learned ones never take a static one's place.

    Args:
        limit: Most learned entries, at most 2**20. Memory for them is taken as they come.
        share: Most of them from one peer: who floods us with MACs crowds out nobody else.
        ageing: Seconds after which a learned entry that was not seen again is none.
    """

    def __init__(self, *, limit: int, share: int, ageing: int) -> None: ...
    def put(self, mac: bytes, vlan: int | None, index: int) -> None:
        """Puts a static entry in the place of what was there. OverflowError if there are 65,536."""

    def remove(self, mac: bytes, vlan: int | None) -> bool:
        """Removes an entry of either kind. Returns whether there was one."""

    def lookup(self, mac: bytes, vlan: int | None) -> int:
        """Index of the peer, -1 if none is known."""

    def flush(self, index: int | None, learned_only: bool) -> None:
        """Removes the entries of one peer, or of all."""

    def entries(self) -> list[tuple[bytes, int | None, int, bool, int]]:
        """``(MAC, VLAN, peer index, static, seconds since it was seen)``; static ones: 0."""

    def counters(self) -> dict[str, int]:
        """Since it was made: ``learned`` entries, those that ``moved`` to another peer, those that
        ``aged``, and frames whose source was ``refused_full``: there was no room for it."""

@final
class Forwarder:
    """
    One worker: a device descriptor, UDP sockets, and the tables between them.

    Borrows its descriptors: it never opens or closes one. Of several threads one at a time
    is inside, the others wait. The GIL is released while packets move.

    Args:
        device, output: Descriptors that read and write one packet per call, non-blocking;
            most often the same.
        vnet_header: Each of these packets is preceded by a 10-byte virtio_net_hdr.
        coalesce_tcp, coalesce_udp: Write super-packets to the device (needs vnet_header).
        vni: 0 to 2**24-1.
        mac: Ours, 6 bytes.
        segments: Most datagrams in one train (127, 63), 1 turns trains off.
        fdb: The device is a TAP device: Ethernet frames go by this table instead of packets by
            their routes. Routes only tell then whose address is whose (``spoofed``).
        flood: Frames for a MAC that nobody is known for, and for all, go to every peer.
        learning: Frames from peers teach where their sources are.
        storm: Most flooded frames a second, and at once, to each peer, and from each those for
            all; more are dropped. 0 for any number. Each forwarder counts for itself.
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
        """UDP sockets of one underlay family (4 or 6). The first receives; each sends,
        chosen by a hash of the inner flow. An empty sequence takes the family away."""

    def set_peer(self, index: int, address: bytes | None, port: int, mac: bytes) -> None:
        """Puts or replaces the peer at `index` (0 to 65,534), keeping its counters.
        Without an address (not resolved yet) its packets are dropped and counted."""

    def remove_peer(self, index: int) -> None:
        """Forgets the peer, and its entries in the FDB; its counters go to index -2. Routes to it
        must go first (ValueError)."""

    def set_routes(self, routes: Sequence[tuple[bytes, int, int]]) -> None:
        """Replaces all routes, each ``(network, prefix length, peer index)``, at once."""

    def lookup(self, address: bytes) -> int:
        """Index of the peer that owns an overlay address, -1 if none does."""

    def trace(self, packet: bytes) -> tuple[int, bool, int, int, bytes]:
        """
        What would become of a packet from the device, or of a frame with an `fdb`, as the packet
        path itself decides it; nothing is sent or counted. ``(peer index or -1, whether it goes
        to every peer, index of the reason why it is dropped or -1, descriptor of the socket that
        would send it or -1, VXLAN and Ethernet headers that would be before it)``.
        """

    def outbound(self) -> int:
        """Moves up to one budget of packets from the device to peers. Returns how many
        packets were read. OSError if the device is gone."""

    def inbound(self, family: int) -> int:
        """Moves up to one budget of messages, datagrams or trains of them, from peers to the
        device. Returns how many messages were received. OSError if the socket is of no use."""

    def move(self) -> bool:
        """Both directions, one budget each. True when an offload was turned off or letters came
        since this last said so. OSError if a descriptor is of no use; it is in `filename`."""

    def run(self, watch: int, stop: int) -> bool:
        """Does :meth:`move` whenever `watch`, an epoll's descriptor, is ready, and returns
        True as that does; False once its member `stop` is readable. For a thread of its own;
        others use the forwarder between two moves."""

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
        """Turns trains towards a peer on or off; they also turn off by themselves."""

    def set_mtu(self, index: int, mtu: int) -> None:
        """Largest inner packet that the path to a peer takes, 0 to forget it. Senders of
        larger ones are told by ICMP."""

    def set_neighbours(self, neighbours: Sequence[tuple[bytes, bytes]]) -> None:
        """Replaces the table of ``(overlay address, MAC)`` by which ARP and NDP are answered: in
        TUN mode our own addresses, for peers that ask; with an `fdb` the peers', for the device."""

    def take_control_messages(self) -> list[tuple[int, bytes, int, bytes, bytes]]:
        """What came since for Python to read: ``(index of a peer at that address, packed outer
        source address, EtherType, inner source MAC, body)``. EtherType 0x88b5 is a control frame,
        0x0806 ARP, 0x86dd an NDP message, the whole IPv6 packet; those two are copies, checked to
        be well-formed. :meth:`move` and :meth:`run` return True when more came."""

    def count_bad_control(self, index: int) -> None:
        """Counts a control frame that could not be read as a drop of that peer's."""

    @property
    def coalescing(self) -> tuple[bool, bool]:
        """(TCP, UDP): whether the device still takes super-packets."""
