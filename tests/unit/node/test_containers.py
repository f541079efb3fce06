"""What containers need: the exact subnet.env, and masquerade rules as a table."""

import asyncio
import errno
import ipaddress
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tunnel.cli.up import up
from tunnel.config.cluster import faults
from tunnel.config.node import Config
from tunnel.errors import ConfigError
from tunnel.node import containers as containers_module
from tunnel.node import masquerade
from tunnel.node.containers import Containers
from tunnel.node.subnet_file import subnet_env
from tunnel.supervise import Supervisor
from tunnel.types import Prefix, parse_prefix

IPV4 = """\
FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.0.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
IPV6 = """\
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=false
"""
DUAL = """\
FLANNEL_NETWORK=10.42.0.0/16
FLANNEL_SUBNET=10.42.0.1/24
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""


def prefixes(*texts: str) -> list[Prefix]:
    return [parse_prefix(text) for text in texts]


# subnet.env


@pytest.mark.parametrize(
    ("networks", "subnets", "mtu", "ip_masq", "text"),
    [
        (["10.42.0.0/16"], ["10.42.0.0/24"], 1450, True, IPV4),
        (["2001:cafe:42::/56"], ["2001:cafe:42::/64"], 1430, False, IPV6),
        # IPv4 comes first, in whichever order they are given.
        *(
            (networks, subnets, 1450, True, DUAL)
            for networks, subnets in product(
                (["10.42.0.0/16", "2001:cafe:42::/56"], ["2001:cafe:42::/56", "10.42.0.0/16"]),
                (["10.42.0.0/24", "2001:cafe:42::/64"], ["2001:cafe:42::/64", "10.42.0.0/24"]),
            )
        ),
    ],
)
def test_subnet_env_is_flannels(
    networks: list[str], subnets: list[str], mtu: int, ip_masq: bool, text: str
) -> None:
    said = subnet_env(prefixes(*networks), prefixes(*subnets), mtu=mtu, ip_masq=ip_masq)
    assert said == text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flannel" / "subnet.env"


def containers(file: Path) -> Containers:
    config = Config(networks=["10.42.0.0/16"], subnets=["10.42.0.0/24"], subnet_file=str(file))
    return Containers(config, supervisor=Supervisor("tunnel1"))


def test_the_file_is_for_everybody_to_read_and_nothing_lies_beside_it(file: Path) -> None:
    containers(file).write_file(1450)
    assert "FLANNEL_MTU=1450\n" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(file.parent) == [file.name]


def test_it_is_replaced_only_if_it_differs(file: Path) -> None:
    containers(file).write_file(1450)
    before = file.stat().st_ino
    with file.open() as reading:
        containers(file).write_file(1450)
        assert file.stat().st_ino == before
        containers(file).write_file(1400)
        assert file.stat().st_ino != before
        # A reader that opened the old file reads it to its end.
        assert "FLANNEL_MTU=1450\n" in reading.read()
    assert "FLANNEL_MTU=1400\n" in file.read_text()


def test_a_new_mtu_is_written_once_there_is_a_file(file: Path) -> None:
    node = containers(file)
    node.set_mtu(1400)
    assert not file.exists()
    node.write_file(1450)
    node.set_mtu(1300)
    assert "FLANNEL_MTU=1300\n" in file.read_text()


