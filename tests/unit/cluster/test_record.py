"""Values of keys: byte for byte as flannel writes them, and malformed ones."""

import ipaddress
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.cluster.record import Lease, Record, leases_of
from tunnel.cluster.stores.base import Entry
from tunnel.errors import ConfigError
from tunnel.types import Mac

OURS = Record(
    address=ipaddress.IPv4Address("192.0.2.1"), mac=Mac.parse("02:00:5e:00:53:01"), vni=1, node="n1"
)
OTHER = Record(address=ipaddress.IPv4Address("192.0.2.2"), vni=1, node="n2")
FLANNEL = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)
FLANNEL_DUAL = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":"fd00:64::3","BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},'
    b'"BackendV6Data":{"VNI":1,"VtepMAC":"fe:41:07:b5:c3:11"}}'
)


@pytest.mark.parametrize("value", [FLANNEL, FLANNEL_DUAL])
def test_a_record_of_flannel_is_written_again_to_the_byte(value: bytes) -> None:
    assert Record.parse(value).text() == value


def test_a_record_of_flannel_is_understood() -> None:
    assert Record.parse(FLANNEL_DUAL) == Record(
        address=ipaddress.IPv4Address("192.168.64.3"),
        address6=ipaddress.IPv6Address("fd00:64::3"),
        mac=Mac.parse("c6:d2:32:6f:8f:44"),
        mac6=Mac.parse("fe:41:07:b5:c3:11"),
        vni=1,
    )


def test_our_id_stands_behind_all_that_is_flannels() -> None:
    record = replace(Record.parse(FLANNEL), node="n1")
    assert record.text() == FLANNEL[:-1] + b',"Node":"n1"}'
    assert Record.parse(record.text()) == record


def test_a_vni_above_16_bits_is_whole_in_a_name_that_flannel_skips() -> None:
    """Flannel's field has 16 bits, and its decoder refuses a record with a larger number."""
    words = json.loads(replace(OURS, vni=70000).text())
    assert words["BackendData"]["VNI"] == 4464
    assert words["VNI"] == 70000
    assert "VNI" not in json.loads(replace(OURS, vni=65535).text())


@pytest.mark.parametrize(
    ("record", "vni", "same"),
    [
        (70000, 70000, True),
        (4464, 70000, True),  # flannel's
        (None, 70000, True),
        (70000, 4464, False),  # ours: the whole number is known
        (70000 + 65536, 70000, False),
        (7, 70000, False),
        (1, 1, True),
    ],
)
def test_the_vni_of_a_record(record: int | None, vni: int, same: bool) -> None:
    found = Record.parse(replace(OURS, vni=record).text()) if record else replace(OURS, vni=None)
    assert found.has_vni(vni) is same


