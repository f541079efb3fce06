"""The table of options, and what is made from it."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tunnel import Tunnel
from tunnel.cli.network import network
from tunnel.cli.up import up
from tunnel.config import ClusterConfig, Config
from tunnel.config.options import (
    CLUSTER_OPTIONS,
    COMMAND_OPTIONS,
    NODE_OPTIONS,
    OPTIONS,
    ClusterOptions,
    ConfigOptions,
)
from tunnel.config.reference import page
from tunnel.config.rules import SET_BY_STORE
from tunnel.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "options.md"


def keywords(typed: type) -> set[str]:
    return set(typed.__optional_keys__)  # type: ignore[attr-defined]


def test_typed_keywords_are_those_of_the_table() -> None:
    of_node = {option.keyword for option in NODE_OPTIONS.values()}
    of_store = {option.keyword for option in CLUSTER_OPTIONS.values()}
    not_given = {NODE_OPTIONS[name].keyword for name in SET_BY_STORE}
    assert keywords(ConfigOptions) == of_node
    assert keywords(ClusterOptions) == (of_node - not_given) | of_store


def test_attributes_are_those_of_the_table() -> None:
    of_node = {option.keyword for option in NODE_OPTIONS.values()}
    of_store = {option.keyword for option in CLUSTER_OPTIONS.values()}
    assert {field.name for field in fields(Config)} == of_node
    assert {field.name for field in fields(ClusterConfig)} == of_store | {
        "node",
        "prefer",
        "subnet_file",
        "ip_masq",
    }


def test_each_option_is_a_flag_and_a_variable() -> None:
    flags = {option.name: option for option in up.params}
    assert {name.replace("-", "_") for name in OPTIONS | COMMAND_OPTIONS} == set(flags)
    for name, option in (OPTIONS | COMMAND_OPTIONS).items():
        variable = name.upper().replace("-", "_")
        assert option.variables[0] == f"TUNNEL_{variable}"
        assert tuple(flags[name.replace("-", "_")].envvar or ()) == option.variables


def test_the_store_is_named_in_the_same_way_to_tunnel_network() -> None:
    names = {option.name for option in network.commands["show"].params}
    assert names >= {
        name.replace("-", "_") for name, one in OPTIONS.items() if one.group == "store"
    }


def test_the_reference_page_is_up_to_date() -> None:
    """python -m tunnel.config.reference > docs/reference/options.md"""
    assert PAGE.read_text() == page()


def test_the_help_shows_the_default() -> None:
    for option in OPTIONS.values():
        default = option.default or option.tap_default
        if option.kind == "integer" and default is not None:
            assert option.default_help == str(default)


def test_a_tunnel_takes_a_config_or_its_keywords() -> None:
    config = Config(vni=7, subnets=["10.1.0.0/24"], mode="tap")
    assert Tunnel(config).config == config
    assert Tunnel(vni=7, subnets=["10.1.0.0/24"], mode="tap").config == config
    with pytest.raises(TypeError, match="not both"):
        Tunnel(config, vni=7)


@pytest.mark.parametrize("device", ["tap", "tunnel1", ""])
def test_a_device_is_never_another_one_than_was_meant(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' is not known") as raised:
        Tunnel(device=device, name="x")  # type: ignore[arg-type]
    assert raised.value.key == ("device",)


def test_an_unknown_keyword_is_a_type_error() -> None:
    for call in (Config, ClusterConfig, Tunnel):
        with pytest.raises(TypeError, match="unexpected keyword argument 'subnet'"):
            call(subnet="10.1.0.0/24")  # type: ignore[call-arg]


def test_the_configuration_is_imported_alone() -> None:
    """A program that only checks a configuration needs no other package of this one."""
    program = "import sys, tunnel.config; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    ours = {name for name in loaded if name.startswith("tunnel.")}
    assert {name for name in ours if not name.startswith("tunnel.config")} == {
        "tunnel.errors",
        "tunnel.prefixes",
        "tunnel.types",
    }
    assert not {"asyncio", "click", "pyroute2", "rich"} & set(loaded)
