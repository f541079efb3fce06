"""The bare link: the upper limit for the others."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    return Running(site.b.ipv4)


VETH = Contestant("veth", start)