def test_a_file_that_cannot_be_written_is_an_error_at_first_and_later_a_log_line(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = containers(file)
    node.write_file(1450)
    file.unlink()
    file.mkdir()
    node.set_mtu(1400)
    (line,) = caplog.messages
    assert f"cannot write {file}: is a directory (let uid " in line
    with pytest.raises(ConfigError, match=r"cannot write .*subnet\.env: is a directory") as caught:
        containers(file).write_file(1400)
    assert caught.value.key == ("subnet-file",)
    assert os.listdir(file.parent) == [file.name]


class FakeNft:
    """A ruleset that another program can change."""

    def __init__(self) -> None:
        self.rules: list[Any] = []
        self.failures: list[Exception] = []

    async def run(self, commands: list[Any]) -> None:
        self.rules = commands[2:]

    async def list_table(self, family: str, name: str) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop()
        return {"nftables": self.rules}


async def test_the_rules_are_restored_even_after_a_surprise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nft, notify = FakeNft(), asyncio.Event()

    class FakeWatch:
        def __init__(self, _: str, *, changed: Callable[[], None]) -> None:
            self.changed = changed
            asyncio.get_running_loop().create_task(self.relay())

        async def relay(self) -> None:
            while await notify.wait():
                notify.clear()
                self.changed()

        def close(self) -> None:
            pass

    monkeypatch.setattr(containers_module, "Nft", lambda: nft)
    monkeypatch.setattr(containers_module, "TableWatch", FakeWatch)
    monkeypatch.setattr("tunnel.supervise.SHORTEST", 0.01)
    supervisor = Supervisor("tunnel1")
    config = Config(networks=["10.42.0.0/16"], subnets=["10.42.0.0/24"], ip_masq=True)
    node = Containers(config, supervisor=supervisor)
    await node.start()
    await asyncio.sleep(0.01)
    installed, nft.rules = nft.rules, []
    nft.failures = [OSError(errno.ENOBUFS, "No buffer space available")]
    notify.set()
    async with asyncio.timeout(5):
        while nft.rules != installed or not supervisor.healthy:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (task,) = supervisor.tasks
    assert (task.name, task.failures) == ("masquerade", 1)
    await node.close()
    assert nft.rules == []
    await supervisor.close()


# Masquerade: the rules walked as the kernel walks them.

NETWORKS = prefixes("10.42.0.0/16", "fd00:42::/32")
OWN = prefixes("10.42.1.0/24", "10.42.9.0/24", "fd00:42:1::/64")
WAYS = [
    ("10.42.1.2", "10.42.1.3", "return"),
    ("10.42.1.2", "10.42.2.2", "return"),
    ("10.42.2.2", "10.42.1.2", "return"),
    ("10.42.2.2", "10.42.3.2", "return"),
    ("10.42.1.2", "192.0.2.2", "masquerade"),
    ("10.42.2.2", "192.0.2.2", "masquerade"),
    ("10.42.1.2", "224.0.0.251", None),
    ("192.0.2.2", "10.42.1.2", "return"),
    ("192.0.2.2", "10.42.9.2", "return"),
    ("192.0.2.2", "10.42.2.2", "masquerade"),
    ("192.0.2.2", "198.51.100.1", None),
    ("fd00:42:1::2", "fd00:42:2::2", "return"),
    ("fd00:42:1::2", "2001:db8::1", "masquerade"),
    ("fd00:42:1::2", "ff02::fb", None),
    ("2001:db8::1", "fd00:42:1::2", "return"),
    ("2001:db8::1", "fd00:42:2::2", "masquerade"),
    ("2001:db8::1", "2001:db8::2", None),
]


def rules() -> Iterator[list[Mapping[str, Any]]]:
    for command in masquerade.install("tunnel1", networks=NETWORKS, subnets=OWN):
        rule = command.get("add", {}).get("rule")
        if rule:
            yield rule["expr"]


def holds(match: Mapping[str, Any], source: str, destination: str) -> bool:
    payload = match["left"]["payload"]
    address = ipaddress.ip_address(source if payload["field"] == "saddr" else destination)
    if payload["protocol"] != ("ip" if address.version == 4 else "ip6"):
        return False
    prefix = match["right"]["prefix"]
    within: bool = address in ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}")
    return within if match["op"] == "==" else not within


@pytest.mark.parametrize(("source", "destination", "verdict"), WAYS)
def test_masqueraded_sources(source: str, destination: str, verdict: str | None) -> None:
    for *matches, last in rules():
        if all(holds(one["match"], source, destination) for one in matches):
            assert [verdict] == list(last)
            return
    assert verdict is None


def test_the_table_is_replaced_whole_and_named_after_the_device() -> None:
    commands = masquerade.install("filter", networks=NETWORKS, subnets=OWN)
    table = {"table": {"family": "inet", "name": "tunnel-filter"}}
    assert commands[:3] == [{"add": table}, {"delete": table}, {"add": table}]
    assert masquerade.remove("filter") == commands[:2]


