"""The bare link: what there is to carry for the others."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    return Running(site.b.ipv4)


VETH = Contestant("veth", start)
