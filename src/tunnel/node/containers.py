"""
What a node does for the containers behind it: masquerade rules, kept as they have to be, and a
file that tells a CNI plugin or Docker which addresses and which MTU they get.

    networks, subnets  ->  control/masquerade.py  ->  nft; somebody changes them  ->  again
    networks, subnets, mtu  ->  subnet.env
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunnel.config.node import Config
from tunnel.errors import ConfigError, DeviceError
from tunnel.linux.nft import Nft, TableWatch
from tunnel.linux.users import choose_user
from tunnel.node import masquerade
from tunnel.types import Prefix

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two repairs at least: somebody may be set against us


class Containers:
    """
    As `config` says, between :meth:`start` and :meth:`close`.

    Raises:
        DeviceError: Masquerade is wanted, and nft is missing.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._table = masquerade.table_of(config.name)
        self._nft = Nft() if config.ip_masq else None
        self._watch: TableWatch | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._installed: list[Any] = []
        self._published = False

    async def start(self) -> None:
        """
        Masquerades, where that is wanted. Cancelled, :meth:`close` undoes it.

        Raises:
            DeviceError: The kernel refuses the rules.
        """
        if self._nft is not None:
            # First of all, so that no change is missed; ours is one to look at, too.
            self._watch = TableWatch(self._table, changed=self._changed.set)
            await self._install(self._nft)
            self._keeping = asyncio.create_task(self._keep(self._nft))

    async def close(self) -> None:
        """Takes the rules away. The file stays, as flannel's does: containers may outlive us."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._watch is not None:
            self._watch.close()
        if self._nft is not None and await self._look(self._nft):
            try:
                await self._nft.run(masquerade.remove(self._config.name))
            except DeviceError as error:
                log.warning("%s: its masquerade rules stay: %s", self._config.name, error)

    def publish(self, mtu: int) -> None:
        """
        Writes ``subnet.env``, where one is wanted and unless it says the same already.

        Args:
            mtu: The device's, in bytes.

        Raises:
            ConfigError: It cannot be written there.
        """
        self._published = True
        config = self._config
        if config.subnet_file is None:
            return
        text = subnet_env(config.networks, config.subnets, mtu=mtu, ip_masq=config.ip_masq)
        try:
            config.subnet_file.parent.mkdir(parents=True, exist_ok=True)
            _write(config.subnet_file, text)
        except OSError as error:
            raise _unwritable(config.subnet_file, error) from error

    async def move(self, config: Config, *, mtu: int) -> None:
        """The subnets are others now. Raises DeviceError: the kernel refuses the rules."""
        self._config = config
        if self._nft is not None:
            await self._install(self._nft)
        self.resize(mtu)

    def resize(self, mtu: int) -> None:
        """The device has another MTU: containers that come later are to have it as well."""
        if not self._published:
            return
        try:
            self.publish(mtu)
        except ConfigError as error:
            # It is no reason to refuse the peer that the MTU has changed for.
            log.error("%s: %s", self._config.name, error)

    async def _install(self, nft: Nft) -> None:
        config = self._config
        await nft.run(
            masquerade.install(config.name, networks=config.networks, subnets=config.subnets)
        )
        self._installed = await self._look(nft)

    async def _look(self, nft: Nft) -> list[Any]:
        return masquerade.contents(await nft.list_table(masquerade.FAMILY, self._table))

    async def _keep(self, nft: Nft) -> None:
        """Puts right at once what somebody has changed, but not again and again."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if await self._look(nft) != self._installed:
                await self._restore(nft)
                await asyncio.sleep(_PAUSE)

    async def _restore(self, nft: Nft) -> None:
        try:
            await self._install(nft)
        except DeviceError as error:
            # Packets go on without them; the next change is the next occasion.
            log.error("%s: somebody changed the masquerade rules: %s", self._config.name, error)
        else:
            log.warning("%s: somebody changed the masquerade rules: restored", self._config.name)


def prepare_subnet_file(path: Path | None, *, user: str | None) -> None:
    """
    Makes the directory of ``subnet.env``, unless it is there, for whom this process is about to
    become: afterwards it may not. One that is there stays whose it is.

    Raises:
        ConfigError: It cannot be made.
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
        raise _unwritable(path, error) from error


def subnet_env(
    networks: Iterable[Prefix], subnets: Iterable[Prefix], *, mtu: int, ip_masq: bool
) -> str:
    """
    The text of ``subnet.env`` (flannel's pkg/subnet/subnet.go), of one network and one subnet of
    each family. The subnet is written as its first address, which is the bridge's.
    """
    own = {subnet.version: subnet for subnet in subnets}
    lines = []
    for network in sorted(networks, key=lambda one: one.version):
        prefix = "FLANNEL_" if network.version == 4 else "FLANNEL_IPV6_"
        subnet = own[network.version]
        lines += [
            f"{prefix}NETWORK={network}",
            f"{prefix}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Readers see the old one or the new one, never a part."""
    with suppress(FileNotFoundError):
        if path.read_text() == text:
            return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            os.fchmod(descriptor, 0o644)
        os.rename(name, path)
    except OSError:
        os.unlink(name)
        raise


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {(error.strerror or str(error)).lower()} (let uid {os.getuid()} "
        f"write to {path.parent}, or choose another --subnet-file)",
        key=("subnet-file",),
    )
