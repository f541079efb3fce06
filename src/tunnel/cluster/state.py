"""
What a node keeps on disk: who it is, which no other file knows, and what the store said last.

    NAME.json     {"version": 1, "node": "...", "mac": "...", "subnets": [...]}
    NAME.members  control/cache.py's

Both are replaced whole, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunnel.cluster import cache
from tunnel.cluster.stores.base import Snapshot
from tunnel.errors import ConfigError
from tunnel.linux.users import choose_user
from tunnel.types import Mac, Prefix, parse_prefix

log = logging.getLogger(__name__)

_VERSION = 1


@dataclass(frozen=True)
class Identity:
    """
    Attributes:
        node: Its id, by which it finds its record again whatever address it has by then.
        mac: Its VTEP's, which others keep for ever in their kernels.
        subnets: Those that it had last.
    """

    node: str
    mac: Mac
    subnets: tuple[Prefix, ...] = ()

    @classmethod
    def make(cls) -> Identity:
        # Locally administered, unicast.
        mac = bytes([secrets.randbits(8) & 0xFC | 0x02]) + secrets.token_bytes(5)
        return cls(secrets.token_hex(16), Mac(mac))


class State:
    """
    The files of the node called `name`.

    Raises:
        ConfigError: One cannot be read or written there.

    Attributes:
        identity_path: What makes it this node.
    """

    def __init__(self, directory: Path, *, name: str) -> None:
        self._directory = directory
        self.identity_path = directory / f"{name}.json"
        self._members = directory / f"{name}.members"

    def prepare(self, *, user: str | None) -> None:
        """Makes the directory, and makes it theirs whom this process is about to become, as the
        files in it. Whose it is else stays the same."""
        owner = choose_user(user)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._directory, self.identity_path, self._members):
                if owner is not None and os.geteuid() == 0 and path.exists():
                    os.chown(path, owner.pw_uid, owner.pw_gid)
        except OSError as error:
            raise self._unusable("make", self._directory, error) from error

    def identity(self) -> Identity:
        """Who this node is; a new one where there is no file yet, which is written at once."""
        try:
            words = json.loads(self.identity_path.read_bytes())
            if words["version"] != _VERSION:
                raise ValueError(f"version {words['version']}")
            subnets = tuple(parse_prefix(one) for one in words["subnets"])
            return Identity(str(words["node"]), Mac.parse(words["mac"]), subnets)
        except FileNotFoundError:
            made = Identity.make()
            self.save_identity(made)
            return made
        except OSError as error:
            raise self._unusable("read", self.identity_path, error) from error
        except (ValueError, TypeError, KeyError) as error:
            # Not made anew unasked: it would be another node, with another subnet.
            raise ConfigError(
                f"{self.identity_path} is no node's identity: {error} (put it right, or remove it: "
                "this host is a new node then)",
                key=("state-dir",),
            ) from error

    def save_identity(self, identity: Identity) -> None:
        words = {
            "version": _VERSION,
            "node": identity.node,
            "mac": str(identity.mac),
            "subnets": [str(subnet) for subnet in identity.subnets],
        }
        self._write(self.identity_path, json.dumps(words).encode() + b"\n")

    def members(self) -> Snapshot | None:
        """What the store said last, None where nothing is kept."""
        try:
            return cache.load(self._members.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", self._members, error) from error
        except ConfigError as error:
            log.warning("%s: %s", self._members, error)
            return None

    def save_members(self, snapshot: Snapshot) -> None:
        self._write(self._members, cache.dump(snapshot))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=f".{path.name}.")
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(name, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def _unusable(self, verb: str, path: Path, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot {verb} {path}: {(error.strerror or str(error)).lower()} (let uid "
            f"{os.getuid()} write to {self._directory}, or choose another --state-dir)",
            key=("state-dir",),
        )
