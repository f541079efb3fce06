"""n2n: two edges that a supernode introduces to each other, then direct."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    supernode = site.a.popen("supernode -l 7654")
    # An edge that registers before the supernode listens retries after a long time only.
    site.a.run(["sh", "-c", "until ss -Hlun sport = :7654 | grep -q .; do sleep 0.05; done"])
    edges = [
        end.host.popen(
            f"edge -d n2n -a {end.address} -s 255.255.255.0 -c bench -k bench "
            f"-l {site.a.ipv4}:7654 -M {site.mtu} -u 0 -g 0"
        )
        for end in site.ends
    ]
    return Running(site.far, [*edges, supernode])


N2N = Contestant("n2n", start, ["n2n"], "encrypts: Twofish; Ethernet inside", max_mtu=1430)
