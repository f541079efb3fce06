"""Config: the exact values that it makes of loose ones, and its faults."""

import ipaddress
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.config.cluster import faults
from tunnel.config.node import Config
from tunnel.config.options import OFFLOADS
from tunnel.errors import ConfigError
from tunnel.types import Mac, Peer

PEER = "192.0.2.2=10.244.2.0/24"
EXAMPLE = Path(__file__).parents[3] / "examples" / "tunnel.toml"


def test_defaults() -> None:
    config = Config()
    assert (config.name, config.vni, config.port, config.source_ports) == ("tunnel1", 1, 8472, 8)
    assert (config.local, config.mtu, config.mac) == (None, None, None)
    assert (config.subnets, config.addresses, config.peers) == ((), (), ())
    assert (config.offload, config.loop) == (frozenset(OFFLOADS), "uvloop")
    assert (config.mode, config.flood, config.learning) == ("tun", None, None)
    assert (config.ageing, config.storm_limit) == (None, None)


def test_defaults_of_tap_mode_are_those_of_the_kernel() -> None:
    config = Config(mode="tap", peers=["192.0.2.2"])
    assert (config.flood, config.learning) == (True, True)
    assert (config.ageing, config.storm_limit) == (300, 2000)
    config = Config(mode="tap", flood=False, learning=False, ageing=5, storm_limit=0)
    assert (config.flood, config.learning) == (False, False)
    assert (config.ageing, config.storm_limit) == (5, 0)


def test_loose_values_become_exact() -> None:
    config = Config(
        vni=7,
        local="2001:DB8::1",
        subnets=["10.244.1.0/24", "fd00:1::/64", "10.244.1.0/24"],
        mac="02:00:5E:00:53:01",
        peers=[Peer("2001:db8::2", ["10.244.2.0/24"]), "192.0.2.2=10.244.3.0/24"],
        offload="tso, gro",
    )
    assert config.name == "tunnel7"
    assert config.local == ipaddress.ip_address("2001:db8::1")
    assert [str(subnet) for subnet in config.subnets] == ["10.244.1.0/24", "fd00:1::/64"]
    assert [str(address) for address in config.addresses] == ["10.244.1.0/32", "fd00:1::/128"]
    assert config.mac == Mac.parse("02:00:5e:00:53:01")
    assert [peer.endpoint.host for peer in config.peers] == ["2001:db8::2", "192.0.2.2"]
    assert config.offload == {"tso", "gro"}


def test_exact_values_stay() -> None:
    config = Config(subnets=["10.244.1.0/24"], local="192.0.2.1", mac="02:00:5e:00:53:01")
    again = Config(
        subnets=config.subnets, addresses=config.addresses, local=config.local, mac=config.mac
    )
    assert again == config


def test_vni_0_and_the_longest_default_name() -> None:
    assert Config(vni=0).name == "tunnel0"
    assert Config(vni=2**24 - 1).name == "tunnel16777215"


def test_addresses_are_derived_for_the_family_that_has_none() -> None:
    config = Config(subnets=["10.244.1.0/24", "fd00:1::/64"], addresses=["fd00:1::5/64"])
    assert [str(address) for address in config.addresses] == ["fd00:1::5/64", "10.244.1.0/32"]


def test_given_addresses_replace_derived_ones() -> None:
    config = Config(subnets=["10.244.1.0/24"], addresses=["10.244.1.1/24"])
    assert [str(address) for address in config.addresses] == ["10.244.1.1/24"]


@pytest.mark.parametrize(
    ("offload", "expected"),
    [
        ("auto", set(OFFLOADS)),
        ("none", set()),
        ("gro", {"gro"}),
        ("tso,trains", {"tso", "trains"}),
        (["uso", "gro"], {"uso", "gro"}),
        ([], set()),
    ],
)
def test_offload(offload: str | list[str], expected: set[str]) -> None:
    assert Config(offload=offload).offload == expected


