"""vtun over UDP: no encryption, no compression."""

import subprocess

from benchmarks.contestant import Contestant, End, Running, Site


def start(site: Site) -> Running:
    near, far = site.ends
    # The server forks a child for each client, which ends with the client. Hosts are closed in
    # reverse order, so the client runs on the far host.
    server = _quiet(near, f"vtund -n -s -f {_config(site, near)}")
    near.host.run(["sh", "-c", "until ss -Hltn sport = :5000 | grep -q .; do sleep 0.05; done"])
    client = _quiet(far, f"vtund -n -f {_config(site, far)} bench {near.host.ipv4}")
    for end in site.ends:
        end.set_up("vtun", mtu=site.mtu)
    return Running(site.far, [client, server])


def _quiet(end: End, command: str) -> subprocess.Popen[str]:
    """Starts a command without pipes: the server's child would keep them open."""
    return end.host.popen(["sh", "-c", f"exec {command} >/dev/null 2>&1"])


def _config(site: Site, end: End) -> str:
    text = (
        "options { port 5000; }\n"
        "bench { password bench; type tun; device vtun; proto udp; encrypt no; compress no; }\n"
    )
    return str(site.file(f"{end.letter}.conf", text))


VTUN = Contestant("vtun", start, ["vtun"], "no encryption", max_mtu=1500)
