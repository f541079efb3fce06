"""
What a node provides for containers: masquerade rules, which it restores when they are changed, and
``subnet.env``.

    networks, subnets  ->  masquerade.py  ->  nft;  another program changes them  ->  nft again
    networks, subnets, mtu  ->  subnet.env
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tunnel.config.node import Config
from tunnel.errors import ConfigError, DeviceError
from tunnel.linux.nft import Nft, TableWatch
from tunnel.node import masquerade
from tunnel.node.subnet_file import subnet_env, write_subnet_file
from tunnel.supervise import Supervisor

log = logging.getLogger(__name__)

TASK = "masquerade"
"""Its name under the supervisor."""

_PAUSE = 1.0  # seconds between two repairs at least: another program may change them each time


class Containers:
    """
    Masquerade rules and ``subnet.env`` as `config` wants them, between :meth:`start` and
    :meth:`close`.

    Args:
        supervisor: Runs the task that restores the rules.

    Raises:
        DeviceError: Masquerading is wanted, but nft is not installed.
    """

    def __init__(self, config: Config, *, supervisor: Supervisor) -> None:
        self._config, self._supervisor = config, supervisor
        self._table = masquerade.table_of(config.name)
        self._nft = Nft() if config.ip_masq else None
        self._watch: TableWatch | None = None
        self._changed = asyncio.Event()
        self._installed: list[Any] = []
        self._file_written = False

    async def start(self) -> None:
        """
        Installs the masquerade rules, if they are wanted. If cancelled, :meth:`close` removes them.

        Raises:
            DeviceError: The kernel refuses the rules.
        """
        if self._nft is None:
            return
        # The watch comes first, so that no change is missed; it reports this installation too.
        self._watch = TableWatch(self._table, changed=self._changed.set)
        await self._install(self._nft)
        self._supervisor.start(TASK, self._run)

    async def close(self) -> None:
        """Removes the rules. The file stays, as flannel's does: containers may outlive the node."""
        await self._supervisor.stop([TASK])
        if self._watch is not None:
            self._watch.close()
        if self._nft is not None and await self._list_rules(self._nft):
            try:
                await self._nft.run(masquerade.remove(self._config.name))
            except DeviceError as error:
                log.warning("%s: cannot remove the masquerade rules: %s", self._config.name, error)

    def write_file(self, mtu: int) -> None:
        """
        Writes ``subnet.env``, if it is wanted and its content changes.

        Args:
            mtu: The device's, in bytes.

        Raises:
            ConfigError: It cannot be written.
        """
        self._file_written = True
        config = self._config
        if config.subnet_file is not None:
            text = subnet_env(config.networks, config.subnets, mtu=mtu, ip_masq=config.ip_masq)
            write_subnet_file(config.subnet_file, text)

    async def renumber(self, config: Config, *, mtu: int) -> None:
        """Applies the new subnets. Raises DeviceError when the kernel refuses the rules."""
        self._config = config
        if self._nft is not None:
            await self._install(self._nft)
        self.set_mtu(mtu)

    def set_mtu(self, mtu: int) -> None:
        """Writes the device's new MTU to ``subnet.env``, for containers that are added later."""
        if not self._file_written:
            return
        try:
            self.write_file(mtu)
        except ConfigError as error:
            # That is no reason to refuse the peer that changed the MTU.
            log.error("%s: %s", self._config.name, error)

    async def _install(self, nft: Nft) -> None:
        config = self._config
        await nft.run(
            masquerade.install(config.name, networks=config.networks, subnets=config.subnets)
        )
        self._installed = await self._list_rules(nft)

    async def _list_rules(self, nft: Nft) -> list[Any]:
        return masquerade.contents(await nft.list_table(masquerade.FAMILY, self._table))

    async def _run(self) -> None:
        """Restores what another program has changed, at most once a second. It begins with a
        comparison, because the supervisor may have restarted it after an error."""
        assert self._nft is not None
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            if await self._list_rules(self._nft) != self._installed:
                await self._restore(self._nft)
                await asyncio.sleep(_PAUSE)

    async def _restore(self, nft: Nft) -> None:
        name = self._config.name
        try:
            await self._install(nft)
        except DeviceError as error:
            # Packets pass without the rules; the next change is the next attempt.
            log.error("%s: cannot restore the masquerade rules: %s", name, error)
        else:
            log.warning("%s: restored the masquerade rules, which another program changed", name)