# options, key of the fault, part of its text
WRONG: list[tuple[dict[str, Any], tuple[str | int, ...], str]] = [
    ({"name": "sixteen-bytes-xx"}, ("name",), "has 16 bytes"),
    ({"name": "ünïcödé-tünnel"}, ("name",), "has 19 bytes"),
    *[
        ({"name": name}, ("name",), "cannot name a device")
        for name in (".", "..", "a/b", "a b", "a:b", "a%d")
    ],
    ({"name": "a\tb"}, ("name",), "cannot name a device"),
    ({"name": "a\udc80"}, ("name",), "cannot name a device"),
    ({"name": 1}, ("name",), "not text"),
    ({"vni": -1}, ("vni",), "out of range"),
    ({"vni": 2**24}, ("vni",), "out of range"),
    ({"vni": True}, ("vni",), "not a whole number"),
    ({"vni": 1.0}, ("vni",), "not a whole number"),
    ({"vni": "1"}, ("vni",), "not a whole number"),
    ({"port": 0}, ("port",), "out of range"),
    ({"port": 65536}, ("port",), "out of range"),
    ({"mtu": 67}, ("mtu",), "out of range"),
    ({"mtu": 65536}, ("mtu",), "out of range"),
    ({"mtu": 1279, "subnet": ["fd00::/64"]}, ("mtu",), "at least 1280"),
    ({"mtu": 1279, "address": ["fd00::1/64"]}, ("mtu",), "at least 1280"),
    ({"mtu": 1279, "peer": ["192.0.2.2=fd00::/64"]}, ("mtu",), "at least 1280"),
    ({"source-ports": 0}, ("source-ports",), "out of range"),
    ({"source-ports": 65}, ("source-ports",), "out of range"),
    ({"workers": 0}, ("workers",), "workers 0 is out of range (1 to 64)"),
    ({"workers": "0"}, ("workers",), "out of range"),
    ({"workers": "65"}, ("workers",), "out of range"),
    ({"workers": -1}, ("workers",), "out of range"),
    ({"workers": "-1"}, ("workers",), "neither auto nor a number (1 to 64)"),
    ({"workers": "x"}, ("workers",), "neither auto nor a number"),
    ({"workers": "9" * 5000}, ("workers",), "neither auto nor a number"),
    ({"workers": "1.5"}, ("workers",), "neither auto nor a number"),
    ({"workers": 1.5}, ("workers",), "not a whole number"),
    ({"workers": True}, ("workers",), "not a whole number"),
    ({"mode": "tab"}, ("mode",), "did you mean 'tap'"),
    ({"mode": "tap", "flood": "no"}, ("flood",), "neither true nor false"),
    ({"mode": "tap", "ageing": 0}, ("ageing",), "out of range"),
    ({"mode": "tap", "storm-limit": -1}, ("storm-limit",), "out of range"),
    *[
        ({name: value}, (name,), f"{name} is about Ethernet frames")
        for name, value in (
            ("flood", True),
            ("learning", False),
            ("ageing", 5),
            ("storm-limit", 0),
        )
    ],
    ({"local": "here"}, ("local",), "not an IPv4 or IPv6 address"),
    ({"local": "0.0.0.0"}, ("local",), "not a unicast address"),
    ({"local": 1}, ("local",), "not text"),
    ({"local": "2001:db8::1", "peer": [PEER]}, ("local",), "is IPv6, but no peer is"),
    ({"local": "192.0.2.1", "peer": ["[2001:db8::2]=10.0.0.0/8"]}, ("local",), "is IPv4, but no"),
    ({"subnet": ["10.244.1.0/24", "10.244.1.1/24"]}, ("subnet", 1), "write 10.244.1.0/24"),
    ({"subnet": [5]}, ("subnet", 0), "not text"),
    ({"address": ["10.244.1.1/x"]}, ("address", 0), "not ADDR/LEN"),
    ({"address": ["224.0.0.1/32"]}, ("address", 0), "not a unicast address"),
    ({"mac": "02:00:5e"}, ("mac",), "not six hex bytes"),
    ({"mac": "02:76:74:65:70:00"}, ("mac",), "accepted by every node"),
    (
        {"mac": "02:00:5e:00:53:01", "peer": [PEER + ",mac=02:00:5e:00:53:01"]},
        ("peer", 0),
        "this node's own",
    ),
    ({"peer": ["192.0.2.2"]}, ("peer", 0), "has no prefix"),
    ({"peer": [PEER, 7]}, ("peer", 1), "not text"),
    ({"peer": [PEER, PEER.replace("244.2", "244.3")]}, ("peer", 1), "is given twice"),
    ({"local": "192.0.2.2", "peer": [PEER]}, ("peer", 0), "this node itself"),
    ({"subnet": ["10.244.0.0/16"], "peer": [PEER]}, ("peer", 0), "10.244.0.0/16 of this node"),
    ({"subnet": ["10.244.2.128/25"], "peer": [PEER]}, ("peer", 0), "of this node"),
    ({"peer": [PEER, "192.0.2.3=10.244.2.0/24"]}, ("peer", 1), "of peer 192.0.2.2:8472"),
    ({"peer": [PEER, "192.0.2.3=10.0.0.0/8"]}, ("peer", 1), "of peer 192.0.2.2:8472"),
    ({"peer": [{"prefix": "10.0.0.0/8"}]}, ("peer", 0), "no endpoint"),
    ({"peer": [{"endpoint": "192.0.2.2"}]}, ("peer", 0), "has no prefix"),
    (
        {"peer": [{"endpoint": "192.0.2.2", "prefix": ["10.0.0.0/8", "x"]}]},
        ("peer", 0, "prefix", 1),
        "not an IPv4 or IPv6 prefix",
    ),
    (
        {"peer": [{"endpoint": "192.0.2.2", "prefix": "10.0.0.0/8", "mac": "zz"}]},
        ("peer", 0, "mac"),
        "not six hex bytes",
    ),
    ({"peer": [{"endpiont": "192.0.2.2"}]}, ("peer", 0, "endpiont"), "did you mean 'endpoint'"),
    ({"offload": "tsp"}, ("offload",), "did you mean 'tso'"),
    ({"offload": "lro-everything"}, ("offload",), "known: tso, uso, trains, gro"),
    ({"offload": "auto,tso"}, ("offload",), "known"),
    ({"offload": ""}, ("offload",), "known"),
    ({"offload": [1]}, ("offload",), "not text"),
    ({"loop": "trio"}, ("loop",), "known: uvloop, asyncio"),
    ({"subnets": ["10.0.0.0/8"]}, ("subnets",), "did you mean 'subnet'"),
    ({"source_ports": 1}, ("source_ports",), "did you mean 'source-ports'"),
]


