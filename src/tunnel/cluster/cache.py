"""
What is kept on disk of a store, so that a node that starts while it is away knows its peers.

    Snapshot  <->  one JSON object

The file is ours alone, and may have been cut short or written by another version: what cannot be
read is as good as nothing.
"""

from __future__ import annotations

import base64
import json

from tunnel.cluster.stores.base import Entry, Snapshot
from tunnel.errors import ConfigError

_VERSION = 1


def dump(snapshot: Snapshot) -> bytes:
    """Values are Base64, because anybody may have written them."""
    entries = {
        key: [base64.b64encode(one.value).decode(), one.revision, one.lease, one.created]
        for key, one in snapshot.entries.items()
    }
    words = {"version": _VERSION, "revision": snapshot.revision, "entries": entries}
    return json.dumps(words, separators=(",", ":")).encode()


def load(text: bytes) -> Snapshot:
    """
    Raises:
        ConfigError: It is not what :func:`dump` has written.
    """
    try:
        words = json.loads(text)
        if words["version"] != _VERSION:
            raise ValueError
        entries = {key: _entry(*one) for key, one in words["entries"].items()}
        return Snapshot(_number(words["revision"]), entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError("what was kept of the store cannot be read (it is left alone)") from error


def _entry(value: str, revision: object, lease: object, created: object) -> Entry:
    return Entry(
        base64.b64decode(value, validate=True),
        _number(revision),
        None if lease is None else _number(lease),
        _number(created),
    )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value
