"""
``subnet.env``: the file that tells a CNI plugin or Docker which addresses and which MTU containers
get, in flannel's format (pkg/subnet/subnet.go of flannel).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tunnel.errors import ConfigError
from tunnel.linux.files import replace_file
from tunnel.linux.users import choose_user
from tunnel.types import Prefix


def prepare_subnet_file(path: Path | None, *, user: str | None) -> None:
    """
    Creates the directory of ``subnet.env``, unless it exists, for the user that this process
    changes to: afterwards it may lack the permission. The owner of an existing one stays.

    Raises:
        ConfigError: It cannot be created.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True)
        if (owner := choose_user(user)) is not None:
            os.chown(path.parent, owner.pw_uid, owner.pw_gid)
    except FileExistsError:
        return
    except OSError as error:
        raise _write_error(path, error) from error


def write_subnet_file(path: Path, text: str) -> None:
    """
    Replaces the file with one that all users may read, unless it has this text already.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        with suppress(FileNotFoundError):
            if path.read_text() == text:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        # /run does not survive a power failure anyway.
        replace_file(path, text.encode(), mode=0o644, sync=False)
    except OSError as error:
        raise _write_error(path, error) from error


def subnet_env(
    networks: Iterable[Prefix], subnets: Iterable[Prefix], *, mtu: int, ip_masq: bool
) -> str:
    """
    The text of ``subnet.env`` for one network and one subnet of each family.

    The subnet is written as its first address, which is the bridge's.
    """
    subnet_of = {subnet.version: subnet for subnet in subnets}
    lines = []
    for network in sorted(networks, key=lambda one: one.version):
        prefix = "FLANNEL_" if network.version == 4 else "FLANNEL_IPV6_"
        subnet = subnet_of[network.version]
        lines += [
            f"{prefix}NETWORK={network}",
            f"{prefix}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "\n".join(lines) + "\n"


def _write_error(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {(error.strerror or str(error)).lower()} (let uid {os.getuid()} "
        f"write to {path.parent}, or choose another --subnet-file)",
        key=("subnet-file",),
    )
