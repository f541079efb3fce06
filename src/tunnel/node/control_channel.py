"""Sends control messages and solicitations to peers. One that cannot be sent is lost."""

from __future__ import annotations

from collections.abc import Iterable

from tunnel.linux.underlay import Underlay
from tunnel.protocol import arp, control_frames
from tunnel.protocol.control_frames import Message
from tunnel.types import ANY_VTEP_MAC, Address, Mac, Peer


class ControlChannel:
    """Sends control frames to the peers of one node."""

    def __init__(self, underlay: Underlay, *, vni: int) -> None:
        self._underlay, self._vni = underlay, vni

    def send(
        self, message: Message, peer: Peer, address: Address, *, size: int, dont_fragment: bool
    ) -> None:
        """Sends one message, padded to `size` bytes after the Ethernet header."""
        datagram = self._encode(message, peer, size=size)
        self._underlay.send(datagram, address, peer.endpoint.port, dont_fragment=dont_fragment)

    def send_train(self, messages: Iterable[Message], peer: Peer, address: Address) -> None:
        """Sends messages of equal length as one train."""
        datagrams = [self._encode(message, peer, size=0) for message in messages]
        self._underlay.send_train(datagrams, address, peer.endpoint.port)

    def solicit(
        self, target: Address, peer: Peer, address: Address, *, source: Address | None
    ) -> None:
        """Sends an ARP request or NDP solicitation for an overlay address; `source` is an overlay
        address of this node."""
        mac = self._underlay.mac
        destination, ethertype, body = arp.solicit(target, source=source, mac=mac)
        headers = control_frames.headers(
            self._vni, destination=destination, source=mac, ethertype=ethertype
        )
        self._underlay.send(headers + body, address, peer.endpoint.port, dont_fragment=False)

    def _encode(self, message: Message, peer: Peer, *, size: int) -> bytes:
        destination: Mac = peer.mac or ANY_VTEP_MAC
        return control_frames.encode(
            message, vni=self._vni, source=self._underlay.mac, destination=destination, size=size
        )
