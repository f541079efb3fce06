"""
Dataclasses to values that JSON and msgpack can hold, and back.

    Status  ->  encode  ->  {"name": "tunnel1", ...}  ->  decode(Status, ...)  ->  Status

Enums become their values; addresses, prefixes, MACs and endpoints text; sets and tuples lists.
Decoding follows the type hints of a class. It ignores fields that the class does not have and uses
the defaults of fields that are missing, so that a command understands a node that is older or newer
than itself. A value of a wrong type is an error.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

from tunnel.errors import CodecError
from tunnel.events import Event
from tunnel.types import Endpoint, Mac

T = TypeVar("T")

_TEXT: dict[object, Callable[[str], Any]] = {
    Mac: Mac.parse,
    Endpoint: Endpoint.parse,
    ipaddress.IPv4Address: ipaddress.IPv4Address,
    ipaddress.IPv6Address: ipaddress.IPv6Address,
    ipaddress.IPv4Network: ipaddress.IPv4Network,
    ipaddress.IPv6Network: ipaddress.IPv6Network,
    ipaddress.IPv4Interface: ipaddress.IPv4Interface,
    ipaddress.IPv6Interface: ipaddress.IPv6Interface,
}
"""Types whose values are sent as text, and how that is parsed."""

_EVENTS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def encode(value: Any) -> Any:
    """Returns `value` as JSON values: numbers, text, lists and maps with text as keys."""
    match value:
        case None | bool() | int() | float() | str():
            same: Any = value
        case Enum():
            same = value.value
        case Mapping():
            same = {str(key): encode(one) for key, one in value.items()}
        case set() | frozenset():
            same = sorted(encode(one) for one in value)
        case list() | tuple():
            same = [encode(one) for one in value]
        case _ if dataclasses.is_dataclass(value) and type(value) not in _TEXT:
            fields = dataclasses.fields(value)
            same = {field.name: encode(getattr(value, field.name)) for field in fields}
        case _:
            same = str(value)
    return same


def decode(kind: type[T], value: object) -> T:
    """
    Returns the `kind` that :func:`encode` made `value` of.

    Raises:
        CodecError: It is not one; the text names the field and the value.
    """
    decoded: T = _decode(kind, value, kind.__name__)
    return decoded


def describe_fdb_key(mac: Mac, vlan: int | None) -> str:
    """Returns the text that names an FDB entry in the answer to a change."""
    return str(mac) if vlan is None else f"{mac} vlan {vlan}"


def encode_event(event: Event) -> dict[str, Any]:
    """Returns the fields of an event, and its class as ``event``."""
    return {"event": type(event).__name__, **encode(event)}


def decode_event(value: object) -> Event | None:
    """Returns an event, None for one of a class that this version does not have. Raises
    CodecError."""
    if not isinstance(value, Mapping):
        raise _wrong("event", value, "a map")
    kind = _EVENTS.get(str(value.get("event")))
    event: Event | None = None if kind is None else decode(kind, value)
    return event


def _decode(kind: Any, value: object, place: str) -> Any:
    if kind in (Any, object):
        return value
    if kind in (None, types.NoneType, bool, int, float, str):
        return _decode_scalar(kind, value, place)
    if kind in _TEXT:
        return _decode_text(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, place)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise _wrong(place, value, f"a {kind.__name__}") from error
    return _decode_generic(kind, value, place)


def _decode_scalar(kind: Any, value: object, place: str) -> Any:
    if kind in (None, types.NoneType):
        kind = types.NoneType
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(place, value, f"of type {kind.__name__}")
    return value


def _decode_text(kind: Any, value: object, place: str) -> Any:
    if not isinstance(value, str):
        raise _wrong(place, value, "text")
    try:
        return _TEXT[kind](value)
    except ValueError as error:
        raise _wrong(place, value, f"an {kind.__name__}") from error


def _decode_fields(kind: Any, value: object, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(place, value, "a map")
    given = {}
    for name, hint, needed in _fields(kind):
        if name in value:
            given[name] = _decode(hint, value[name], f"{place}.{name}")
        elif needed:
            raise _wrong(f"{place}.{name}", None, "a value")
    return kind(**given)


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """The name of each field of a dataclass, its type, and whether it has no default."""
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return tuple(
        (field.name, hints[field.name], field.default is missing is field.default_factory)
        for field in dataclasses.fields(kind)
    )


def _decode_generic(kind: Any, value: object, place: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, place)
    if origin in (tuple, list, frozenset):
        if not isinstance(value, list | tuple):
            raise _wrong(place, value, "a list")
        decoded = [_decode(args[0], one, f"{place}[{i}]") for i, one in enumerate(value)]
        return origin(decoded)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a map")
        return {
            _decode(args[0], key, f"{place} key"): _decode(args[1], one, f"{place}[{key}]")
            for key, one in value.items()
        }
    if origin is typing.Literal and value in args:
        return value
    raise _wrong(place, value, f"a {kind}")


def _decode_union(kinds: tuple[Any, ...], value: object, place: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(kinds) == 1:
        return _decode(kinds[0], value, place)
    for kind in kinds:
        try:
            return _decode(kind, value, place)
        except CodecError:
            continue
    named = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise _wrong(place, value, f"of type {named}")


def _wrong(place: str, value: object, expected: str) -> CodecError:
    text = repr(value)
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return CodecError(
        f"the node's answer cannot be read: {place} is {shown}, not {expected} "
        "(compare tunnel --version with the node's)"
    )