@pytest.mark.parametrize(("options", "key", "text"), WRONG)
def test_a_fault_is_reported_once_with_its_key(
    options: dict[str, Any], key: tuple[str | int, ...], text: str
) -> None:
    (error,) = faults(options)
    assert error.key == key
    assert text in str(error)
    assert "\n" not in str(error)
    with pytest.raises(ConfigError) as raised:
        Config.from_options(options)
    assert str(raised.value) == str(error)


@pytest.mark.parametrize(
    "options",
    [
        {"local": "192.0.2.1", "peer": [PEER, "[2001:db8::2]=10.0.0.0/16"]},
        {"local": "192.0.2.1", "peer": ["node2.example=10.0.0.0/16"]},
        {"local": "192.0.2.1", "peer": ["192.0.2.1:4789=10.0.0.0/16"]},
        {"local": "192.0.2.1"},
        {"peer": [PEER, "192.0.2.2:4789=10.244.3.0/24"]},
        {"peer": ["192.0.2.2=10.0.0.0/8,10.1.0.0/16", "192.0.2.3=11.0.0.0/8"]},
        {"subnet": ["10.0.0.0/8", "10.1.0.0/16"]},
        {"subnet": "10.244.1.0/24", "address": ["10.244.0.1/16"], "peer": PEER},
        {"subnet": ["0.0.0.0/1"], "peer": ["192.0.2.2=::/1"]},
        {"mtu": 1279, "peer": [PEER]},
        {"name": "fifteen-bytes-x"},
        {"name": ""},
    ],
)
def test_valid_options(options: dict[str, Any]) -> None:
    assert faults(options) == []
    Config.from_options(options)


_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([PEER, "auto", "::"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
_names = ["name", "vni", "local", "subnet", "address", "mtu", "mac", "peer", "offload", "loop"]


@given(st.dictionaries(st.sampled_from(_names) | st.text(), _values, max_size=5))
def test_any_file_is_a_config_or_has_faults_with_keys(
    options: dict[str, Any],
) -> None:
    wrong = faults(options)
    assert all(error.key and "\n" not in str(error) for error in wrong)
    if not wrong:
        Config.from_options(options)


def test_all_faults_are_found_and_a_faulty_peer_shifts_no_index() -> None:
    options = {
        "vni": -1,
        "peer": [
            "no sense",
            PEER,
            {"endpoint": "?", "prefix": ["x", "10.0.0.0/8", "y"], "mac": 1},
            "192.0.2.3=10.244.2.128/25",
        ],
    }
    assert [error.key for error in faults(options)] == [
        ("vni",),
        ("peer", 0),
        ("peer", 2, "endpoint"),
        ("peer", 2, "prefix", 0),
        ("peer", 2, "prefix", 2),
        ("peer", 2, "mac"),
        ("peer", 3),
    ]


def test_nested_prefixes_are_compared_with_the_outermost() -> None:
    """A prefix within a larger one of the same peer does not hide the larger one."""
    peers = ["192.0.2.2=10.0.0.0/8,10.1.0.0/16", "192.0.2.3=10.2.0.0/16", "192.0.2.4=10.1.1.0/24"]
    assert [error.key for error in faults({"peer": peers})] == [("peer", 2), ("peer", 1)]


def test_the_example_is_valid() -> None:
    config = Config.from_options(tomllib.loads(EXAMPLE.read_text()))
    assert [str(peer.endpoint) for peer in config.peers] == [
        "192.0.2.2:8472",
        "192.0.2.3:8472",
        "node4.example:8472",
    ]
