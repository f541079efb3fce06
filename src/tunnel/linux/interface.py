"""The underlay address of a cluster's node, chosen by flannel's rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tunnel.errors import UnderlayError
from tunnel.linux.netlink import Netlink, device_name
from tunnel.types import Address

Interfaces = Mapping[str, Sequence[Address]]
"""The addresses of each interface, by its name."""


async def find_addresses(
    netlink: Netlink,
    *,
    iface: Iterable[str] = (),
    regex: Iterable[str] = (),
    can_reach: Address | None = None,
) -> dict[int, Address]:
    """
    Returns this host's address of each family (4, 6) on one interface: that of the route to
    `can_reach`, else the first that matches one of `iface`, by name or address, or of `regex`, else
    that of the default route. A match of an address chooses that address.

    Raises:
        UnderlayError: No interface matches. The message lists those that exist.
    """
    interfaces = await netlink.interfaces()
    if can_reach is not None:
        path = await netlink.get_path(can_reach)
        if path is None:
            raise UnderlayError(f"no route to {can_reach} (choose another --iface-can-reach)")
        return {**_of(interfaces, device_name(path.device)), path.source.version: path.source}
    wanted = [*(re.compile(re.escape(one)).fullmatch for one in iface)]
    wanted += (re.compile(one).search for one in regex)
    for match in wanted:
        for name, addresses in interfaces.items():
            chosen = [one for one in addresses if match(str(one))]
            if chosen or match(name):
                return _of(interfaces, name) | {one.version: one for one in reversed(chosen)}
    if not wanted:
        for family in (4, 6):
            device = await netlink.default_device(family)
            if device in interfaces:
                return _of(interfaces, device)
    known = ", ".join(
        f"{name} {' '.join(map(str, addresses))}" for name, addresses in interfaces.items()
    )
    why = "none matches --iface or --iface-regex" if wanted else "there is no default route"
    raise UnderlayError(
        f"cannot choose the interface to the other nodes: {why} (give --iface NAME, one of: "
        f"{known or 'none'})"
    )


def _of(interfaces: Interfaces, name: str) -> dict[int, Address]:
    """The first address of each family."""
    return {one.version: one for one in reversed(interfaces.get(name, ()))}
