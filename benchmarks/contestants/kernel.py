"""The kernel's vxlan device, set up as flannel does: nothing is learned."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    macs = {"a": "02:00:5e:00:53:01", "b": "02:00:5e:00:53:02"}
    for end, other in zip(site.ends, "ba", strict=True):
        run, there = end.host.run, macs[other]
        run(
            f"ip link add vxlan1 address {macs[end.letter]} mtu {site.mtu} type vxlan id 1 "
            f"local {end.host.ipv4} dev eth0 dstport 4789 nolearning"
        )
        run(f"ip address add {end.address}/32 dev vxlan1")
        run("ip link set vxlan1 up")
        run(f"ip neigh replace {end.peer_address} lladdr {there} dev vxlan1 nud permanent")
        run(f"bridge fdb replace {there} dev vxlan1 dst {end.peer.ipv4} self permanent")
        run(f"ip route replace {end.peer_address}/32 dev vxlan1")
    return Running(site.far)


KERNEL = Contestant("kernel vxlan", start)
