"""
What each word means by itself that a node can be told: ``subnet``, ``source-ports`` ...

    a word and its value, as flag, file or program have them  ->  its field, with an exact value

The tables at the end are all that there is. What no word shows by itself is in ``config.py``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunnel.errors import ConfigError
from tunnel.types import (
    DEFAULT_PORT,
    Address,
    Endpoint,
    InterfaceAddress,
    Mac,
    Peer,
    Prefix,
    parse_address,
    parse_interface,
    parse_prefix,
)

OFFLOADS = ("tso", "uso", "trains", "gro")
"""Super-packets of TCP and of UDP at the device; trains sent and received at the socket."""

LOOPS = ("uvloop", "asyncio")

MODES = ("tun", "tap")
"""Packets by their routes, or Ethernet frames by their MACs."""

ETCD_PREFIX = "/coreos.com/network"
"""Flannel's."""

STATE_DIR = Path("/var/lib/tunnel")

MOST_WORKERS = 64

_DIGITS = re.compile("[0-9]{1,9}")
"""A number from a flag or the environment comes as text; int() refuses some that are too long."""


class Option(NamedTuple):
    """How one word is read, or each of its values where it may stand many times. Readers raise
    ConfigError."""

    field: str
    read: Callable[[object], object]
    default: object = None
    many: bool = False


