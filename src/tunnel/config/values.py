"""
Parsers of single option values: text or Python values in, typed values out.

A parser takes the option's name, for the error text, and the value. It raises ConfigError, or
an ExceptionGroup of them where a value has parts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from tunnel.errors import ConfigError
from tunnel.types import (
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

Parser = Callable[[str, object], object]

OFFLOADS = ("tso", "uso", "trains", "gro")
"""Super-packets of TCP and UDP at the device; trains sent, and GRO, at the socket."""

MAX_WORKERS = 64

_DIGITS = re.compile("[0-9]{1,9}")
"""int() would raise ValueError on text of thousands of digits."""


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} {value!r} is not text (put it in quotes)")
    return value


def integer(low: int, high: int, *, or_digits: bool = False) -> Callable[[str, object], int]:
    """Parses whole numbers from `low` to `high`, and their digits as text if `or_digits`."""

    def parse(name: str, value: object) -> int:
        if or_digits and isinstance(value, str) and _DIGITS.fullmatch(value):
            value = int(value)
        # A TOML boolean is a Python int.
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{name} {value!r} is not a whole number ({low} to {high})")
        if not low <= value <= high:
            raise ConfigError(f"{name} {value} is out of range ({low} to {high})")
        return value

    return parse


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} {value!r} is neither true nor false (without quotes)")
    return value


def choice(*known: str) -> Callable[[str, object], str]:
    """Parses one of the `known` texts."""
    return lambda name, value: check_known(name, text(name, value), known)


def check_known(what: str, given: str, known: Sequence[str]) -> str:
    """Returns `given`, or raises a ConfigError that suggests the nearest of `known`."""
    if given in known:
        return given
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ConfigError(f"{what} {given!r} is not known ({hint})")


def device_name(name: str, value: object) -> str:
    device = text(name, value)
    # The kernel's dev_valid_name() refuses these, except '%', which starts a template.
    if not device.isprintable() or any(c in "/:% " for c in device) or device in (".", ".."):
        raise ConfigError(
            f"{name} {device!r} cannot name a device (use letters, digits, '-', '_', '.')"
        )
    if len(device.encode()) > 15:
        raise ConfigError(f"{name} {device!r} has {len(device.encode())} bytes (at most 15)")
    return device


def workers(name: str, value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ConfigError(f"{name} {value!r} is neither auto nor a number (1 to {MAX_WORKERS})")
    return integer(1, MAX_WORKERS, or_digits=True)(name, value)


def offload(name: str, value: object) -> frozenset[str]:
    if value in ("auto", "none"):
        return frozenset(OFFLOADS if value == "auto" else ())
    parts = value.split(",") if isinstance(value, str) else as_list(value)
    return frozenset(check_known(name, text(name, part).strip(), OFFLOADS) for part in parts)


# Addresses.


def mac(name: str, value: object) -> Mac:
    return value if isinstance(value, Mac) else Mac.parse(text(name, value))


def address(name: str, value: object) -> Address:
    return parse_address(value if isinstance(value, Address) else text(name, value))


def ipv4_address(name: str, value: object) -> IPv4Address:
    parsed = address(name, value)
    if not isinstance(parsed, IPv4Address):
        raise ConfigError(f"{name} {parsed} is not an IPv4 address")
    return parsed


def ipv6_address(name: str, value: object) -> IPv6Address:
    parsed = address(name, value)
    if not isinstance(parsed, IPv6Address):
        raise ConfigError(f"{name} {parsed} is not an IPv6 address")
    return parsed


def interface_address(name: str, value: object) -> InterfaceAddress:
    return parse_interface(value if isinstance(value, InterfaceAddress) else text(name, value))


def prefix(name: str, value: object) -> Prefix:
    return parse_prefix(value if isinstance(value, Prefix) else text(name, value))


def endpoint(name: str, value: object) -> Endpoint:
    return value if isinstance(value, Endpoint) else Endpoint.parse(text(name, value))


def peer(name: str, value: object) -> Peer:
    """A peer as text, ``ENDPOINT=PREFIX...,mac=MAC``."""
    return value if isinstance(value, Peer) else Peer.parse(text(name, value))


# Files, and options of a cluster.


def file(name: str, value: object) -> Path:
    path = value if isinstance(value, Path) else Path(text(name, value))
    if not path.name:
        raise ConfigError(f"{name} {str(value)!r} is not a file (like /run/flannel/subnet.env)")
    return path


def absolute_path(name: str, value: object) -> Path:
    path = value if isinstance(value, Path) else Path(text(name, value))
    if not path.is_absolute():
        raise ConfigError(f"{name} {str(path)!r} is not an absolute path (like /var/lib/tunnel)")
    return path


def key_prefix(name: str, value: object) -> str:
    """A prefix of keys in etcd, without the slash at its end."""
    keys = text(name, value)
    if not keys.startswith("/"):
        raise ConfigError(f"{name} {keys!r} does not begin with / (like /coreos.com/network)")
    return keys.rstrip("/")


def regex(name: str, value: object) -> str:
    pattern = text(name, value)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name} {pattern!r} is not a regular expression: {error}") from error
    return pattern


# Lists.


def as_list(value: object) -> Iterable[object]:
    """A list as it is; any other value as a list of one."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return (value,)
    return value


def split_commas(values: object) -> list[object]:
    """Splits each text of a list at its commas, as flannel's flags allow."""
    return [
        piece.strip() if isinstance(piece, str) else piece
        for value in as_list(values or ())
        for piece in (value.split(",") if isinstance(value, str) else [value])
        if piece
    ]