def test_handles_make_no_difference() -> None:
    def listing(handle: int) -> dict[str, Any]:
        return {
            "nftables": [
                {"metainfo": {"version": "1.0.6"}},
                {"table": {"family": "inet", "name": "tunnel-a", "handle": handle}},
                {"rule": {"chain": "x", "handle": handle + 1, "expr": [{"return": None}]}},
            ]
        }

    assert masquerade.contents(listing(1)) == masquerade.contents(listing(7)) != []
    assert masquerade.contents({}) == []


# The words.

FOUR, SIX = "10.244.1.0/24", "fd00:244:1::/64"


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (
            {"ip-masq": True, "subnet": [FOUR]},
            ("ip-masq",),
            "needs the prefix of the whole overlay",
        ),
        (
            {"subnet-file": "/x/y", "subnet": [FOUR]},
            ("subnet-file",),
            "needs the prefix of the whole",
        ),
        ({"ip-masq": "true"}, ("ip-masq",), "neither true nor false"),
        ({"subnet-file": 1}, ("subnet-file",), "not text"),
        ({"subnet-file": "/"}, ("subnet-file",), "is not a file"),
        (
            {"network": ["10.244.0.0/16", "10.9.0.0/16"]},
            ("network", 1),
            "is a second network beside 10.244.0.0/16",
        ),
        ({"network": ["10.9.0.0/16"], "subnet": [FOUR]}, ("subnet", 0), "not within the network"),
        (
            {"network": ["10.244.0.0/16"], "subnet": [FOUR, SIX]},
            ("subnet", 1),
            "not within the network of its family",
        ),
        (
            {"network": ["10.244.0.0/16"], "subnet-file": "/x/y"},
            ("network", 0),
            "holds one subnet in network 10.244.0.0/16, not for 0",
        ),
        (
            {
                "network": ["10.244.0.0/16"],
                "subnet-file": "/x/y",
                "subnet": [FOUR, "10.244.2.0/24"],
            },
            ("network", 0),
            "not for 2",
        ),
        (
            {"network": ["10.244.0.0/16"], "subnet-file": "/x/y", "subnet": ["10.244.1.0/31"]},
            ("subnet", 0),
            "no room for a bridge",
        ),
    ],
)
def test_options_that_are_refused(
    words: dict[str, object], key: tuple[str | int, ...], says: str
) -> None:
    (fault,) = faults(words)
    assert fault.key == key
    assert says in str(fault)


def test_options_that_are_accepted() -> None:
    config = Config(
        subnets=[FOUR, SIX, "10.244.7.0/24"], networks=["10.244.0.0/16", "fd00:244::/32"]
    )
    assert [str(network) for network in config.networks] == ["10.244.0.0/16", "fd00:244::/32"]
    assert (config.subnet_file, config.ip_masq) == (None, False)
    Config(subnets=[FOUR, "10.244.7.0/24"], networks=["10.244.0.0/16"], ip_masq=True)


@pytest.mark.parametrize(
    ("flags", "subnet_file", "ip_masq"),
    [
        (["--subnet-file"], "/run/flannel/subnet.env", None),
        (["--subnet-file", "--ip-masq"], "/run/flannel/subnet.env", True),
        (["--ip-masq", "--subnet-file", "there"], "there", True),
        # Not given: what the file says.
        ([], None, None),
    ],
)
def test_flags(flags: list[str], subnet_file: str | None, ip_masq: bool | None) -> None:
    given = up.make_context("up", flags).params
    assert (given["subnet_file"], given["ip_masq"]) == (subnet_file, ip_masq)


@pytest.mark.parametrize(("word", "means"), [("1", True), ("true", True), ("0", False)])
def test_ip_masq_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, word: str, means: bool
) -> None:
    monkeypatch.setenv("TUNNEL_IP_MASQ", word)
    assert up.make_context("up", []).params["ip_masq"] is means
