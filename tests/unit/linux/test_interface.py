"""Which interface leads to the other nodes."""

from ipaddress import ip_address

import pytest

from tunnel.errors import UnderlayError
from tunnel.linux.interface import find_addresses
from tunnel.linux.netlink import Netlink
from tunnel.linux.netlink import UnderlayPath as Path
from tunnel.types import Address

INTERFACES = {
    "eth0": ["192.0.2.1", "192.0.2.2", "2001:db8::1"],
    "eth1": ["198.51.100.1"],
    "wlan0": ["2001:db8:1::1"],
}


class Host(Netlink):
    """One with those interfaces; its default route leads to `default`."""

    def __init__(self, default: str | None = None) -> None:
        self._default = default

    async def interfaces(self) -> dict[str, list[Address]]:
        return {name: [ip_address(one) for one in every] for name, every in INTERFACES.items()}

    async def default_device(self, family: int) -> str | None:
        return self._default

    async def get_path(self, address: Address) -> Path | None:
        return None if address.version == 6 else Path(ip_address("192.0.2.2"), 1500, 0)


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.linux.interface.device_name", lambda _: "eth0")


def known(*texts: str) -> dict[int, Address]:
    return {ip_address(one).version: ip_address(one) for one in texts}


@pytest.mark.parametrize(
    ("iface", "regex", "found"),
    [
        (["eth1"], [], ["198.51.100.1"]),
        (["none", "eth0"], [], ["192.0.2.1", "2001:db8::1"]),
        (["192.0.2.2"], [], ["192.0.2.2", "2001:db8::1"]),
        (["eth"], ["^eth1$"], ["198.51.100.1"]),
        ([], ["^198"], ["198.51.100.1"]),
        ([], ["^2001:db8:1"], ["2001:db8:1::1"]),
        ([], ["[0-9]$"], ["192.0.2.1", "2001:db8::1"]),
        ([], [], ["198.51.100.1"]),
    ],
)
async def test_the_first_that_is_meant(
    iface: list[str], regex: list[str], found: list[str]
) -> None:
    assert await find_addresses(Host("eth1"), iface=iface, regex=regex) == known(*found)


async def test_the_one_that_reaches_an_address() -> None:
    found = await find_addresses(Host(), can_reach=ip_address("192.0.2.9"))
    assert found == known("192.0.2.2", "2001:db8::1")
    with pytest.raises(UnderlayError, match="no route to 2001:db8::9"):
        await find_addresses(Host(), can_reach=ip_address("2001:db8::9"))


@pytest.mark.parametrize(
    ("iface", "says"), [([], "there is no default route"), (["x"], "none matches")]
)
async def test_without_a_match_the_error_lists_the_interfaces(iface: list[str], says: str) -> None:
    with pytest.raises(UnderlayError, match=rf"{says}.*of: eth0 192\.0\.2\.1"):
        await find_addresses(Host(), iface=iface)
