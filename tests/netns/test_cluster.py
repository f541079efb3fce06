"""Nodes that find each other in etcd: with flannel, after failures, and while etcd is away."""

import asyncio
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from examples.cluster import __main__ as demo
from tests.netns import chaos
from tests.netns.etcd import Authority, Etcd
from tests.netns.member import PREFIX, Keys, Member, keys_on, reach, until
from tests.netns.traffic import inside
from tests.netns.unprivileged import python_as_nobody
from tunnel.cluster.config_source import StoreConfigSource
from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.registry import open_store
from tunnel.cluster.state import State
from tunnel.config.cluster import ClusterConfig, read_config
from tunnel.testing.lab import Host, Lab

OUR_TTL = ("--subnet-lease-ttl", "3")


@contextmanager
def cluster(
    lab: Lab,
    directory: Path,
    count: int,
    *words: str,
    members: int = 1,
    network: dict[str, object] | None = None,
) -> Iterator[tuple[Keys, list[Member]]]:
    """Linked hosts with a node on each, not started yet, and a host with etcd."""
    hosts = [lab.host(str(number)) for number in range(count)]
    store = lab.host("store")
    lab.switch(*hosts, store)
    with keys_on(store, directory, members=members) as keys:
        keys.init(network or {})
        yield keys, [Member(host, *keys.words, *words) for host in hosts]


def all_up(members: Sequence[Member], *, peers: int | None = None) -> None:
    """Starts them at once, so that they race for subnets."""
    for member in members:
        member.start()
    for member in members:
        member.ready()
    for member in members:
        member.until_peers(len(members) - 1 if peers is None else peers)


@pytest.mark.parametrize("count", [2, 5])
def test_nodes_get_a_subnet_each_and_reach_each_other(lab: Lab, tmp_path: Path, count: int) -> None:
    with cluster(lab, tmp_path, count) as (keys, members):
        all_up(members)
        subnets = [member.subnets for member in members]
        assert len({one for (one,) in subnets}) == count
        assert all(ip_network(one).subnet_of(ip_network("10.42.0.0/16")) for (one,) in subnets)  # type: ignore[arg-type]
        reach(*members)
        for member, (subnet,) in zip(members, subnets, strict=True):
            status = member.status()
            record = keys.subnets()[subnet.replace("/", "-")]
            node = record.pop("Node")
            assert re.fullmatch("[0-9a-f]{32}", node)
            # Exactly what flannel writes, beside our own name.
            assert record == {
                "PublicIP": member.host.ipv4,
                "PublicIPv6": None,
                "BackendType": "vxlan",
                "BackendData": {"VNI": 1, "VtepMAC": status["mac"]},
            }
            assert status["store"]["connected"]
            assert status["store"]["key"].endswith(subnet.replace("/", "-"))
            assert 80_000 < status["store"]["lease_remaining"] <= 86_400


def test_dual_stack_with_vni_and_port_of_the_network(lab: Lab, tmp_path: Path) -> None:
    network = {
        "EnableIPv6": True,
        "IPv6Network": "fd00:42::/48",
        "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789},
    }
    with cluster(lab, tmp_path, 2, network=network) as (keys, members):
        all_up(members)
        reach(*members)
        for member in members:
            assert [ip_network(one).version for one in member.subnets] == [4, 6]
            assert member.status()["vni"] == 7
            assert member.status()["endpoints"] == [f"{member.host.ipv4}:4789"]
        for name, record in keys.subnets().items():
            assert "&fd00:42:" in name
            assert record["BackendV6Data"] == record["BackendData"]
            assert record["PublicIPv6"] in [member.host.ipv6 for member in members]


