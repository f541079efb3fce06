"""ClusterConfig: valid and invalid options of a node in a cluster."""

import ipaddress
from pathlib import Path

import pytest

from tunnel.cli.up import up
from tunnel.config.cluster import ClusterConfig, cluster_differences, faults, read_config
from tunnel.config.node import Config
from tunnel.errors import ConfigError
from tunnel.types import DEFAULT_PORT

STORE = {"etcd-endpoints": "http://192.0.2.9:2379"}


def made(**options: object) -> ClusterConfig:
    config = read_config(
        {**STORE, **{name.replace("_", "-"): one for name, one in options.items()}}
    )
    assert isinstance(config, ClusterConfig)
    return config


def test_options_without_a_store_make_a_config() -> None:
    assert isinstance(read_config({"subnet": "10.1.0.0/24"}), Config)


def test_defaults_are_flannels() -> None:
    config = made()
    assert config.etcd_endpoints == ("http://192.0.2.9:2379",)
    assert config.etcd_prefix == "/coreos.com/network"
    assert (config.margin, config.ttl) == (None, 86400)
    assert config.state_dir == Path("/var/lib/tunnel")
    assert config.node == Config()


def test_endpoints_in_one_text_or_a_list() -> None:
    endpoints = ("http://192.0.2.9:2379", "http://192.0.2.8:2379")
    assert made(etcd_endpoints=", ".join(endpoints)).etcd_endpoints == endpoints
    assert made(etcd_endpoints=list(endpoints)).etcd_endpoints == endpoints
    assert made(etcd_endpoints=endpoints).etcd_endpoints == endpoints


def test_a_key_prefix_has_no_slash_at_its_end() -> None:
    assert made(etcd_prefix="/a/b/").etcd_prefix == "/a/b"


def test_numbers_may_be_digits() -> None:
    config = made(subnet_lease_renew_margin="90", subnet_lease_ttl="6000")
    assert (config.margin, config.ttl) == (90, 6000)


def test_a_subnet_is_a_preference() -> None:
    config = made(subnet=["10.42.7.0/24"], address=["10.42.7.1/24"])
    assert config.prefer == (ipaddress.ip_network("10.42.7.0/24"),)
    assert config.node.subnets == ()
    assert [str(one) for one in config.node.addresses] == ["10.42.7.1/24"]


def test_the_store_completes_the_config() -> None:
    config = made(subnet_file="/run/subnet.env", ip_masq=True, peer="192.0.2.7=10.7.0.0/16")
    subnet, network = (ipaddress.ip_network(one) for one in ("10.42.7.0/24", "10.42.0.0/16"))
    node = config.complete(subnets=(subnet,), networks=(network,), vni=7)
    assert (node.subnets, node.networks, node.vni) == ((subnet,), (network,), 7)
    assert (node.port, node.subnet_file, node.ip_masq) == (
        DEFAULT_PORT,
        Path("/run/subnet.env"),
        True,
    )
    assert [str(one) for one in node.addresses] == ["10.42.7.0/32"]
    # The device exists by then, and keeps its name.
    assert node.name == "tunnel1"
    with pytest.raises(ConfigError, match="overlaps"):
        config.complete(subnets=(ipaddress.ip_network("10.7.1.0/24"),), networks=())


@pytest.mark.parametrize(
    ("options", "key", "text"),
    [
        ({**STORE, "store": "/srv/x"}, "store", "are two stores"),
        ({**STORE, "vni": 3}, "vni", "read from the network in the store"),
        ({**STORE, "port": 3}, "port", "read from the network in the store"),
        ({**STORE, "network": ["10.0.0.0/8"]}, "network", "read from the network in the store"),
        ({**STORE, "etcd-prefix": "a"}, "etcd-prefix", "does not begin with /"),
        ({**STORE, "public-ip": "2001:db8::1"}, "public-ip", "is not an IPv4 address"),
        ({**STORE, "public-ipv6": "192.0.2.1"}, "public-ipv6", "is not an IPv6 address"),
        ({**STORE, "iface-regex": "("}, "iface-regex", "not a regular expression"),
        ({**STORE, "iface-can-reach": "x"}, "iface-can-reach", "not an IPv4 or IPv6 address"),
        ({**STORE, "subnet-lease-renew-margin": 0}, "subnet-lease-renew-margin", "1 to 1439"),
        ({**STORE, "subnet-lease-renew-margin": 1440}, "subnet-lease-renew-margin", "1 to 1439"),
        (
            {**STORE, "subnet-lease-renew-margin": 10, "subnet-lease-ttl": 600},
            "subnet-lease-renew-margin",
            "10 is the whole lease of 600 s",
        ),
        ({**STORE, "subnet-lease-ttl": "x"}, "subnet-lease-ttl", "not a whole number"),
        ({**STORE, "state-dir": "here"}, "state-dir", "not an absolute path"),
        ({**STORE, "subnet-file": "/"}, "subnet-file", "is not a file"),
        ({**STORE, "etcd-cafiles": "x"}, "etcd-cafiles", "did you mean 'etcd-cafile'"),
        ({"store": "here"}, "store", "not an absolute path"),
        ({"iface": ["eth0"]}, "iface", "give etcd-endpoints or store as well"),
        ({"state-dir": "/x"}, "state-dir", "give etcd-endpoints or store as well"),
    ],
)
def test_faults(options: dict[str, object], key: str, text: str) -> None:
    assert [one.key[0] for one in faults(options)] == [key]
    with pytest.raises(ConfigError, match=text):
        read_config(options)


