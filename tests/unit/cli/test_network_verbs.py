"""``tunnel network`` on a directory, and what ``tunnel status`` says of a store."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from tunnel.cli import main
from tunnel.cli.status_view import view
from tunnel.cluster import DirectoryStore

SCHEMAS = Path(__file__).parents[2] / "schemas"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNNEL_STORE", str(tmp_path))
    return tmp_path


class Verb:
    """Runs ``tunnel network``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def tell(self, words: str, *, code: int = 0) -> str:
        assert main(["network", *words.split()]) == code
        out, error = self._capsys.readouterr()
        assert len(error.splitlines()) == (1 if code == 2 else 0), error
        return error if code == 2 else out

    def ask(self, words: str, *, schema: str, code: int = 0) -> Any:
        found = json.loads(self.tell(f"{words} --json", code=code))
        jsonschema.validate(found, json.loads((SCHEMAS / f"{schema}.json").read_text()))
        return found


@pytest.fixture
def network(store: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    return Verb(capsys)


def test_a_network_is_written_once(network: Verb) -> None:
    assert "tunnel network init" in network.tell("show", code=2)
    said = network.tell("init --network 10.42.0.0/16 --vni 7")
    assert said.splitlines() == [
        "10.42.0.0/16: 255 subnets of /24, 10.42.1.0 to 10.42.255.0",
        "vni 7, port 8472",
    ]
    assert network.tell("init --network 10.42.0.0/16 --vni 7") == said
    assert "--replace writes over it" in network.tell("init --network 10.43.0.0/16", code=2)
    shown = network.ask("init --network 10.43.0.0/16 --subnet-len 26 --replace", schema="network")
    assert shown["pools"][0]["subnet_length"] == 26
    assert network.ask("show", schema="network") == shown


def test_both_families_and_the_ends(network: Verb) -> None:
    words = "--network fd00:42::/48 --network 10.42.0.0/16 --mtu 9000"
    ends = "--subnet-min 10.42.16.0 --subnet-max 10.42.31.0 --ipv6-subnet-len 60"
    shown = network.ask(f"init {words} {ends}", schema="network")
    four, six = shown["pools"]
    assert (four["first"], four["last"], four["subnets"]) == ("10.42.16.0", "10.42.31.0", 16)
    assert (six["network"], six["subnet_length"]) == ("fd00:42::/48", 60)
    assert shown["mtu"] == 9000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("init --network 10.42.0.0/31", "too small"),
        ("init --network 10.42.0.0/16 --network 10.43.0.0/16", "second of IPv4"),
        ("init --network 10.42.0.0/16 --subnet-len 40", "SubnetLen 40 is not possible"),
        ("init --network 10.42.0.0/16 --subnet-min 10.43.0.0", "SubnetMin"),
        ("init --network 10.42.0.0/16 --port 70000", "Backend.Port"),
        ("init --network x", "is not an IPv4 or IPv6 prefix"),
        ("leases --etcd-endpoints http://x", "are two stores"),
    ],
)
def test_invalid_options_are_reported_in_one_line(network: Verb, words: str, says: str) -> None:
    assert says in network.tell(words, code=2)


def test_faults_in_the_store_are_shown(network: Verb, store: Path) -> None:
    network.tell("init --network 10.42.0.0/16")
    path = store / "store.json"
    path.write_text(path.read_text().replace("vxlan", "udp"))
    shown = network.ask("show", schema="network", code=1)
    assert shown["valid"] is False
    assert "udp" in shown["remarks"][0]
    assert network.tell("show", code=1).startswith("wrong: ")


