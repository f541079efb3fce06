"""
The files of a node on disk: its identity, which exists nowhere else, and the members it knew last.

    NAME.json     {"version": 1, "node": "...", "mac": "...", "subnets": [...]}
    NAME.members  see :mod:`tunnel.cluster.cache`

A crash leaves the old file or the new one. Every function blocks on the disk.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

from tunnel.cluster import cache
from tunnel.cluster.stores.base import Snapshot
from tunnel.errors import ConfigError
from tunnel.linux.files import replace_file
from tunnel.linux.users import choose_user
from tunnel.types import Mac, Prefix, parse_prefix

log = logging.getLogger(__name__)

_VERSION = 1


@dataclass(frozen=True)
class Identity:
    """
    What stays the same when a node restarts or changes its address.

    Attributes:
        node: The id by which it finds its record.
        mac: The MAC of its VTEP; kernels of flannel nodes have it in permanent entries.
        subnets: Those that it had last.
    """

    node: str
    mac: Mac
    subnets: tuple[Prefix, ...] = ()

    @classmethod
    def make(cls) -> Identity:
        """Makes a random identity; its MAC is locally administered, and unicast."""
        mac = bytes([secrets.randbits(8) & 0xFC | 0x02]) + secrets.token_bytes(5)
        return cls(secrets.token_hex(16), Mac(mac))


class State:
    """
    The files of the node called `name` in a directory.

    Raises:
        ConfigError: From every method, if a file cannot be read or written.

    Attributes:
        identity_path: The file with the identity.
    """

    def __init__(self, directory: Path, *, name: str) -> None:
        self._directory = directory
        self.identity_path = directory / f"{name}.json"
        self._members_path = directory / f"{name}.members"
        self._writing = threading.Lock()  # a cancelled write continues in its thread

    def prepare(self, *, user: str | None) -> None:
        """Makes the directory, and gives it and its files to the user that the process changes to.
        Without such a user the owner stays."""
        owner = choose_user(user)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._directory, self.identity_path, self._members_path):
                if owner is not None and os.geteuid() == 0 and path.exists():
                    os.chown(path, owner.pw_uid, owner.pw_gid)
        except OSError as error:
            raise self._failure("make", self._directory, error) from error

    def identity(self) -> Identity:
        """The identity of this node; a new one is made and written if there is no file."""
        try:
            found = json.loads(self.identity_path.read_bytes())
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}")
            subnets = tuple(parse_prefix(one) for one in found["subnets"])
            return Identity(str(found["node"]), Mac.parse(found["mac"]), subnets)
        except FileNotFoundError:
            made = Identity.make()
            self.save_identity(made)
            return made
        except OSError as error:
            raise self._failure("read", self.identity_path, error) from error
        except (ValueError, TypeError, KeyError) as error:
            # A new identity would make this another node, with another subnet.
            raise ConfigError(
                f"{self.identity_path} is not the identity of a node: {error} (repair it, or "
                "remove it to make this host a new node)",
                key=("state-dir",),
            ) from error

    def save_identity(self, identity: Identity) -> None:
        content = {
            "version": _VERSION,
            "node": identity.node,
            "mac": str(identity.mac),
            "subnets": [str(subnet) for subnet in identity.subnets],
        }
        self._write(self.identity_path, json.dumps(content).encode() + b"\n")

    def members(self) -> Snapshot | None:
        """The members as saved last, None if there is no file or it cannot be understood."""
        try:
            return cache.load(self._members_path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", self._members_path, error) from error
        except ConfigError as error:
            log.warning("%s: %s", self._members_path, error)
            return None

    def save_members(self, snapshot: Snapshot) -> None:
        self._write(self._members_path, cache.dump(snapshot))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            with self._writing:
                replace_file(path, content)
        except OSError as error:
            raise self._failure("write", path, error) from error

    def _failure(self, verb: str, path: Path, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot {verb} {path}: {(error.strerror or str(error)).lower()} (let uid "
            f"{os.getuid()} write to {self._directory}, or choose another --state-dir)",
            key=("state-dir",),
        )
