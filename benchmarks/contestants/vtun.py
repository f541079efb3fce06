"""vtun over UDP: no encryption, no compression."""

import subprocess

from benchmarks.contestant import Contestant, End, Running, Site


def start(site: Site) -> Running:
    near, far = site.ends
    # Its server leaves a child with each client, which ends when the client does: hosts end in
    # reverse order, so the client is at the far end.
    server = _quiet(near, f"vtund -n -s -f {_config(site, near)}")
    near.host.run(["sh", "-c", "until ss -Hltn sport = :5000 | grep -q .; do sleep 0.05; done"])
    client = _quiet(far, f"vtund -n -f {_config(site, far)} bench {near.host.ipv4}")
    for end in site.ends:
        end.set_up("vtun", mtu=site.mtu)
    return Running(site.far, [client, server])


def _quiet(end: End, command: str) -> subprocess.Popen[str]:
    """Without our pipes: the server's child would hold them when the server is gone."""
    return end.host.popen(["sh", "-c", f"exec {command} >/dev/null 2>&1"])


def _config(site: Site, end: End) -> str:
    text = (
        "options { port 5000; }\n"
        "bench { password bench; type tun; device vtun; proto udp; encrypt no; compress no; }\n"
    )
    return str(site.file(f"{end.letter}.conf", text))


VTUN = Contestant("vtun", start, ["vtun"], "no encryption", most_mtu=1500)
