"""The user that a node runs as (user_namespaces(7))."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from tunnel.errors import ConfigError
from tunnel.linux import capabilities

NOBODY = "nobody"


def choose_user(name: str | None) -> pwd.struct_passwd | None:
    """
    Returns the user that a node changes to after its device is open, None to stay the same user.

    Without a `name` that is "nobody" when root starts the node and may change to it, which
    containers and user namespaces often forbid.

    Raises:
        ConfigError: There is no user `name`.
    """
    if name is None and os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(name or NOBODY)
    except KeyError as error:
        if name is None:
            return None
        raise ConfigError(
            f'user {name} does not exist (create it with "useradd --system {name}")', key=("user",)
        ) from error
    return user if name or _may_change_to(user) else None


def _may_change_to(user: pwd.struct_passwd) -> bool:
    mapped = _is_mapped("uid", user.pw_uid) and _is_mapped("gid", user.pw_gid)
    return mapped and capabilities.permitted() >= {capabilities.SETGID, capabilities.SETUID}


def _is_mapped(kind: str, number: int) -> bool:
    """Whether this user namespace has that uid or gid."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    except FileNotFoundError:  # this kernel has no user namespaces
        return True
    ranges = (map(int, line.split()) for line in lines)
    return any(first <= number < first + count for first, _, count in ranges)
