"""socat between a TUN device and UDP: one read and one write for each packet, nothing else."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    daemons = [
        end.host.popen(
            "socat -b 65536 TUN,tun-name=socat,iff-no-pi "
            f"UDP-DATAGRAM:{end.peer.ipv4}:7000,bind={end.host.ipv4}:7000"
        )
        for end in site.ends
    ]
    for end in site.ends:
        end.set_up("socat", mtu=site.mtu)
    return Running(site.far, daemons)


SOCAT = Contestant("socat", start, ["socat"], "nothing but TUN to UDP")