def test_flannels_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag overrides TUNNEL_ variables, and those override FLANNELD_ variables."""
    given = {
        "FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.9:2379,http://192.0.2.8:2379",
        "FLANNELD_ETCD_PREFIX": "/here",
        "FLANNELD_ETCD_CAFILE": "ca.pem",
        "FLANNELD_ETCD_CERTFILE": "node.pem",
        "FLANNELD_ETCD_KEYFILE": "node.key",
        "FLANNELD_ETCD_USERNAME": "me",
        "FLANNELD_ETCD_PASSWORD": "secret",
        "FLANNELD_PUBLIC_IP": "192.0.2.1",
        "FLANNELD_PUBLIC_IPV6": "2001:db8::1",
        "FLANNELD_IFACE": "eth1",
        "FLANNELD_IFACE_REGEX": "eth.*",
        "FLANNELD_IFACE_CAN_REACH": "192.0.2.9",
        "FLANNELD_SUBNET_FILE": "/run/flannel/subnet.env",
        "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "30",
        "FLANNELD_IP_MASQ": "true",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNNEL_ETCD_USERNAME", "ours")
    options = up.make_context("up", ["--etcd-prefix", "/there"]).params
    names = [name.removeprefix("FLANNELD_").lower() for name in given]
    config = made(**{name: options[name] for name in names})
    assert config.etcd_endpoints == ("http://192.0.2.9:2379", "http://192.0.2.8:2379")
    assert (config.etcd_prefix, config.etcd_username) == ("/there", "ours")
    files = config.etcd_cafile, config.etcd_certfile, config.etcd_keyfile
    assert files == ("ca.pem", "node.pem", "node.key")
    assert config.etcd_password == "secret"
    assert [str(config.public_ip), str(config.public_ipv6)] == ["192.0.2.1", "2001:db8::1"]
    assert (config.iface, config.iface_regex) == (("eth1",), ("eth.*",))
    assert str(config.iface_can_reach) == "192.0.2.9"
    assert config.subnet_file == Path("/run/flannel/subnet.env")
    assert (config.margin, config.ip_masq) == (30, True)


def test_keywords_make_the_same_config_as_options() -> None:
    config = ClusterConfig(
        etcd_endpoints="http://192.0.2.9:2379",
        etcd_prefix="/a/",
        public_ip="192.0.2.1",
        subnets=["10.42.7.0/24"],
        name="overlay",
        margin=90,
        state_dir="/srv/state",
        ip_masq=True,
    )
    assert config == made(
        etcd_prefix="/a",
        public_ip="192.0.2.1",
        subnet="10.42.7.0/24",
        name="overlay",
        subnet_lease_renew_margin=90,
        state_dir="/srv/state",
        ip_masq=True,
    )
    assert config.prefer == (ipaddress.ip_network("10.42.7.0/24"),)
    assert ClusterConfig(store=Path("/srv/store")).store == Path("/srv/store")


def test_keywords_are_checked() -> None:
    with pytest.raises(ConfigError, match="no store is given"):
        ClusterConfig(name="overlay")
    with pytest.raises(ConfigError, match="are two stores"):
        ClusterConfig(store="/srv/store", etcd_endpoints=["http://192.0.2.9:2379"])
    with pytest.raises(ConfigError, match="read from the network") as raised:
        ClusterConfig(store="/srv/store", vni=3)  # type: ignore[call-arg]
    assert raised.value.key == ("vni",)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("subnet", ["10.42.7.0/24"]),
        ("address", ["10.42.7.1/24"]),
        ("peer", ["192.0.2.7=10.7.0.0/16"]),
        ("etcd-prefix", "/x"),
        ("subnet-lease-ttl", 60),
        ("ip-masq", True),
    ],
)
def test_differences_are_named_by_option(option: str, value: object) -> None:
    assert cluster_differences(made(), made(**{option: value})) == [option]
    assert cluster_differences(made(**{option: value}), made(**{option: value})) == []
