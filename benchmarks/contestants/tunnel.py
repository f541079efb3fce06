"""This project, with each set of offloads."""

import sys
from functools import partial

from benchmarks.contestant import Contestant, Running, Site
from tunnel.lab import LabError


def start(site: Site, *, offload: str) -> Running:
    daemons, said, port = [], "", 8472 + site.number
    for end in site.ends:
        daemon = end.host.popen(
            f"{sys.executable} -m tunnel up --name tunnel{site.number} --local {end.host.ipv4} "
            f"--port {port} --mtu {site.mtu} --offload {offload} --subnet {end.address}/32 "
            f"--peer {end.peer.ipv4}:{port}={end.peer_address}/32"
        )
        assert daemon.stdout is not None
        said = daemon.stdout.readline().strip()
        if not said:
            raise LabError(f"tunnel up failed: {daemon.communicate()[1].strip()}")
        daemons.append(daemon)
    return Running(site.far, daemons, said)


def contestant(name: str, offload: str) -> Contestant:
    return Contestant(name, partial(start, offload=offload))


TUNNEL = contestant("tunnel", "auto")
TUNNEL_DEVICE = contestant("tunnel, device only", "tso,uso")
TUNNEL_TRAINS = contestant("tunnel, trains only", "trains,gro")
TUNNEL_NONE = contestant("tunnel, none", "none")
