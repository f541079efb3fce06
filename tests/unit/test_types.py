"""Shared values: what they accept, what they refuse, and that they parse as they print."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel import _native
from tunnel.errors import ConfigError
from tunnel.status import Traffic
from tunnel.types import (
    ANY_VTEP_MAC,
    Endpoint,
    Mac,
    Peer,
    parse_address,
    parse_interface,
    parse_prefix,
)


def _is_usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        parse_address(address)
    except ConfigError:
        return False
    return True


_label = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.ip_addresses().filter(_is_usable).map(str),
    st.lists(_label, min_size=1, max_size=4).map(".".join),
)
endpoints = st.builds(Endpoint, hosts, st.integers(1, 65535))
prefixes = st.builds(
    lambda address, cut: ipaddress.ip_network(
        (address, cut % (address.max_prefixlen + 1)), strict=False
    ),
    st.ip_addresses(),
    st.integers(0, 128),
)
macs = st.binary(min_size=6, max_size=6).filter(lambda b: any(b) and not b[0] & 1).map(Mac)
peers = st.builds(
    lambda endpoint, prefixes, mac: Peer(endpoint, prefixes, mac=mac),
    endpoints,
    st.lists(prefixes, min_size=1, max_size=5),
    st.none() | macs,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.2", "192.0.2.2", 8472),
        ("192.0.2.2:4789", "192.0.2.2", 4789),
        ("2001:DB8:0::2", "2001:db8::2", 8472),
        ("[2001:db8::2]", "2001:db8::2", 8472),
        ("[2001:db8::2]:4789", "2001:db8::2", 4789),
        ("Node2.Example", "node2.example", 8472),
        ("node_2:65535", "node_2", 65535),
        ("127.0.0.1", "127.0.0.1", 8472),
    ],
)
def test_an_endpoint_has_one_spelling(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)
    assert Endpoint.parse(text).host == host


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not an IPv4 or IPv6 address"),
        ("192.0.2", "not an IPv4 or IPv6 address"),
        ("192.0.2.300", "not an IPv4 or IPv6 address"),
        ("192.0.2.2:", "no port after its colon"),
        ("192.0.2.2:http", "no port after its colon"),
        ("192.0.2.2:-1", "no port after its colon"),
        ("192.0.2.2:" + "9" * 5000, "no port after its colon"),
        ("192.0.2.2:0", "out of range"),
        ("192.0.2.2:65536", "out of range"),
        ("[192.0.2.2]:80", "misplaced brackets"),
        ("[2001:db8::2", "misplaced brackets"),
        ("[2001:db8::2]4789", "misplaced brackets"),
        ("[2001:db8::2]:", "no port after its colon"),
        ("2001:db8::g", "not an IPv4 or IPv6 address"),
        ("224.0.0.1", "not a unicast address"),
        ("0.0.0.0", "not a unicast address"),
        ("255.255.255.255", "not a unicast address"),
        ("[ff02::1]:8472", "not a unicast address"),
        ("::ffff:192.0.2.2", "write 192.0.2.2"),
        ("fe80::1%eth0", "is link-local"),
        ("node 2", "not an address or a name"),
        ("-node", "not an address or a name"),
        ("a..b", "not an address or a name"),
        ("a" * 64, "not an address or a name"),
        ("a." * 127 + "a", "not an address or a name"),
    ],
)
def test_invalid_endpoints(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as raised:
        Endpoint.parse(text)
    assert "\n" not in str(raised.value)


def test_an_endpoint_of_host_and_port_is_checked() -> None:
    assert Endpoint("2001:DB8::0:2") == Endpoint.parse("2001:db8::2")
    with pytest.raises(ConfigError, match="out of range"):
        Endpoint("192.0.2.2", 65536)
    with pytest.raises(ConfigError, match="not a unicast address"):
        Endpoint("::")


@given(endpoints)
def test_an_endpoint_parses_what_it_prints(endpoint: Endpoint) -> None:
    assert Endpoint.parse(str(endpoint)) == endpoint
    address = endpoint.address
    assert address is None or str(address) == endpoint.host


@given(st.text() | st.from_regex(r"[0-9a-f\[\]:.%=,/]{1,30}", fullmatch=True))
def test_any_text_is_an_endpoint_or_a_config_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ConfigError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(peers)
def test_a_peer_parses_what_is_printed(peer: Peer) -> None:
    text = f"{peer.endpoint}={','.join(map(str, peer.prefixes))}"
    if peer.mac:
        text += f",mac={peer.mac}"
    assert Peer.parse(text) == peer


def test_a_peer_takes_loose_values() -> None:
    peer = Peer("192.0.2.2", "10.244.2.0/24", mac="02-00-5E-00-53-01")
    assert peer.endpoint == Endpoint("192.0.2.2", 8472)
    assert peer.prefixes == (ipaddress.ip_network("10.244.2.0/24"),)
    assert str(peer.mac) == "02:00:5e:00:53:01"
    assert Peer("192.0.2.2", ["10.244.2.0/24", *peer.prefixes]).prefixes == peer.prefixes


@pytest.mark.parametrize("text", ["192.0.2.2", "192.0.2.2=", "192.0.2.2=,"])
def test_a_peer_may_have_no_prefix(text: str) -> None:
    assert Peer.parse(text) == Peer("192.0.2.2")
    assert Peer.parse("192.0.2.2=mac=02:00:5e:00:53:01").mac == Mac.parse("02:00:5e:00:53:01")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("=10.244.2.0/24", "not an IPv4 or IPv6 address"),
        ("192.0.2.2=10.244.2.0/33", "not an IPv4 or IPv6 prefix"),
        ("192.0.2.2=10.244.2.1/24", "write 10.244.2.0/24"),
        ("192.0.2.2=10.244.2.0/24,mac=", "not six hex bytes"),
        ("192.0.2.2=10.244.2.0/24,mac=01:00:5e:00:00:01", "not a unicast address"),
        ("192.0.2.2=10.244.2.0/24,mac=02:00:5e:00:53:01,mac=02:00:5e:00:53:02", "more than one"),
    ],
)
def test_invalid_peers(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Peer.parse(text)


@pytest.mark.parametrize("text", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_a_mac_is_unicast(text: str) -> None:
    with pytest.raises(ConfigError, match="not a unicast address"):
        Mac.parse(text)


def test_the_any_vtep_mac_is_that_of_the_c_core() -> None:
    assert ANY_VTEP_MAC.packed == _native.ANY_VTEP_MAC


def test_prefixes_and_interfaces() -> None:
    assert str(parse_prefix("10.244.1.0/24")) == "10.244.1.0/24"
    assert str(parse_prefix("fd00::1")) == "fd00::1/128"
    assert str(parse_interface("10.244.1.1/24")) == "10.244.1.1/24"
    assert str(parse_interface("10.244.1.1")) == "10.244.1.1/32"
    for text in ("10.244.1.1/33", "x", "", "224.0.0.1/24", "0.0.0.0/0"):
        with pytest.raises(ConfigError, match="address"):
            parse_interface(text)


def test_traffic_adds_up() -> None:
    assert Traffic(1, 100) + Traffic(2, 50) == Traffic(3, 150)