def read_options(
    words: Mapping[str, object], known: Mapping[str, Option]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """
    What each word by itself says, and what is wrong with it. Many values are kept by their
    index in `words`. A wrong value counts as not given, so that rules still see the others.
    """
    fields: dict[str, Any] = {word.field: word.default for word in known.values()}
    wrong: list[ConfigError] = []
    hints = tuple(known) if known is PEER_OPTIONS else OPTIONS

    def attempt(key: tuple[str | int, ...], read: Callable[[object], object], value: object) -> Any:
        try:
            return read(value)
        except* ConfigError as group:
            for error in group.exceptions:
                assert isinstance(error, ConfigError)
                error.key = (*key, *error.key)
                wrong.append(error)

    for name, value in words.items():
        if name not in known:
            attempt((name,), lambda word: _known(str(word), hints), name)
            continue
        word = known[name]
        if word.many:
            read = {i: attempt((name, i), word.read, v) for i, v in enumerate(many(value))}
            fields[word.field] = {i: v for i, v in read.items() if v is not None}
        elif value is not None and (right := attempt((name,), word.read, value)) is not None:
            fields[word.field] = right
    return fields, wrong


# Readers.


def _read_name(value: object) -> str:
    name = _text("name", value)
    # What the kernel's dev_valid_name() refuses, and '%', which it takes for a template.
    if not name.isprintable() or any(letter in "/:% " for letter in name) or name in (".", ".."):
        raise ConfigError(f"name {name!r} cannot be a device's (letters, digits, '-', '_', '.')")
    if len(name.encode()) > 15:
        raise ConfigError(f"name {name!r} has {len(name.encode())} bytes (at most 15)")
    return name


def _read_number(word: str, *, low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        # A TOML boolean is a Python int.
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{word} {value!r} is no whole number ({low} to {high})")
        if not low <= value <= high:
            raise ConfigError(f"{word} {value} is out of range ({low} to {high})")
        return value

    return read


def _read_mac(value: object) -> Mac:
    return value if isinstance(value, Mac) else Mac.parse(_text("mac", value))


def _read_local(value: object) -> Address:
    return parse_address(value if isinstance(value, Address) else _text("local", value))


def _read_endpoint(value: object) -> Endpoint:
    return Endpoint.parse(_text("endpoint", value))


def _read_prefix(value: object) -> Prefix:
    return parse_prefix(value if isinstance(value, Prefix) else _text("prefix", value))


def read_address(value: object) -> InterfaceAddress:
    return parse_interface(
        value if isinstance(value, InterfaceAddress) else _text("address", value)
    )


def _read_peer(value: object) -> Peer:
    if isinstance(value, Peer):
        return value
    if isinstance(value, Mapping):
        return _read_peer_table(value)
    return Peer.parse(_text("peer", value))


def _read_peer_table(table: Mapping[str, object]) -> Peer:
    fields, wrong = read_options(table, PEER_OPTIONS)
    if wrong:
        raise ExceptionGroup("peer", wrong)
    if fields["endpoint"] is None:
        raise ConfigError('peer has no endpoint (like endpoint = "192.0.2.2")')
    return Peer(fields["endpoint"], fields["prefixes"].values(), mac=fields["mac"])


def _read_offload(value: object) -> frozenset[str]:
    if value in ("auto", "none"):
        return frozenset(OFFLOADS if value == "auto" else ())
    words = value.split(",") if isinstance(value, str) else many(value)
    names = [_text("offload", word).strip() for word in words]
    for name in names:
        _known(name, OFFLOADS, what="offload")
    return frozenset(names)


def _read_loop(value: object) -> str:
    return _known(_text("loop", value), LOOPS, what="loop")


def _read_mode(value: object) -> str:
    return _known(_text("mode", value), MODES, what="mode")


def _read_workers(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ConfigError(f"workers {value!r} is neither auto nor a number (1 to {MOST_WORKERS})")
    return _read_whole("workers", low=1, high=MOST_WORKERS)(value)


def _read_subnet_file(value: object) -> Path:
    path = value if isinstance(value, Path) else Path(_text("subnet-file", value))
    if not path.name:
        raise ConfigError(f"subnet-file {str(value)!r} is no file (like /run/flannel/subnet.env)")
    return path


def _read_plain(word: str) -> Callable[[object], str]:
    return lambda value: _text(word, value)


def _read_family(word: str, version: int) -> Callable[[object], Address]:
    def read(value: object) -> Address:
        address = parse_address(value if isinstance(value, Address) else _text(word, value))
        if address.version != version:
            raise ConfigError(f"{word} {address} is no IPv{version} address")
        return address

    return read


def _read_etcd_prefix(value: object) -> str:
    text = _text("etcd-prefix", value)
    if not text.startswith("/"):
        raise ConfigError(f"etcd-prefix {text!r} does not begin with / (like {ETCD_PREFIX})")
    return text.rstrip("/")


def _read_regex(value: object) -> str:
    text = _text("iface-regex", value)
    try:
        re.compile(text)
    except re.error as error:
        raise ConfigError(f"iface-regex {text!r} is no regular expression: {error}") from error
    return text


def _read_path(word: str) -> Callable[[object], Path]:
    def read(value: object) -> Path:
        path = value if isinstance(value, Path) else Path(_text(word, value))
        if not path.is_absolute():
            raise ConfigError(f"{word} {str(path)!r} is no absolute path (like {STATE_DIR})")
        return path

    return read


def _read_whole(word: str, *, low: int, high: int) -> Callable[[object], int]:
    read = _read_number(word, low=low, high=high)

    def from_text(value: object) -> int:
        is_text = isinstance(value, str) and _DIGITS.fullmatch(value)
        return read(int(str(value)) if is_text else value)

    return from_text


def _read_switch(word: str) -> Callable[[object], bool]:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{word} {value!r} is neither true nor false (without quotes)")
        return value

    return read


NODE_OPTIONS = {
    "name": Option("name", _read_name),
    "vni": Option("vni", _read_number("vni", low=0, high=2**24 - 1), 1),
    "local": Option("local", _read_local),
    "port": Option("port", _read_number("port", low=1, high=65535), DEFAULT_PORT),
    "subnet": Option("subnets", _read_prefix, {}, many=True),
    "address": Option("addresses", read_address, {}, many=True),
    "mtu": Option("mtu", _read_number("mtu", low=68, high=65535)),
    "mac": Option("mac", _read_mac),
    "peer": Option("peers", _read_peer, {}, many=True),
    "offload": Option("offload", _read_offload, frozenset(OFFLOADS)),
    "loop": Option("loop", _read_loop, "uvloop"),
    "source-ports": Option("source_ports", _read_number("source-ports", low=1, high=64), 8),
    "workers": Option("workers", _read_workers, "auto"),
    "mode": Option("mode", _read_mode, "tun"),
    "flood": Option("flood", _read_switch("flood")),
    "learning": Option("learning", _read_switch("learning")),
    "ageing": Option("ageing", _read_number("ageing", low=1, high=10**6)),
    "storm-limit": Option("storm_limit", _read_number("storm-limit", low=0, high=10**6)),
    "network": Option("networks", _read_prefix, {}, many=True),
    "subnet-file": Option("subnet_file", _read_subnet_file),
    "ip-masq": Option("ip_masq", _read_switch("ip-masq"), False),
}

CLUSTER_OPTIONS = {
    "etcd-endpoints": Option("etcd_endpoints", _read_plain("etcd-endpoints"), {}, many=True),
    "store": Option("store", _read_path("store")),
    "etcd-prefix": Option("etcd_prefix", _read_etcd_prefix, ETCD_PREFIX),
    "etcd-cafile": Option("etcd_cafile", _read_plain("etcd-cafile"), ""),
    "etcd-certfile": Option("etcd_certfile", _read_plain("etcd-certfile"), ""),
    "etcd-keyfile": Option("etcd_keyfile", _read_plain("etcd-keyfile"), ""),
    "etcd-username": Option("etcd_username", _read_plain("etcd-username"), ""),
    "etcd-password": Option("etcd_password", _read_plain("etcd-password"), ""),
    "public-ip": Option("public_ip", _read_family("public-ip", 4)),
    "public-ipv6": Option("public_ipv6", _read_family("public-ipv6", 6)),
    "iface": Option("iface", _read_plain("iface"), {}, many=True),
    "iface-regex": Option("iface_regex", _read_regex, {}, many=True),
    "iface-can-reach": Option("iface_can_reach", _read_local),
    "subnet-lease-renew-margin": Option(
        "margin", _read_whole("subnet-lease-renew-margin", low=1, high=1440), 60
    ),
    "subnet-lease-ttl": Option("ttl", _read_whole("subnet-lease-ttl", low=2, high=10**8), 86400),
    "state-dir": Option("state_dir", _read_path("state-dir"), STATE_DIR),
}

OPTIONS = (*NODE_OPTIONS, *CLUSTER_OPTIONS)
"""All that a node can be told."""

PEER_OPTIONS = {
    "endpoint": Option("endpoint", _read_endpoint),
    "prefix": Option("prefixes", _read_prefix, {}, many=True),
    "mac": Option("mac", _read_mac),
}


def _known(word: str, words: Sequence[str], *, what: str = "key") -> str:
    if word in words:
        return word
    near = difflib.get_close_matches(word, words, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(words)}"
    raise ConfigError(f"{what} {word!r} is not known ({hint})")


def _text(word: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{word} {value!r} is not text (put it in quotes)")
    return value


def many(value: object) -> Iterable[object]:
    """A list as it is; one value stands for a list of one."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return (value,)
    return value
