"""
Two nodes of a cluster in one program: they find each other in a shared directory.

    python cluster_embed.py [DIRECTORY]

Needs no privilege: the nodes have no device, and meet on loopback. On two hosts each would be a
program of its own, without `local`, and DIRECTORY would be one that both have mounted.
"""

import asyncio
import struct
import sys
import tempfile
from ipaddress import IPv4Network
from pathlib import Path

from tunnel import Cluster, ClusterConfig, TunnelError
from tunnel.cluster import DirectoryStore, Registry, make_network


def packet(source: str, destination: str, *, text: bytes) -> bytes:
    """IPv4 with a protocol number that is free for experiments, 253 (RFC 3692), and no checksum:
    no kernel sees it."""
    addresses = b"".join(bytes(map(int, address.split("."))) for address in (source, destination))
    return struct.pack("!BBHIBBH", 0x45, 0, 20 + len(text), 0, 64, 253, 0) + addresses + text


def node(directory: Path, number: int) -> Cluster:
    config = ClusterConfig(
        store=directory,
        state_dir=directory / f"state{number}",
        local=f"127.0.0.{number}",
        name=f"node{number}",
    )
    return Cluster(config, device=None)


async def main(directory: Path, *, port: int = 18472) -> None:
    async with DirectoryStore(directory) as store:
        await Registry(store).create(make_network(["10.42.0.0/16"], port=port))
    async with node(directory, 1) as one, node(directory, 2) as other:
        events = one.tunnel.events()
        while not one.tunnel.peers:
            await anext(events)
        subnets = []
        for member in (one, other):
            (subnet,) = member.tunnel.config.subnets
            assert isinstance(subnet, IPv4Network)
            subnets.append(subnet)
            print(f"{member.config.node.name} has {subnet}")
        source, destination = (str(subnet[1]) for subnet in subnets)
        await one.tunnel.send(packet(source, destination, text=b"are you there?"))
        received = await other.tunnel.receive()
        print(f"{other.config.node.name} got {received[20:].decode()!r}")


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            asyncio.run(main(Path(sys.argv[1])))
        else:
            with tempfile.TemporaryDirectory() as made:
                asyncio.run(main(Path(made)))
    except TunnelError as error:
        sys.exit(str(error))
