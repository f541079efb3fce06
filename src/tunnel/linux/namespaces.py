"""The network namespace of this process (network_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

_INITIAL_ONLY = Path("/proc/sys/net/core/netdev_max_backlog")
"""A setting that only the initial network namespace of a host has."""


def network_namespace(pid: int | None = None) -> int:
    """
    Returns the inode number that ``ip netns`` and ``lsns`` identify a network namespace by.

    Args:
        pid: A process, by default the calling thread.

    Returns: The number; 0 if /proc does not tell it to this user.
    """
    process = "thread-self" if pid is None else str(pid)
    try:
        return os.stat(f"/proc/{process}/ns/net").st_ino
    except OSError:
        return 0


def is_initial() -> bool:
    """Returns whether this is the network namespace of the host: of process 1, if that can be
    read; also where /proc is missing."""
    own, first = network_namespace(), network_namespace(1)
    return not own or own == first or (not first and _INITIAL_ONLY.exists())
