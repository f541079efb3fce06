"""This project, with packets and frames, each set of offloads, and several workers."""

import sys
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from benchmarks.contestant import Contestant, Running, Site
from tunnel.testing.lab import LabError

Crowd = tuple[int, int, int]
"""Number of peers besides the measured one, number of prefixes of all these together, and the
index of the first prefix: contestants on one host must have different prefixes."""


def start(
    site: Site,
    *,
    mode: str = "tun",
    offload: str = "auto",
    workers: str = "auto",
    crowd: Crowd = (0, 0, 0),
) -> Running:
    daemons, ready_line, port = [], "", 8472 + site.number
    for end in site.ends:
        # The first host, which sends, has the additional peers.
        others = _others(end.peer.ipv4, *crowd) if end.letter == "a" else ""
        config = site.file(
            f"{end.letter}.toml",
            f'[[peer]]\nendpoint = "{end.peer.ipv4}:{port}"\nprefix = "{end.peer_address}/32"\n'
            f"{others}",
        )
        daemon = end.host.popen(
            f"{sys.executable} -m tunnel up --name tunnel{site.number} --local {end.host.ipv4} "
            f"--port {port} --mtu {site.mtu} --mode {mode} --offload {offload} --workers {workers} "
            f"--subnet {end.address}/32 --config {config}"
        )
        assert daemon.stdout is not None
        ready_line = daemon.stdout.readline().strip()
        if not ready_line:
            raise LabError(f"tunnel up failed: {daemon.communicate()[1].strip()}")
        daemons.append(daemon)
    return Running(site.far, daemons, ready_line)


def _others(address: str, peers: int, prefixes: int, first: int) -> str:
    """Returns, as TOML, peers on ports of `address` on which nothing listens."""
    text = []
    for peer in range(peers):
        own = range(first + peer, first + prefixes, peers)
        listed = ",\n".join(f'"{IPv4Address("10.128.0.0") + 32 * index}/27"' for index in own)
        text.append(f'[[peer]]\nendpoint = "{address}:{20_000 + peer}"\nprefix = [\n{listed}]\n')
    return "".join(text)


def contestant(name: str, **options: Any) -> Contestant:
    """Returns a contestant of this project, with options of :func:`start`."""
    return Contestant(name, partial(start, **options))


TUNNEL = contestant("tunnel")
TUNNEL_TAP = contestant("tunnel, frames", mode="tap")
TUNNEL_LOOP = contestant("tunnel, one worker", workers="1")
TUNNEL_WORKERS = contestant("tunnel, 2 workers", workers="2")
TUNNEL_DEVICE = contestant("tunnel, device only", offload="tso,uso")
TUNNEL_TRAINS = contestant("tunnel, trains only", offload="trains,gro")
TUNNEL_NONE = contestant("tunnel, none", offload="none")