def test_a_restart_changes_nothing_even_while_the_store_is_away(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        all_up(members)
        one, other = members
        before = [(member.subnets, member.status()["mac"], member.peers()) for member in members]
        until(lambda: other.peers() == before[1][2])
        time.sleep(0.3)
        one.down()
        keys.etcd.kill(0)
        one.up()
        reach(one, other)
        assert (one.subnets, one.status()["mac"], one.peers()) == before[0]
        assert not one.store["connected"]
        assert "connection refused" in one.store["why"]
        keys.etcd.start(0)
        keys.wait()
        until(lambda: one.store["connected"] and one.store["key"])
        assert [(m.subnets, m.status()["mac"], m.peers()) for m in members] == before
        reach(one, other)


def test_its_address_may_change(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        all_up(members)
        one, other = members
        before = one.subnets, one.status()["mac"]
        one.down()
        one.host.run("ip address del dev eth0 192.0.2.1/24")
        one.host.run("ip address add dev eth0 192.0.2.99/24")
        one.up()
        assert (one.subnets, one.status()["mac"]) == before
        until(lambda: other.peers() == {"192.0.2.99": before[0]})
        reach(one, other)
        assert len(keys.subnets()) == 2


def test_the_store_is_away_for_longer_than_a_lease(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 3, *OUR_TTL) as (keys, members):
        all_up(members)
        before = [member.subnets for member in members]
        keys.etcd.kill(0)
        for _ in range(5):
            reach(*members)
            time.sleep(0.8)
        assert not any(member.store["connected"] for member in members)
        assert {member.store["lease_remaining"] for member in members} == {0.0}
        keys.etcd.start(0)
        keys.wait()
        until(lambda: all(member.store["connected"] for member in members))
        until(lambda: all((member.store["lease_remaining"] or 0) > 1 for member in members))
        reach(*members)
        assert [member.subnets for member in members] == before
        assert {name.replace("-", "/") for name in keys.subnets()} == {one for (one,) in before}


def test_an_etcd_that_has_lost_everything(lab: Lab, tmp_path: Path) -> None:
    """Its revisions begin again, and the running nodes write their records again."""
    with cluster(lab, tmp_path, 2) as (keys, members):
        all_up(members)
        before = [member.subnets for member in members]
        keys.etcd.kill(0)
        shutil.rmtree(tmp_path / "m0")
        keys.etcd.start(0)
        keys.wait()
        until(lambda: len(keys.subnets()) == 2)
        until(lambda: all(member.store["troubles"] for member in members))
        reach(*members)
        keys.init({})
        until(lambda: not any(member.store["troubles"] for member in members))
        reach(*members)
        assert [member.subnets for member in members] == before
        assert {name.replace("-", "/") for name in keys.subnets()} == {one for (one,) in before}


def test_two_hosts_with_one_identity(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        one, copy = members
        one.up()
        identity = one.host.run("cat /run/tunnel/state/tunnel1.json").stdout
        copy.host.run(["sh", "-c", 'mkdir -p /run/tunnel/state; printf %s "$0" > $1', identity,
                       "/run/tunnel/state/tunnel1.json"])  # fmt: skip
        copy.up()
        assert copy.subnets == one.subnets
        (record,) = keys.subnets().values()
        assert record["PublicIP"] == copy.host.ipv4
        time.sleep(1)
        (record,) = keys.subnets().values()
        assert record["PublicIP"] == copy.host.ipv4  # the pauses are long
        assert f"{copy.host.ipv4} has the same node id" in one.down()


def test_one_hears_that_the_lease_of_another_ran_out(lab: Lab, tmp_path: Path) -> None:
    """Both were cut off from the store, and one still is: packets pass between them."""
    with cluster(lab, tmp_path, 2, *OUR_TTL) as (keys, members):
        all_up(members)
        before = [member.subnets for member in members]
        one, other = members
        with chaos.Traffic(members) as traffic:
            for member in members:
                _disconnect(member, keys)
            until(lambda: not keys.subnets())
            _disconnect(one, keys, verb="del")
            until(lambda: len(keys.subnets()) == 1)
            until(lambda: one.store["connected"] and one.store["lease_remaining"])
            assert not other.store["connected"]
            time.sleep(1.5)
            _disconnect(other, keys, verb="del")
            until(lambda: len(keys.subnets()) == 2)
        assert len(traffic.gaps) == 2
        assert max(traffic.gaps.values()) < 4
        assert [member.subnets for member in members] == before


def _disconnect(member: Member, keys: Keys, *, verb: str = "add") -> None:
    member.host.run(f"ip route {verb} blackhole {keys.host.ipv4}")
    keys.host.run(f"ip route {verb} blackhole {member.host.ipv4}")


def test_somebody_deletes_our_key_and_somebody_takes_it(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        all_up(members)
        one, other = members
        (before,) = one.subnets
        name = before.replace("/", "-")
        keys.delete(f"subnets/{name}")
        until(lambda: name in keys.subnets())
        assert one.subnets == [before]
        # While the node is cut off, another one gets the subnet.
        one.host.run("ip link set eth0 down")
        keys.delete(f"subnets/{name}")
        keys.put(f"subnets/{name}", {"PublicIP": "192.0.2.99", "BackendType": "vxlan"}, ttl=600)
        one.host.run("ip link set eth0 up")
        until(lambda: one.subnets != [before], patience=40)
        until(lambda: other.peers().get(one.host.ipv4) == one.subnets)
        assert one.peers()["192.0.2.99"] == [before]
        reach(one, other)
        assert before.partition("/")[0] not in one.host.run("ip address show tunnel1").stdout
        logged = one.down()
        assert f"lost {before}: " in logged
        assert "192.0.2.99" in logged


def test_what_was_missed_is_compared(lab: Lab, tmp_path: Path) -> None:
    """A watch cannot continue after a compaction: whole values are compared."""
    with cluster(lab, tmp_path, 2) as (keys, members):
        changes = {
            "10.42.200.0-24": ("192.0.2.50", "192.0.2.51"),
            "10.42.201.0-24": ("192.0.2.52", None),
            "10.42.202.0-24": (None, "192.0.2.53"),
        }
        for name, (before, _) in changes.items():
            if before:
                keys.put(f"subnets/{name}", {"PublicIP": before, "BackendType": "vxlan"})
        all_up(members, peers=3)
        one = members[0]
        one.host.run("ip link set eth0 down")
        keys.etcd.kill(0)
        keys.etcd.start(0)
        keys.wait()
        for name, (_, after) in changes.items():
            if after:
                keys.put(f"subnets/{name}", {"PublicIP": after, "BackendType": "vxlan"})
            else:
                keys.delete(f"subnets/{name}")
        with inside(keys.host):
            keys.etcd.compact()
        one.host.run("ip link set eth0 up")
        wanted = {"192.0.2.51": ["10.42.200.0/24"], "192.0.2.53": ["10.42.202.0/24"]}
        until(lambda: wanted.items() <= one.peers().items(), patience=40)
        assert "192.0.2.50" not in one.peers()
        assert one.peers()[members[1].host.ipv4] == members[1].subnets
        reach(*members)


FLANNEL = """
import base64, ipaddress, json, subprocess, sys, urllib.request
endpoint, address, subnet, mac = sys.argv[1:]
b64 = lambda text: base64.b64encode(text.encode()).decode()
prefix = "/coreos.com/network/subnets/"

def call(method, request):
    request = urllib.request.Request(f"{endpoint}/v3/{method}", json.dumps(request).encode())
    return json.load(urllib.request.urlopen(request, timeout=30))

def run(command):
    subprocess.run(command.split(), check=True)

def gateway(subnet):
    return subnet.partition("/")[0]

run(f"ip link add flannel.1 address {mac} type vxlan id 1 local {address} dev eth0 dstport 8472 "
    "nolearning")
run(f"ip address add {gateway(subnet)}/32 dev flannel.1")
run("ip link set flannel.1 up")
record = {"PublicIP": address, "PublicIPv6": None, "BackendType": "vxlan",
          "BackendData": {"VNI": 1, "VtepMAC": mac}}
lease = call("lease/grant", {"TTL": 600})["ID"]
key = prefix + subnet.replace("/", "-")
call("kv/put", {"key": b64(key), "value": b64(json.dumps(record)), "lease": lease})
print("ready", flush=True)
known = set()
while True:
    found = call("kv/range", {"key": b64(prefix), "range_end": b64(prefix[:-1] + "0")})
    for one in found.get("kvs", []):
        name, value = (base64.b64decode(one[word]).decode() for word in ("key", "value"))
        other, lease = name.removeprefix(prefix).replace("-", "/"), json.loads(value)
        if (other, value) in known or lease["PublicIP"] == address:
            continue
        known.add((other, value))
        there = lease["BackendData"]["VtepMAC"]
        run(f"ip neigh replace {gateway(other)} lladdr {there} dev flannel.1 nud permanent")
        run(f"bridge fdb replace {there} dev flannel.1 dst {lease['PublicIP']} self permanent")
        run(f"ip route replace {other} via {gateway(other)} dev flannel.1 onlink")
        print(other, flush=True)
"""


def test_a_flannel_node_is_a_member(lab: Lab, tmp_path: Path) -> None:
    """The kernel's vxlan device, configured from etcd as flannel does it."""
    with cluster(lab, tmp_path, 3) as (keys, members):
        flannel, *ours = members
        all_up(ours)
        subnet, address = "10.42.77.0/24", "10.42.77.0"
        for mac in ("02:00:5e:00:53:77", "02:00:5e:00:53:78"):  # another one after a reboot
            command = [sys.executable, "-c", FLANNEL, keys.etcd.endpoints[0]]
            process = flannel.host.popen([*command, flannel.host.ipv4, subnet, mac])
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(3)]
            assert lines[0] == "ready", process.communicate()
            assert set(lines[1:]) == {one for member in ours for one in member.subnets}
            for member in ours:
                until(lambda: _macs(member).get(flannel.host.ipv4) == mac)  # noqa: B023
                assert member.peers()[flannel.host.ipv4] == [subnet]
                member.host.ping(address)
                flannel.host.ping(member.addresses[0])
            process.kill()
            flannel.host.run("ip link delete flannel.1")
        # One of our nodes takes its place and matches the record by its address: it has the subnet,
        # and a MAC of its own unless it is given flannel's.
        for words in ((), ("--mac", mac)):
            flannel.up(*words)
            assert flannel.subnets == [subnet]
            assert (flannel.status()["mac"] == mac) == bool(words)
            for member in ours:
                until(lambda: _macs(member).get(flannel.host.ipv4) == flannel.status()["mac"])  # noqa: B023
            reach(flannel, *ours)
            flannel.down()


def test_a_flannel_node_of_both_families(lab: Lab, tmp_path: Path) -> None:
    """Inner IPv4 over outer IPv4 and inner IPv6 over outer IPv6, each with a device of its own."""
    network = {"EnableIPv6": True, "IPv6Network": "fd00:42::/48"}
    with cluster(lab, tmp_path, 2, network=network) as (keys, (flannel, ours)):
        host, macs = flannel.host, ("02:00:5e:00:53:04", "02:00:5e:00:53:06")
        record = {
            "PublicIP": host.ipv4,
            "PublicIPv6": host.ipv6,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": macs[0]},
            "BackendV6Data": {"VNI": 1, "VtepMAC": macs[1]},
        }
        keys.put("subnets/10.42.77.0-24&fd00:42:0:77::-64", record, ttl=600)
        ours.up()
        ours.until_peers(2)
        theirs = ("10.42.77.0", "fd00:42:0:77::")
        ways = zip(
            ("flannel.1", "flannel-v6.1"),
            macs,
            (host.ipv4, host.ipv6),
            theirs,
            ours.subnets,
            (ours.host.ipv4, ours.host.ipv6),
            strict=True,
        )
        for device, mac, local, own, subnet, remote in ways:
            gateway, there = subnet.partition("/")[0], ours.status()["mac"]
            host.run(
                f"ip link add {device} address {mac} type vxlan id 1 local {local} dev eth0 "
                "dstport 8472 nolearning"
            )
            host.run(f"ip address add {own} dev {device} noprefixroute nodad")
            host.run(f"ip link set {device} up")
            host.run(f"ip neigh replace {gateway} lladdr {there} dev {device} nud permanent")
            host.run(f"bridge fdb replace {there} dev {device} dst {remote} self permanent")
            host.run(f"ip route replace {subnet} via {gateway} dev {device} onlink")
        for address, own in zip(theirs, ours.addresses, strict=True):
            ours.host.ping(address)
            host.ping(own)


def test_ipv6_alone(lab: Lab, tmp_path: Path) -> None:
    network = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:42::/48"}
    with cluster(lab, tmp_path, 2, network=network) as (keys, members):
        all_up(members)
        assert all(name.startswith("0.0.0.0-0&fd00:42:") for name in keys.subnets())
        reach(*members)


def _macs(member: Member) -> dict[str, str]:
    peers = member.status()["peers"]
    return {one["endpoint"].rpartition(":")[0]: one["mac"] for one in peers}


def test_a_reserved_subnet_and_static_peers(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        one, other = members
        keys.put("subnets/10.42.9.0-24", {"PublicIP": one.host.ipv4})
        one.up("--peer", "192.0.2.77=10.77.0.0/16")
        assert one.subnets == ["10.42.9.0/24"]
        assert one.store["lease_remaining"] is None
        other.up("--subnet", "10.42.111.0/24")
        assert other.subnets == ["10.42.111.0/24"]
        one.until_peers(2)
        assert one.peers()["192.0.2.77"] == ["10.77.0.0/16"]
        reach(one, other)
        assert other.down() == ""
        other.up("--subnet", "10.42.9.0/24")
        assert other.subnets == ["10.42.111.0/24"]
        assert "has 10.42.111.0/24, not 10.42.9.0/24 as preferred" in other.down()


def test_a_reload_changes_static_peers_alone(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2) as (keys, members):
        one, other = members
        other.up()
        _write(one.host, keys, 'peer = ["192.0.2.77=10.77.0.0/16"]')
        one.up("--config", "/run/tunnel/one.toml")
        one.until_peers(2)
        changes = [
            ('peer = ["192.0.2.78=10.78.0.0/16"]', 0, "192.0.2.78"),
            ("mtu = 1300", 2, "mtu cannot change while the node runs"),
            ('etcd-prefix = "/elsewhere"', 2, "etcd-prefix cannot change"),
            (f'peer = ["192.0.2.79={other.subnets[0]}"]', 0, "192.0.2.79"),
        ]
        for text, code, says in changes:
            _write(one.host, keys, text)
            process = one.host.popen([sys.executable, "-m", "tunnel", "reload"])
            out, error = process.communicate(timeout=20)
            assert (process.returncode, says in out + error) == (code, True), (out, error)
        # A configured peer has precedence over records.
        assert one.peers() == {"192.0.2.79": other.subnets}


def _write(host: Host, keys: Keys, text: str) -> None:
    """Writes the configuration where the user of the node can read it."""
    text = f'etcd-endpoints = "{keys.etcd.endpoints[0]}"\n{text}\n'
    host.run(["sh", "-c", 'printf %s "$0" >/run/tunnel/one.toml', text])


def test_a_directory_that_all_share(lab: Lab) -> None:
    hosts = lab.host("a"), lab.host("b")
    lab.link(*hosts)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o777)
        words = ["network", "init", "--network", "10.42.0.0/16", "--store", directory]
        hosts[0].run([*python_as_nobody(), "-m", "tunnel", *words])
        members = [Member(host, "--store", directory, "--user", "nobody") for host in hosts]
        all_up(members)
        reach(*members)
        one, other = members
        before = [member.subnets for member in members]
        other.kill()
        other.up()
        one.down()
        one.up()
        one.until_peers(1)
        assert [member.subnets for member in members] == before
        reach(*members)


def test_containers_get_network_and_subnet_of_the_store(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 1, "--subnet-file", "/run/tunnel/subnet.env") as (_, (one,)):
        one.up()
        text = one.host.run("cat /run/tunnel/subnet.env").stdout
        (subnet,) = one.subnets
        assert "FLANNEL_NETWORK=10.42.0.0/16\n" in text
        assert f"FLANNEL_SUBNET={ip_network(subnet)[1]}/24\n" in text


def test_members_of_the_store_fail_over(lab: Lab, tmp_path: Path) -> None:
    with cluster(lab, tmp_path, 2, *OUR_TTL, members=3) as (keys, members):
        all_up(members)
        before = [member.subnets for member in members]
        with inside(keys.host):
            leader = keys.etcd.leader()
        keys.etcd.kill(leader)
        keys.member = (leader + 1) % 3
        keys.put("subnets/10.42.200.0-24", {"PublicIP": "192.0.2.50", "BackendType": "vxlan"})
        for member in members:
            member.until_peers(2)
        until(lambda: all((member.store["lease_remaining"] or 0) > 1 for member in members))
        assert [member.subnets for member in members] == before
        reach(*members)


def test_a_store_that_accepts_and_never_answers(lab: Lab, tmp_path: Path) -> None:
    """A node reports it after the time limit of a call; packets do not wait. When etcd continues,
    it first reports that all leases expired."""
    with cluster(lab, tmp_path, 2, *OUR_TTL) as (keys, members):
        all_up(members)
        before = [member.subnets for member in members]
        with chaos.Traffic(members) as traffic:
            keys.etcd.freeze(0)
            until(lambda: not any(member.store["connected"] for member in members))
            assert all("no answer" in member.store["why"] for member in members)
            keys.etcd.thaw(0)
            until(lambda: all(member.store["connected"] for member in members))
            until(lambda: all((member.store["lease_remaining"] or 0) > 1 for member in members))
        assert len(traffic.gaps) == 2
        assert max(traffic.gaps.values()) < 4
        assert [member.subnets for member in members] == before


@pytest.mark.parametrize("what", ["ca", "user", "nobody", "no config"])
def test_what_is_wrong_is_said_in_one_line(lab: Lab, tmp_path: Path, what: str) -> None:
    host = lab.host("one")
    lab.link(host, lab.host("other"))
    words = ["--etcd-endpoints", "http://127.0.0.1:1"]
    said = "connection refused"
    with ExitStack() as stack:
        etcd: Etcd | None = None
        if what == "ca":
            mine, other = Authority(tmp_path / "mine"), Authority(tmp_path / "other")
            certificate, key = mine.certificate("etcd")
            tls = [f"--cert-file={certificate}", f"--key-file={key}"]
            etcd = Etcd(tmp_path, scheme="https", words=tls, popen=host.popen)
            words, said = ["--etcd-cafile", other.ca], "certificate"
        elif what != "nobody":
            etcd = Etcd(tmp_path, popen=host.popen)
            words, said = [], "tunnel network init"
        if etcd is not None:
            with inside(host):
                stack.enter_context(etcd)
                if what == "user":
                    etcd.enable_auth(user="u", password="p", prefix=PREFIX)
                    words, said = ["--etcd-username", "u", "--etcd-password", "q"], "password"
            words += ["--etcd-endpoints", etcd.endpoints[0]]
        process = host.popen([sys.executable, "-m", "tunnel", "up", "--iface", "eth0", *words])
        assert process.stderr is not None
        line = process.stderr.readline()
        assert said in line
        if what in ("ca", "user"):
            assert process.wait(5) == 2
        else:  # it waits for the store, and for the config
            assert process.poll() is None
            process.terminate()
            assert process.wait(5) == 0
        assert process.stderr.read() == ""


def test_the_demo_shows_who_reaches_whom(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    assert len(re.findall(r"10\.42\.\d+\.0/24", out)) == 3
    assert len(re.findall(r"\d ms", out)) == 9


def test_packets_go_on_between_those_that_live() -> None:
    """A short run of "make chaos", which takes two minutes."""
    chaos.run(6, seed=3)


async def test_fifty_race_for_a_20(lab: Lab, tmp_path: Path) -> None:
    """Fifty nodes join at once, without opening a tunnel; five times on each loop."""
    store = lab.host("store")
    lab.link(store, lab.host("other"))
    with keys_on(store, tmp_path) as keys:
        for turn in range(5):
            keys.init({"Network": "10.42.0.0/20", "SubnetLen": 26})
            with inside(store):
                configs = [_config(keys, tmp_path / f"{turn}-{n}", n) for n in range(50)]
                sources = [_source(one) for one in configs]
                joined = await asyncio.gather(*(source.load() for source in sources))
                await asyncio.gather(*(source.close() for source in sources))
            subnets = [str(one.subnets[0]) for one in joined]
            assert len(set(subnets)) == 50
            records = {name: one["PublicIP"] for name, one in keys.subnets().items()}
            wanted = {one.replace("/", "-"): f"198.18.0.{n + 1}" for n, one in enumerate(subnets)}
            assert records == wanted
            for name in records:
                keys.delete(f"subnets/{name}")


def _source(config: ClusterConfig) -> StoreConfigSource:
    connection = StoreConnection(open_store(config), name="tunnel1")
    return StoreConfigSource(
        config, connection=connection, state=State(config.state_dir, name="tunnel1")
    )


def _config(keys: Keys, state: Path, number: int) -> ClusterConfig:
    words = {
        "etcd-endpoints": keys.etcd.endpoints,
        "public-ip": f"198.18.0.{number + 1}",
        "iface": "eth0",
        "state-dir": state,
    }
    state.mkdir()
    config = read_config(words)
    assert isinstance(config, ClusterConfig)
    return config
