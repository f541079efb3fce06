"""wireguard-go of Debian: a version without offloads."""

import os

from benchmarks.contestant import Contestant, Running, Site


def start(site: Site) -> Running:
    # Its control sockets are in one directory for the whole machine.
    names = {end.letter: f"wg{os.getpid() % 10**8}{end.letter}" for end in site.ends}
    daemons = [
        end.host.popen(f"env LOG_LEVEL=error wireguard-go -f {names[end.letter]}")
        for end in site.ends
    ]
    keys, public = {}, {}
    for end in site.ends:
        key = end.host.run("wg genkey").stdout
        keys[end.letter] = site.file(end.letter, key)
        public[end.letter] = end.host.run(["sh", "-c", f"wg pubkey <{keys[end.letter]}"]).stdout
    for end, other in zip(site.ends, "ba", strict=True):
        name = names[end.letter]
        end.host.run(["sh", "-c", f"until wg show {name} >&- 2>&-; do sleep 0.05; done"])
        end.host.run(
            f"wg set {name} listen-port 51820 private-key {keys[end.letter]} "
            f"peer {public[other].strip()} endpoint {end.peer.ipv4}:51820 "
            f"allowed-ips {end.peer_address}/32"
        )
        end.set_up(name, mtu=site.mtu)
    return Running(site.far, daemons)


WIREGUARD_GO = Contestant(
    "wireguard-go", start, ["wireguard-go", "wireguard-tools"], "encrypts: ChaCha20-Poly1305"
)
