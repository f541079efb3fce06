"""nebula with one certificate authority and no lighthouse: each has the other's address."""

import json

from benchmarks.contestant import Contestant, End, Running, Site


def start(site: Site) -> Running:
    pki = site.directory
    site.a.run(f"nebula-cert ca -name bench -out-crt {pki}/ca.crt -out-key {pki}/ca.key")
    daemons = []
    for end in site.ends:
        site.a.run(
            f"nebula-cert sign -name {end.letter} -ip {end.address}/24 "
            f"-ca-crt {pki}/ca.crt -ca-key {pki}/ca.key "
            f"-out-crt {pki}/{end.letter}.crt -out-key {pki}/{end.letter}.key"
        )
        config = site.file(f"{end.letter}.yml", json.dumps(_config(site, end)))
        daemons.append(end.host.popen(f"nebula -config {config}"))
    return Running(site.far, daemons)


def _config(site: Site, end: End) -> dict[str, object]:
    """Returns the configuration, which is written as JSON: that is YAML as well."""
    anything = [{"port": "any", "proto": "any", "host": "any"}]
    return {
        "pki": {
            "ca": f"{site.directory}/ca.crt",
            "cert": f"{site.directory}/{end.letter}.crt",
            "key": f"{site.directory}/{end.letter}.key",
        },
        "static_host_map": {end.peer_address: [f"{end.peer.ipv4}:4242"]},
        "lighthouse": {"am_lighthouse": False},
        "listen": {"host": end.host.ipv4, "port": 4242},
        "tun": {"dev": "nebula", "mtu": site.mtu},
        "cipher": "aes",
        "logging": {"level": "error"},
        "firewall": {"outbound": anything, "inbound": anything},
    }


NEBULA = Contestant("nebula", start, ["nebula"], "encrypts: AES-256-GCM", max_mtu=8900)
