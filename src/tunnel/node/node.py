"""
One running node: opens its parts in order, reports its state, and undoes everything.

    open   netlink -> device -> privileges, configuration -> sockets -> tables -> kernel -> packets
    close  the same, backwards
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Protocol

from tunnel._native import Fdb, Forwarder
from tunnel.config.node import Config
from tunnel.errors import ClosedError, DeviceError, StateError, UnderlayError
from tunnel.events import Events, OffloadLost
from tunnel.linux.netlink import Netlink
from tunnel.linux.privileges import drop_privileges
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.linux.underlay import Underlay
from tunnel.node.config_source import ConfigSource, describe_wait
from tunnel.node.containers import Containers
from tunnel.node.open_device import count_workers, open_queues
from tunnel.node.peers import Peers
from tunnel.node.reconciler import Reconciler
from tunnel.node.subnet_file import prepare_subnet_file
from tunnel.node.workers import Workers
from tunnel.supervise import Supervisor, finish
from tunnel.types import Address

log = logging.getLogger(__name__)

_LEARNED, _LEARNED_SHARE = 1 << 16, 1 << 13  # MACs in the FDB, and of one peer


class Closable(Protocol):
    """Something that is closed with the node, like a capture."""

    def close(self) -> None: ...


class Node:
    """
    Everything that one tunnel has open. The parts exist from :meth:`open` on, and can still be read
    when the node is closed.

    Args:
        with_device: False if the program itself takes the place of the device.
        confined, user, config_source: As in :class:`tunnel.Tunnel`.

    Attributes:
        fdb: The forwarding database, in TAP mode only.
        supervisor: Runs the long-lived tasks.
        kernel: What the node keeps in the kernel for its device, None without one.
        opened: When the node was opened, monotonic seconds.
        failure: Why the node closed by itself, None unless it did.
    """

    device: Device | SocketPair
    netlink: Netlink
    underlay: Underlay
    workers: Workers
    kernel: Reconciler | None
    peers: Peers
    opened: float

    def __init__(
        self,
        config: Config,
        *,
        with_device: bool,
        confined: bool = False,
        user: str | None = None,
        config_source: ConfigSource | None = None,
    ) -> None:
        self.config, self.with_device, self.config_source = config, with_device, config_source
        self._confined, self._user = confined, user
        self.fdb: Fdb | None = None
        if config.ageing is not None:  # in TAP mode
            self.fdb = Fdb(limit=_LEARNED, share=_LEARNED_SHARE, ageing=config.ageing)
        self.events = Events()
        self.supervisor = Supervisor(config.name)
        self.failure: DeviceError | UnderlayError | None = None
        self._captures: set[Closable] = set()
        self._undo = AsyncExitStack()
        self._closing: asyncio.Task[None] | None = None
        self._opening = self._loading = self._started = False
        self._opener: asyncio.Task[Any] | None = None
        self._opened_or_failed, self._closed = asyncio.Event(), asyncio.Event()
        self._offloads_seen: frozenset[str] = frozenset()

    # Opening. Each step registers at once how it is undone; closing goes backwards.

    async def open(self) -> None:
        """
        Opens everything, in order. If it fails or is cancelled, :meth:`close` undoes what was done.

        Raises:
            StateError: The node was opened before.
            ClosedError: Another task closed the node meanwhile.
            ConfigError, DeviceError, UnderlayError: As :class:`tunnel.Tunnel`.
        """
        self.check_new()
        self._opening, self._opener = True, asyncio.current_task()
        try:
            await self._open()
        except asyncio.CancelledError:
            # Cancelled by close(), unless another cancellation came as well.
            if self._closing is None or self._opener is None or self._opener.uncancel() > 0:
                raise
            raise (self.failure or self._state_error()) from None
        finally:
            self._opener = None
            self._opened_or_failed.set()

    async def _open(self) -> None:
        self.opened = time.monotonic()
        self._undo.callback(self.events.close)
        self.netlink = await self._undo.enter_async_context(Netlink())
        self.device = await self._open_device()
        await self._load_config()
        answers = await self._open_underlay()
        self.workers = self._make_workers()
        self._make_peers()
        for family in tuple(self.underlay.locals):
            await self.peers.driver.listen(family)
        await self._set_device_up()
        await self.peers.open(self.config.peers, answers=answers)
        await self._start_containers()
        await self.workers.start(self.device.queues)
        self._offloads_seen = self.offloads
        self._started = True
        for reason in self.underlay.abilities.reasons:
            log.warning("%s: %s", self.config.name, reason)

    async def _open_device(self) -> Device | SocketPair:
        """Undone by closing it. A persistent device stays, without what the node added to it."""
        workers = count_workers(self.config, with_device=self.with_device)
        if not self.with_device:
            pair = SocketPair()
            self._undo.callback(pair.close)
            return pair
        if workers > 1:
            await self.netlink.check_not_in_use(self.config.name)
        device = open_queues(self.config, workers)
        self._undo.callback(device.close)
        if device.persistent:
            # Made by an administrator, perhaps with the rest of a node that was killed.
            await self.netlink.flush_device(device.index)
            self._undo.push_async_callback(self.netlink.flush_device, device.index)
        return device

    async def _load_config(self) -> None:
        """Gives up privileges, for good, and then waits for the rest of the configuration."""
        if self.config_source is not None:
            self.config_source.prepare(user=self._user)
        if self._confined:
            prepare_subnet_file(self.config.subnet_file, user=self._user)
            drop_privileges(user=self._user, port=self.config.port)
        if self.config_source is not None:
            self._loading = True
            self.config = await self.config_source.load()
            self._loading = False

    async def _open_underlay(self) -> list[Address | UnderlayError]:
        """Resolves the peers' names and chooses the local addresses. Undone by closing the sockets.
        Returns the address of each peer, or why it has none."""
        self.underlay = Underlay(self.config, netlink=self.netlink)
        self._undo.callback(self.underlay.close)
        endpoints = [peer.endpoint for peer in self.config.peers]
        answers = await asyncio.gather(*(self.underlay.resolve(end) for end in endpoints))
        addresses = [one for one in answers if not isinstance(one, UnderlayError)]
        await self.underlay.choose_local_addresses(addresses)
        return answers

    def _make_workers(self) -> Workers:
        """Undone by stopping them: no packet moves before any of the rest is undone."""
        forwarders = [
            Forwarder(
                device=queue,
                output=self.device.output,
                vnet_header=self.device.vnet_header,
                coalesce_tcp="tso" in self.device.offloads,
                coalesce_udp="uso" in self.device.offloads,
                vni=self.config.vni,
                mac=self.underlay.mac.packed,
                segments=self.underlay.abilities.segments,
                fdb=self.fdb,
                flood=bool(self.config.flood),
                learning=bool(self.config.learning),
                storm=self.config.storm_limit or 0,
            )
            for queue in self.device.queues
        ]
        workers = Workers(
            forwarders, supervisor=self.supervisor, attend=self._attend, failed=self._fail
        )
        self._undo.callback(workers.close)
        return workers

    def _make_peers(self) -> None:
        """Undone by ending the supervised tasks, then the changes of peers that are under way."""
        self.kernel = None
        if isinstance(self.device, Device):
            self.kernel = Reconciler(
                self.netlink,
                index=self.device.index,
                name=self.config.name,
                supervisor=self.supervisor,
            )
        self._containers = Containers(self.config, supervisor=self.supervisor)
        self.peers = Peers(
            self.config,
            device=self.device,
            netlink=self.netlink,
            underlay=self.underlay,
            workers=self.workers,
            containers=self._containers,
            events=self.events,
            supervisor=self.supervisor,
            fdb=self.fdb,
            kernel=self.kernel,
        )
        self._undo.push_async_callback(self.peers.close)
        self._undo.push_async_callback(self.supervisor.close)
        self._undo.callback(self._stop)

    async def _set_device_up(self) -> None:
        """Undone with the device. Only the reconciler is closed, so that it restores nothing."""
        if self.kernel is None or not isinstance(self.device, Device):
            return
        await self.peers.driver.apply_mtu()
        mac = self.underlay.mac if self.fdb is not None else None
        await self.netlink.set_up(self.device.index, mac=mac)
        for interface in self.config.addresses:
            await self.kernel.add_address(interface)
        self._undo.push_async_callback(self.kernel.close)
        await self.kernel.start(addresses_changed=self.peers.set_addresses)

    async def _start_containers(self) -> None:
        """Undone by removing the masquerade rules; the subnet file stays."""
        self._undo.push_async_callback(self._containers.close)
        await self._containers.start()
        self._containers.write_file(self.underlay.mtu)

    # Running.

    @property
    def is_open(self) -> bool:
        return self._started and self._closing is None

    @property
    def ready(self) -> bool:
        """Whether packets can pass: the node is open, its device is up, and its tasks run."""
        return self.is_open and self.device_up and self.supervisor.healthy

    @property
    def device_up(self) -> bool:
        """Whether the device is up; True without one."""
        return not isinstance(self.device, Device) or self.device.is_up()

    @property
    def phase(self) -> str:
        """What the node does: ``not open``, ``opens``, ``waits for the store ...: why``, ``open``,
        ``closes`` or ``closed``."""
        if self._closing is not None:
            return "closed" if self._closed.is_set() else "closes"
        if self._loading and self.config_source is not None:
            return describe_wait(self.config_source.status())
        if self._opening and not self._started:
            return "opens"
        return "open" if self._started else "not open"

    def check_new(self) -> None:
        """Raises StateError if the node was opened or closed before."""
        if self._opening or self._closing is not None:
            raise self._state_error()

    def check_open(self) -> None:
        """Raises StateError unless the node is open."""
        if not self.is_open:
            raise self._state_error()

    def check_opened(self) -> None:
        """Raises StateError unless the node is or was open: then its parts exist."""
        if not self._started:
            raise self._state_error()

    def _state_error(self) -> StateError:
        name = self.config.name
        if self._closing is not None:
            return ClosedError(f"{name} is closed (open another Tunnel)")
        if self._started:
            return StateError(f"{name} is open already (enter it once)")
        if self._opening:
            return StateError(f"{name} is not open yet: it {self.phase}")
        return StateError(f"{name} is not open (enter it with async with)")

    @property
    def offloads(self) -> frozenset[str]:
        """The offloads in use now; ``trains`` as long as any peer gets them."""
        tcp, udp = self.workers.coalescing
        abilities = self.underlay.abilities
        in_use = {
            "tso": "tso" in self.device.offloads and tcp,
            "uso": "uso" in self.device.offloads and udp,
            "trains": abilities.segments > 1 and self.workers.send_trains(),
            "gro": abilities.gro,
        }
        return frozenset(word for word, used in in_use.items() if used)

    async def renumber(self, config: Config) -> None:
        """Replaces subnets and addresses, as :meth:`tunnel.Tunnel.renumber`."""
        self.peers.set_subnets(config.subnets)
        before, after = set(self.config.addresses), set(config.addresses)
        if self.kernel is not None:
            for address in after - before:
                await self.kernel.add_address(address)
            for address in before - after:
                await self.kernel.remove_address(address)
        await self._containers.renumber(config, mtu=self.underlay.mtu)
        self.config = config

    @contextmanager
    def capturing(self, capture: Closable) -> Iterator[None]:
        """Closes `capture` with the node, until the block is left. Raises StateError."""
        self.check_open()
        self._captures.add(capture)
        try:
            yield
        finally:
            self._captures.discard(capture)

    def report_lost_offloads(self) -> None:
        """Logs and reports, once, an offload that was turned off."""
        lost, self._offloads_seen = self._offloads_seen - self.offloads, self.offloads
        for offload in lost:
            self.events.emit(OffloadLost(offload))
        if lost:
            log.warning("%s: turned off at run time: %s", self.config.name, ", ".join(sorted(lost)))

    def _attend(self) -> None:
        """Control messages arrived, or an offload was turned off."""
        self.report_lost_offloads()
        self.peers.monitor.read()

    # Closing.

    async def close(self) -> None:
        """Undoes everything, once. It finishes first, however often it is cancelled."""
        self._start_closing()
        assert self._closing is not None
        await finish(self._closing)

    async def wait_closed(self) -> None:
        """
        Returns when the node is closed.

        Raises:
            StateError: It was not opened.
            DeviceError, UnderlayError: Why it closed by itself.
        """
        if not self._opening and self._closing is None:
            raise self._state_error()
        await self._closed.wait()
        if self.failure is not None:
            raise self.failure

    def _start_closing(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            if self._opener is not None:
                # What it has not registered yet could not be undone.
                self._opener.cancel()
                await self._opened_or_failed.wait()
            await self._undo.aclose()
        finally:
            self._closed.set()

    def _fail(self, error: OSError) -> None:
        """Closes the node because a descriptor no longer works."""
        if self.failure is not None:
            return
        name, why = self.config.name, error.strerror
        if error.filename in self.device.queues:
            self.failure = DeviceError(f"device {name} no longer works: {why}")
        else:
            self.failure = UnderlayError(f"the UDP socket of {name} failed: {why}")
        self.failure.__cause__ = error
        log.info("%s: closing: %s", name, self.failure)
        self._stop()
        self._start_closing()

    def _stop(self) -> None:
        """Stops packets and captures."""
        self.workers.close()
        for capture in tuple(self._captures):
            capture.close()
