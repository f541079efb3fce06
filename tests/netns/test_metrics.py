"""The metrics of a node as Prometheus scrapes them, compared with its status."""

import json
import sys

import pytest

from tests.netns.node import Node
from tests.netns.test_overlay import pair
from tests.unit.test_metrics import Samples, samples
from tunnel.testing.lab import Host, Lab

PYTHON = [sys.executable, "-m", "tunnel"]
GET = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode(), end="")
"""


def get(host: Host, url: str) -> tuple[int, str]:
    said = host.run([sys.executable, "-c", GET, url]).stdout
    code, _, body = said.partition("\n")
    return int(code), body


def scrape(host: Host, place: str) -> Samples:
    code, text = get(host, f"http://{place}/metrics")
    assert code == 200
    return samples(text)


@pytest.mark.parametrize("place", ["127.0.0.1:9472", "[::1]:9472"])
def test_a_scrape_agrees_with_status(lab: Lab, place: str) -> None:
    a, b = pair(lab)
    b.up(peers=[a.at(4)])  # first, so that none of a's echoes is lost
    a.up("--metrics", place, peers=[b.at(4)])
    peer = ("peer", f"{b.host.ipv4}:8472")
    a.host.ping(b.ipv4, count=5)
    while ("tunnel_peer_rtt_seconds", (peer,)) not in (found := scrape(a.host, place)):
        pass
    assert found["tunnel_peer_up", (peer,)] == 1
    assert 0 < found["tunnel_peer_rtt_seconds", (peer,)] < 5
    assert found["tunnel_peer_loss_ratio", (peer,)] == 0
    status = json.loads(a.host.run([*PYTHON, "status", "--json"]).stdout)
    (line,) = status["peers"]
    for way in ("outbound", "inbound"):
        labels = (("direction", way), peer)
        assert found["tunnel_packets_total", labels] == line[way]["packets"] == 5
        assert found["tunnel_bytes_total", labels] == line[way]["bytes"] == 5 * 84
    assert found["tunnel_mtu_bytes", ()] == status["mtu"]
    for offload in ("tso", "uso", "trains", "gro"):
        used = found["tunnel_offload", (("offload", offload),)]
        assert used == (offload in status["offloads"])
    assert found["process_open_fds", ()] > 5


def test_drops_have_the_peer_if_it_is_known(lab: Lab) -> None:
    a, b = pair(lab)
    a.up("--metrics", ":9472", peers=[b.at(4)])
    b.up("--subnet", "10.9.0.0/16", peers=[a.at(4)])
    # b uses an address that a does not know: a counts its packets as spoofed.
    b.host.run(f"sh -c 'ping -c 3 -i 0.01 -W 0.2 -I 10.9.0.0 {a.ipv4} || true'")
    a.host.run("ip route add 10.7.0.0/16 dev tunnel1")
    a.host.run("sh -c 'ping -c 2 -i 0.01 -W 0.2 10.7.0.1 || true'")
    found = scrape(a.host, "127.0.0.1:9472")
    assert found["tunnel_drops_total", (("peer", "192.0.2.2:8472"), ("reason", "spoofed"))] == 3
    assert found["tunnel_drops_total", (("peer", ""), ("reason", "no_route"))] == 2


def test_health(lab: Lab) -> None:
    a, b = pair(lab)
    a.up("--metrics", "192.0.2.1:9472", peers=[b.at(4)])
    place = "http://192.0.2.1:9472"
    # From the other host, where no node runs: a silent peer does not make a unready.
    assert get(b.host, f"{place}/healthz") == (200, "ok\n")
    assert get(b.host, f"{place}/readyz") == (200, "ready\n")
    a.host.run("ip link set tunnel1 down")
    code, said = get(b.host, f"{place}/readyz")
    assert code == 503
    assert said.startswith("not ready")
    assert get(b.host, f"{place}/healthz")[0] == 200
    assert scrape(b.host, "192.0.2.1:9472")["tunnel_device_up", ()] == 0
    said = a.host.run([*PYTHON, "status"]).stdout
    assert "\ndevice    tunnel1 (down), mac " in said
    a.host.run("ip link set tunnel1 up")
    assert get(b.host, f"{place}/readyz")[0] == 200
    assert get(b.host, f"{place}/")[0] == 404


def refused(node: Node, *words: str) -> str:
    process = node.host.popen([*PYTHON, "up", *words])
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, ""), err
    (line,) = err.splitlines()
    return line


def test_invalid_addresses(lab: Lab) -> None:
    a, b = pair(lab)
    assert "metrics 'x' is not ADDR:PORT (like 127.0.0.1:9472)" in refused(a, "--metrics", "x")
    assert "cannot listen on 203.0.113.1:1 for metrics" in refused(a, "--metrics", "203.0.113.1:1")
    a.up("--metrics", "127.0.0.1:9472", peers=[b.at(4)])
    words = ("--metrics", "127.0.0.1:9472", "--vni", "2", "--port", "8473")
    line = refused(a, *words)
    assert "in use" in line
    assert "choose another --metrics" in line
    assert "tunnel2" not in a.host.run("ip link").stdout