@pytest.mark.parametrize(
    ("value", "record"),
    [
        # As a reservation is made by hand (flannel's Documentation/reservations.md).
        (
            b'{"PublicIP": "192.0.2.7"}',
            Record(address=ipaddress.IPv4Address("192.0.2.7"), backend=""),
        ),
        (b"{}", Record(backend="")),
        (b'{"publicip": "0.0.0.0", "Node": "n7"}', Record(node="n7", backend="")),
        (
            b'{"PublicIP": "192.0.2.7", "BackendType": "host-gw", "BackendData": "x"}',
            Record(address=ipaddress.IPv4Address("192.0.2.7"), backend="host-gw"),
        ),
        (
            b'{"BackendType": "vxlan", "BackendData": {"vtepmac": "02-00-5E-00-53-01", "x": []}}',
            Record(mac=Mac.parse("02:00:5e:00:53:01")),
        ),
    ],
)
def test_records_are_read_leniently(value: bytes, record: Record) -> None:
    assert Record.parse(value) == record


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"[]", b"192.0.2.7", b'{"PublicIP": 7}', b'{"PublicIP": "fd00::1"}'),
        *(b'{"PublicIPv6": "192.0.2.7"}', b'{"PublicIP": "224.0.0.1"}', b'{"Node": ""'),
        *(b'{"Node": "a b"}', b'{"Node": 7}', b'{"BackendType": []}'),
        b'{"BackendType": "vxlan", "BackendData": []}',
        b'{"BackendType": "vxlan", "BackendData": {"VNI": "1"}}',
        b'{"BackendType": "vxlan", "BackendData": {"VtepMAC": 1}}',
        b'{"BackendType": "vxlan", "BackendData": {"VtepMAC": "01:00:5e:00:00:01"}}',
        b"{" * 100_000,
    ],
)
def test_a_malformed_record_is_an_error(value: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        Record.parse(value)
    assert len(str(caught.value)) < 200
    assert Lease.read("10.5.1.0-24", Entry(value, 1), key="x").fault == str(caught.value)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (replace(OTHER, node="n1"), True),  # the address is an attribute
        (replace(OURS, node=""), True),  # flannel's at our address
        (replace(OURS, node="n2"), False),  # somebody had our address before
        (replace(OTHER, node=""), False),
        (Record(), False),
    ],
)
def test_the_owner_of_a_record(other: Record, same: bool) -> None:
    assert OURS.is_same_node(other) is same


ADDRESSES = (
    st.ip_addresses(v=4, network="198.18.0.0/15"),
    st.ip_addresses(v=6, network="2001:db8::/32"),
)
MACS = st.integers(1, (1 << 40) - 1).map(lambda number: Mac(b"\x02" + number.to_bytes(5, "big")))


@given(
    st.builds(
        Record,
        address=st.none() | ADDRESSES[0],
        address6=st.none() | ADDRESSES[1],
        mac=MACS,
        mac6=st.none() | MACS,
        vni=st.integers(0, (1 << 24) - 1),
        node=st.from_regex(r"\A[0-9A-Za-z._-]{0,64}\Z"),
    )
)
def test_a_record_survives_a_round_trip(record: Record) -> None:
    assert Record.parse(record.text()) == record


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_an_error(value: bytes) -> None:
    lease = Lease.read("10.5.1.0-24", Entry(value, 1), key="x")
    assert (lease.record is None) == bool(lease.fault)


def lease(name: str, *, created: int = 1, bound: int | None = 7) -> Lease:
    return Lease.read(name, Entry(OURS.text(), 9, bound, created), key=f"k/{name}")


@pytest.mark.parametrize(
    ("one", "other", "yields"),
    [
        (lease("10.5.1.0-24"), lease("10.5.2.0-24", created=0), False),
        (lease("10.5.1.0-24"), lease("10.0.0.0-8", created=0), False),
        (lease("10.5.1.0-24"), lease("10.5.1.128-25", created=2), True),
        (lease("10.5.1.0-24&fd00::-64", created=2), lease("10.5.1.0-24&fd01::-64"), True),
        (lease("10.5.1.0-24&fd00::-64"), lease("10.5.1.0-24&fd01::-64", created=2), False),
        (lease("10.5.1.0-24&fd00::-64", created=2), lease("0.0.0.0-0&fd00::-64"), True),
        # A store that cannot tell when leaves it to the names.
        (lease("10.5.1.0-24&fd01::-64"), lease("10.5.1.0-24&fd00::-64"), True),
    ],
)
def test_which_of_two_has_the_subnet(one: Lease, other: Lease, yields: bool) -> None:
    assert one.yields_to(other) is yields
    assert not (yields and other.yields_to(one))


def test_keys_for_subnets_are_found_among_others() -> None:
    entry = Entry(OURS.text(), 9)
    names = ["a/10.5.1.0-24", "b/10.5.1.0-24", "a/config", "10.5.1.0-24"]
    assert [one.key for one in leases_of(dict.fromkeys(names, entry), directory="a/")] == names[:1]
    assert not lease("10.5.1.0-24").is_reservation
    assert lease("10.5.1.0-24", bound=None).is_reservation
