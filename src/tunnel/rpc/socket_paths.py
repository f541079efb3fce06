"""
Where the control sockets of nodes are, and which one belongs to the name of a node.

    /run/tunnel/NAME.sock           a node in the network namespace of the host
    /run/tunnel/NAME@INODE.sock     a node in the network namespace with that inode number

Nodes of one name in several network namespaces may share /run; containers often do. A user that
may not write to /run/tunnel has its sockets in $XDG_RUNTIME_DIR/tunnel.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from tunnel.errors import TunnelError
from tunnel.linux.namespaces import is_initial, network_namespace

_STEM = re.compile(r"(?P<name>.+?)(@(?P<namespace>[0-9]+))?")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True)
class ControlSocket:
    """
    A control socket in one of the directories; the process that listened to it may have ended.

    Attributes:
        name: The name of its node.
        namespace: The inode number of the node's network namespace, None for the host's.
    """

    path: Path
    name: str
    namespace: int | None

    @classmethod
    def from_path(cls, path: Path) -> ControlSocket:
        match = _STEM.fullmatch(path.stem)
        assert match is not None
        namespace = match["namespace"]
        return cls(path, match["name"], int(namespace) if namespace else None)

    @property
    def is_local(self) -> bool:
        """Whether its node is in the network namespace of this process."""
        if self.namespace is None:
            return is_initial()
        return self.namespace == network_namespace()

    def __str__(self) -> str:
        if self.is_local:
            return self.name
        inode = self.namespace
        place = "the network namespace of the host" if inode is None else f"netns {inode}"
        pid = peer_pid(self.path)
        return f"{self.name} in {place}" + (f" (pid {pid})" if pid else "")


def directories() -> list[Path]:
    """Returns the directories that control sockets may be in, the preferred one first."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [Path("/run/tunnel"), *([Path(own, "tunnel")] if own else [])]


def default_path(name: str) -> Path:
    """
    Returns the path for the control socket of a node of this name, in this network namespace.

    Raises:
        TunnelError: This user may not write to any of the directories.
    """
    stem = name if is_initial() else f"{name}@{network_namespace()}"
    for directory in directories():
        if os.access(directory if directory.exists() else directory.parent, os.W_OK):
            return directory / f"{stem}.sock"
    raise TunnelError(
        "no directory for a control socket: /run/tunnel is not writable, and XDG_RUNTIME_DIR is "
        "not set or not writable (use --control PATH, or --control none)"
    )


def is_served(path: Path) -> bool:
    """Returns whether a process listens to a control socket; so also if this user may not open
    it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
    return True


def peer_pid(path: Path) -> int:
    """Returns the process that listens to a control socket, 0 if that is unknown."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
            packed = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return 0
    pid: int = _CREDENTIALS.unpack(packed)[0]
    return pid


def control_sockets() -> list[ControlSocket]:
    """
    Returns all control sockets, those in preferred directories first.

    Raises:
        TunnelError: A directory cannot be read.
    """
    return [
        ControlSocket.from_path(path)
        for directory in directories()
        for path in _sockets_in(directory)
    ]


def nodes() -> dict[str, Path]:
    """Returns the control sockets of this network namespace by the name of their node."""
    return {one.name: one.path for one in reversed(control_sockets()) if one.is_local}


def find(name: str | None = None) -> Path:
    """
    Returns the control socket of a node.

    Args:
        name: The name of the node, by default that of the only node in this network namespace. A
            node of that name in another network namespace is found if this one has none.

    Raises:
        TunnelError: There is no such node, or there are several; the text lists them.
    """
    sockets = control_sockets()
    local = {one.name: one for one in reversed(sockets) if one.is_local}
    if name is not None:
        others = [one for one in sockets if one.name == name and not one.is_local]
        return _only(name, local.get(name), others, sockets)
    if len(local) > 1:
        # The dead sockets of killed nodes are ignored if there is a living one.
        local = {one.name: one for one in local.values() if is_served(one.path)} or local
    if len(local) > 1:
        names = ", ".join(sorted(local))
        raise TunnelError(
            f"{len(local)} nodes have control sockets here (choose by --name: {names})"
        )
    for one in local.values():
        return one.path
    raise _not_found("no node", sockets)


def _only(
    name: str, own: ControlSocket | None, others: list[ControlSocket], known: list[ControlSocket]
) -> Path:
    if own is not None:
        return own.path
    living = [one for one in others if is_served(one.path)] or others
    if len(living) > 1:
        listed = ", ".join(f"{one} at {one.path}" for one in living)
        raise TunnelError(f"{len(living)} nodes are called {name} (choose by --control: {listed})")
    if not living:
        raise _not_found(f"no node {name}", known)
    return living[0].path


def _not_found(missing: str, known: list[ControlSocket]) -> TunnelError:
    if known:
        listed = ", ".join(sorted(map(str, known)))
        return TunnelError(
            f"{missing} has a control socket in this network namespace (others: {listed}; choose "
            "one by --name, or by --control PATH)"
        )
    places = " or ".join(map(str, directories()))
    return TunnelError(
        f'{missing} has a control socket in {places} (start one with "tunnel up", or give its '
        "socket with --control PATH)"
    )


def _sockets_in(directory: Path) -> list[Path]:
    try:
        paths = sorted(directory.iterdir())
        return [path for path in paths if path.suffix == ".sock" and path.is_socket()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TunnelError(
            f"cannot read {directory}: {(error.strerror or str(error)).lower()} "
            "(run as the user that started the node, most often root)"
        ) from error
