"""
The file format of a node's copy of the store, with which it can start without the store.

    Snapshot  <->  one JSON object

Only this program writes the file. One that is damaged or has another version is ignored.
"""

from __future__ import annotations

import base64
import json

from tunnel.cluster.stores.base import Entry, Snapshot
from tunnel.errors import ConfigError

_VERSION = 1


def dump(snapshot: Snapshot) -> bytes:
    """The content of the file. Values are Base64, because they may be any bytes."""
    entries = {
        key: [base64.b64encode(one.value).decode(), one.revision, one.lease, one.created]
        for key, one in snapshot.entries.items()
    }
    content = {"version": _VERSION, "revision": snapshot.revision, "entries": entries}
    return json.dumps(content, separators=(",", ":")).encode()


def load(text: bytes) -> Snapshot:
    """
    The snapshot in a file.

    Raises:
        ConfigError: :func:`dump` did not write this.
    """
    try:
        found = json.loads(text)
        if found["version"] != _VERSION:
            raise ValueError
        entries = {key: _read_entry(*one) for key, one in found["entries"].items()}
        return Snapshot(_read_number(found["revision"]), entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError("the saved members cannot be read (ignoring them)") from error


def _read_entry(value: str, revision: object, lease: object, created: object) -> Entry:
    return Entry(
        base64.b64decode(value, validate=True),
        _read_number(revision),
        None if lease is None else _read_number(lease),
        _read_number(created),
    )


def _read_number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value