def test_a_subnet_is_kept_for_a_node(network: Verb) -> None:
    network.tell("init --network 10.42.0.0/16")
    assert network.tell("leases") == "no node has a subnet\n"
    assert network.tell("reserve 10.42.7.0/24 --for 192.0.2.3") == "+ 10.42.7.0/24\n"
    network.ask("reserve 10.42.7.0/24 --for 192.0.2.3", schema="change")  # again is fine
    assert "overlaps" in network.tell("reserve 10.42.7.0/24 --node abc", code=2)
    assert "does not fit this network" in network.tell("reserve 10.42.8.0/25 --node abc", code=2)
    assert "no node is given" in network.tell("reserve 10.42.8.0/24", code=2)
    assert "'host7' is not an IP" in network.tell("reserve 10.42.8.0/24 --for host7", code=2)
    assert "Node is not an id" in network.tell("reserve 10.42.8.0/24 --node a:b", code=2)
    (one,) = network.ask("leases", schema="leases")
    assert (one["subnets"], one["address"], one["state"], one["remaining"]) == (
        ["10.42.7.0/24"],
        "192.0.2.3",
        "free",
        None,
    )
    assert "10.42.7.0/24  -     192.0.2.3  -    free   never" in network.tell("leases")
    assert "no node has 10.42.9.0/24" in network.tell("release 10.42.9.0/24", code=2)
    assert network.ask("release 10.42.7.0/24", schema="change") == {"removed": ["10.42.7.0/24"]}
    assert network.ask("leases", schema="leases") == []


async def _write(store: Path, values: dict[str, bytes]) -> None:
    async with DirectoryStore(store) as writer:
        lease = await writer.grant(3600)
        for name, value in values.items():
            await writer.put(f"/coreos.com/network/subnets/{name}", value, expect=0, lease=lease)


def test_leases_of_other_backends_have_an_owner(network: Verb, store: Path) -> None:
    network.tell("init --network 10.42.0.0/16")
    values = {
        # Flannel's udp backend names no type.
        "10.42.7.0-24": b'{"PublicIP":"192.0.2.3","PublicIPv6":null}',
        "10.42.8.0-24": b'{"PublicIP":"192.0.2.4","PublicIPv6":null,"BackendType":"host-gw"}',
    }
    asyncio.run(_write(store, values))
    one, other = network.ask("leases", schema="leases")
    assert (one["address"], one["state"]) == ("192.0.2.3", "lease")
    assert (other["address"], other["state"]) == ("192.0.2.4", "lease")
    shown = network.tell("leases")
    assert "10.42.7.0/24  (udp or alloc)  192.0.2.3" in shown
    assert "10.42.8.0/24  (host-gw)       192.0.2.4" in shown


def test_the_store_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TUNNEL_STORE", raising=False)
    network = Verb(capsys)
    assert "no store is given" in network.tell("leases", code=2)
    (tmp_path / "a.toml").write_text(f'store = "{tmp_path}"\nmtu = 1400\n')
    network.tell(f"init --network 10.42.0.0/16 --config {tmp_path}/a.toml")
    assert network.tell(f"leases --config {tmp_path}/a.toml") == "no node has a subnet\n"


STATUS: dict[str, Any] = {
    "name": "tunnel1",
    "device": "tunnel1",
    "device_up": True,
    "vni": 1,
    "endpoints": ["192.0.2.1:8472"],
    "mac": "02:00:00:00:00:01",
    "mtu": 1450,
    "offloads": [],
    "workers": 1,
    "uptime": 90.0,
    "peers": [],
    "drops": {},
    "subnets": ["10.42.7.0/24"],
}
STORE = {
    "address": "http://192.0.2.9:2379",
    "connected": True,
    "state_age": 61.0,
    "why": "",
    "revision": 17,
    "key": "/coreos.com/network/subnets/10.42.7.0-24",
    "lease_remaining": 80_000.0,
    "troubles": ["one", "another"],
}


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({}, ["http://192.0.2.9:2379 for 1 min, revision 17", "22 h 13 min left", "one", "other"]),
        ({"connected": False, "why": "no answer"}, ["unavailable for 1 min: no answer"]),
        ({"lease_remaining": None}, ["10.42.7.0-24, reserved"]),
        ({"key": None}, ["none: acquires a subnet"]),
        ({"key": None, "connected": False}, ["none: keeps the last known subnet"]),
    ],
)
def test_status_says_how_the_store_is(differs: dict[str, Any], says: list[str]) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view({**STATUS, "store": {**STORE, **differs}}))
    shown = console.export_text()
    assert all(text in shown for text in says), shown
