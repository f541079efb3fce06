"""fastd with its method null: authenticated handshake, bare packets."""

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    secrets, public = {}, {}
    for end in site.ends:
        # "Secret: ...", "Public: ..."
        words = end.host.run("fastd --generate-key").stdout.split()
        secrets[end.letter], public[end.letter] = words[1], words[3]
    daemons = []
    for end, other in zip(site.ends, "ba", strict=True):
        config = site.file(
            f"{end.letter}.conf",
            f'interface "fastd"; mode tun; mtu {site.mtu}; method "null"; log level error;\n'
            f'bind {end.host.ipv4}:10000; secret "{secrets[end.letter]}";\n'
            f'on up "ip address add {end.address}/24 dev fastd; ip link set fastd up";\n'
            f'peer "{other}" {{ remote {end.peer.ipv4}:10000; key "{public[other]}"; }}\n',
        )
        daemons.append(end.host.popen(f"fastd --config {config}"))
    return Running(site.far, daemons)


FASTD = Contestant("fastd", start, ["fastd"], "method null: not encrypted")
