"""
The FDB of a node in TAP mode, as people read and change it: by MAC, VLAN and endpoint.

The packet path has the same table by index (``native/fdb.c``), where it learns and looks up. The
entries of the peers' VTEPs are added and removed with the peers (``vteps.py``), and cannot be
changed here.
"""

from __future__ import annotations

from tunnel._native import Fdb
from tunnel.errors import ConfigError
from tunnel.node.node import Node
from tunnel.status import FdbEntry
from tunnel.types import Endpoint, Mac


def entries(node: Node) -> tuple[FdbEntry, ...]:
    """Returns all entries. Raises ConfigError in TUN mode, as all functions here do."""
    peers = {index: endpoint for endpoint, index in node.peers.indices.items()}
    return tuple(
        FdbEntry(Mac(mac), vlan, peers[index], static=static, age=age)
        for mac, vlan, index, static, age in _table(node).entries()
        if index in peers
    )


def add(node: Node, mac: Mac, *, vlan: int | None, peer: str | Endpoint) -> None:
    """Adds a static entry. Raises PeerNotFoundError; ConfigError for an invalid VLAN, or for the
    MAC of a VTEP."""
    table = _table(node)
    index = node.peers.indices[node.peers.find(peer)]
    _check(node, mac, vlan=vlan)
    table.put(mac.packed, vlan, index)


def remove(node: Node, mac: Mac, *, vlan: int | None) -> None:
    """Removes an entry. Raises ConfigError if there is none, or if it is that of a VTEP."""
    table = _table(node)
    _check(node, mac, vlan=vlan)
    if not table.remove(mac.packed, vlan):
        where = "" if vlan is None else f" vlan {vlan}"
        raise ConfigError(f"FDB entry {mac}{where} does not exist (see tunnel fdb list)")


def flush(node: Node, *, learned: bool) -> tuple[FdbEntry, ...]:
    """Removes all entries except those of VTEPs, or only the `learned` ones. Returns them."""
    table, owner = _table(node), node.peers.find_vtep
    if learned:
        chosen = [entry for entry in entries(node) if not entry.static]
    else:
        chosen = [entry for entry in entries(node) if entry.vlan or not owner(entry.mac)]
    return tuple(entry for entry in chosen if table.remove(entry.mac.packed, entry.vlan))


def _table(node: Node) -> Fdb:
    if node.fdb is None:
        raise ConfigError(f"{node.config.name} has no FDB: it forwards by routes (see --mode tap)")
    return node.fdb


def _check(node: Node, mac: Mac, *, vlan: int | None) -> None:
    """Raises ConfigError unless this is an entry that people may change."""
    if vlan is not None and not 1 <= vlan <= 4094:
        raise ConfigError(f"VLAN {vlan} is out of range (1 to 4094)")
    owner = node.peers.find_vtep(mac) if vlan is None else None
    if owner is not None:
        raise ConfigError(
            f"FDB entry {mac} belongs to the VTEP of peer {owner} (it is removed with the peer)"
        )
    if mac == node.underlay.mac:
        raise ConfigError(f"MAC {mac} is this node's own (no peer can have it)")
