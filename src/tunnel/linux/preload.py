"""
Imports what a running node may need later, before it drops its privileges.

Afterwards the installation may be unreadable: a checkout in a home directory of mode 0700, say.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

_LIBRARY = (
    "asyncio.staggered",
    "concurrent.futures.thread",
    "ctypes.util",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8_sig",
    "json.encoder",
    "linecache",
    "stringprep",
    "subprocess",
    "tomllib",
    "traceback",
    "unicodedata",
)
"""Modules that Python's library imports on first use."""

_NOT_OURS = {
    "tunnel.__main__",
    "tunnel.cli",
    "tunnel.cluster.stores.etcd",
    "tunnel.cluster.stores.etcd_gateway",
    "tunnel.diagnostics.decode",
    "tunnel.metrics",
    "tunnel.testing",
}
"""Modules that no node imports, or that need a library which the caller imports before the node is
opened: an optional one may be missing where nothing uses it."""


def import_all() -> None:
    """
    Imports every module that a running node may reach: this program's and the library's.

    A module that cannot be imported is left out: a node that starts as a user who cannot read the
    installation has what it was started with.
    """
    for name in _LIBRARY:
        _import(name)
    with suppress(ImportError):  # pkgutil imports more itself
        for name in _modules(sys.modules["tunnel"].__path__, "tunnel."):
            _import(name)


def _modules(path: Iterable[str], prefix: str) -> Iterator[str]:
    for module in pkgutil.iter_modules(path, prefix):
        if module.name not in _NOT_OURS:
            yield module.name
            if module.ispkg and _import(module.name):
                yield from _modules(sys.modules[module.name].__path__, f"{module.name}.")


def _import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
