"""The example with real CNI plugins: every way there is, and what a pod leaves when it goes."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from examples.pods import __main__ as demo
from examples.pods.cluster import Cluster, Connection, cluster
from tunnel.testing.lab import Host, LabError


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


def test_every_way_works(made: Cluster) -> None:
    connections = list(made.connections())
    assert len(connections) == 14
    assert {connection: connection.go() for connection in connections} == {
        connection: connection.seen_as for connection in connections
    }


def test_pods_have_what_subnet_env_says(made: Cluster) -> None:
    for number, node in enumerate((made.a, made.b), start=1):
        assert node.runtime.subnet_env == {
            "FLANNEL_NETWORK": "10.244.0.0/16",
            "FLANNEL_SUBNET": f"10.244.{number}.1/24",
            "FLANNEL_IPV6_NETWORK": "fd00:244::/32",
            "FLANNEL_IPV6_SUBNET": f"fd00:244:{number}::1/64",
            "FLANNEL_MTU": "1450",
            "FLANNEL_IPMASQ": "true",
        }
        for pod in node.pods:
            (link,) = json.loads(pod.host.run("ip -j link show eth0").stdout)
            assert link["mtu"] == 1450


def test_full_packets_fit(made: Cluster) -> None:
    (a1, _), (b1, _) = made.a.pods, made.b.pods
    a1.host.run(f"ping -n -c 1 -W 1 -M do -s {1450 - 28} {b1.ipv4}")
    a1.host.run(f"ping -n -c 1 -W 1 -M do -s {1450 - 48} {b1.ipv6}")


def test_the_demo_shows_every_way(
    made: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "cluster", lambda *, mode: nullcontext(made))
    assert demo.main() == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    assert all(
        connection.address in out and connection.seen_as in out for connection in made.connections()
    )
    assert "| VXLAN      |  8  flags 08, vni 1\n" in out
    assert out.endswith("\nthe packet arrives\n")


def test_the_demo_says_what_does_not_work(
    made: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(connection: Connection) -> str:
        if connection.what == "node a to pod b1":
            raise LabError("node a: python: TimeoutError: timed out")
        return "192.0.2.9" if connection.what == "pod a1 to outside" else connection.seen_as

    monkeypatch.setattr(demo, "cluster", lambda *, mode: nullcontext(made))
    monkeypatch.setattr(Connection, "go", go)
    assert demo.main() == 1
    out, errors = capsys.readouterr()
    assert "no connection" in out
    lines = errors.splitlines()
    assert len(lines) == 4
    assert "demo-pods: pod a1 to outside: is seen as 192.0.2.9, not 192.0.2.1" in lines
    assert "demo-pods: node a to pod b1: node a: python: TimeoutError: timed out" in lines


def test_a_table_that_forbids_forwarding_is_found(made: Cluster) -> None:
    """As Docker leaves it. Rules of another table cannot allow what it drops."""
    (a1, _), (b1, _) = made.a.pods, made.b.pods
    for iptables, address in (("iptables", b1.ipv4), ("ip6tables", b1.ipv6)):
        made.a.host.run(f"{iptables} -P FORWARD DROP")
        with pytest.raises(LabError):
            a1.host.run(f"ping -n -c 1 -W 0.3 {address}")
        (finding,) = forwarding(made.a.host)
        assert finding["level"] == "failed"
        assert "chain ip" in finding["text"]
        made.a.host.run(["sh", "-c", finding["advice"].rpartition(": ")[2]])
        a1.host.ping(address)
    assert [finding["level"] for finding in forwarding(made.a.host)] == ["ok"]


def forwarding(host: Host) -> list[dict[str, str]]:
    """What doctor says about it."""
    process = host.popen([sys.executable, "-m", "tunnel", "doctor", "--json"])
    output, _ = process.communicate(timeout=30)
    return [one for one in json.loads(output)["findings"] if one["check"] == "forwarding"]


def test_a_pod_that_goes_leaves_nothing(made: Cluster) -> None:
    node, pod = made.a, made.a.pods[0]
    node.runtime.remove(pod)
    assert "eth0" not in pod.host.run("ip link").stdout
    for listing in ("iptables -t nat -S", "ip6tables -t nat -S"):
        assert "--dport 8080" not in node.host.run(listing).stdout
    assert "10.244.1.2" not in node.host.run("ls /run/tunnel/cni/pods").stdout
    back = node.runtime.add(pod.host, ports=pod.ports)
    # host-local continues with the next address, so that no pod gets the address of a previous one.
    assert back.ipv4 not in (pod.ipv4, made.a.pods[1].ipv4)
