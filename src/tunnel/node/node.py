"""
The one place where the planes meet: descriptors are opened, tables kept true, all undone.

    peers  ->  membership  ->  actions  ->  forwarder's tables, kernel routes
    device or socket is readable  ->  forwarder.outbound, forwarder.inbound
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Protocol

from tunnel._native import Fdb, Forwarder
from tunnel.config.node import AUTO_WORKERS, Config
from tunnel.errors import ClosedError, ConfigError, DeviceError, StateError, UnderlayError
from tunnel.events import Events, OffloadLost
from tunnel.linux.netlink import Netlink
from tunnel.linux.privileges import drop_privileges
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device, open_device
from tunnel.linux.underlay import Underlay
from tunnel.node.config_source import ConfigSource, describe_wait
from tunnel.node.containers import Containers
from tunnel.node.peers import Peers
from tunnel.node.reconciler import Reconciler
from tunnel.node.subnet_file import prepare_subnet_file
from tunnel.node.workers import Workers
from tunnel.supervise import Supervisor

log = logging.getLogger(__name__)

_LEARNED, _LEARNED_SHARE = 1 << 16, 1 << 13  # MACs in all, and of one peer


class Closable(Protocol):
    """What ends with the node, like a capture."""

    def close(self) -> None: ...


class Node:
    """
    All that one tunnel has open. Its parts are there once it was opened, and can still be read
    when it is closed.

    Args:
        with_device: Without, the program itself is the device.
        confined, user, config_source: As in :class:`tunnel.Tunnel`.

    Attributes:
        fdb: In TAP mode.
        supervisor: Runs what runs for long.
        kernel: Of the device, None without one.
        opened: When that was.
        failure: Why it closed by itself, None unless it did.
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
        self._closed = asyncio.Event()
        self._offloads_seen: frozenset[str] = frozenset()

    # Opening: each step says at once how it is undone.

    async def open(self) -> None:
        """Raises what :class:`tunnel.Tunnel` does; what was made until then is to be closed."""
        if self._opening or self._closing is not None:
            raise self._state_error()
        self._opening = True
        self._loop = asyncio.get_running_loop()
        self._undo.callback(self._closed.set)
        self._undo.callback(self.events.close)
        self._undo.push_async_callback(self.supervisor.close)
        self.opened = time.monotonic()
        self.netlink = await self._undo.enter_async_context(Netlink())
        self.device = await self._open_device()
        await self._settle_in()
        self._containers = Containers(self.config, supervisor=self.supervisor)
        self.underlay = Underlay(self.config, netlink=self.netlink)
        self._undo.callback(self.underlay.close)

        endpoints = [peer.endpoint for peer in self.config.peers]
        found = await asyncio.gather(*(self.underlay.resolve(end) for end in endpoints))
        there = [one for one in found if not isinstance(one, UnderlayError)]
        await self.underlay.choose_local_addresses(there)
        self.workers = self._make_workers()
        self.kernel = None
        if isinstance(self.device, Device):
            self.kernel = Reconciler(
                self.netlink,
                index=self.device.index,
                name=self.config.name,
                supervisor=self.supervisor,
            )
        self.peers = Peers(
            self.config,
            device=self.device,
            netlink=self.netlink,
            underlay=self.underlay,
            workers=self.workers,
            events=self.events,
            fdb=self.fdb,
            kernel=self.kernel,
            resized=self._containers.set_mtu,
        )
        self._undo.callback(self._stop)
        self._undo.push_async_callback(self.peers.settle)
        for family in tuple(self.underlay.locals):
            await self.peers.listen(family)
        await self._set_device_up()
        await self.peers.open(self.config.peers, found=found)
        self._undo.push_async_callback(self._containers.close)
        await self._containers.start()
        self._containers.write_file(self.underlay.mtu)
        self._offloads_seen = self.offloads
        await self.workers.start(self.device.queues)
        self._started = True
        for reason in self.underlay.abilities.reasons:
            log.warning("%s: %s", self.config.name, reason)

    async def _open_device(self) -> Device | SocketPair:
        workers = self._count_workers()
        if not self.with_device:
            pair = SocketPair()
            self._undo.callback(pair.close)
            return pair
        if workers > 1:
            await self.netlink.check_not_in_use(self.config.name)
        device = self._open_queues(workers)
        self._undo.callback(device.close)
        if device.persistent:
            # Left by a node that was killed, or made by an admin; it outlives us as well.
            await self.netlink.flush_device(device.index)
            self._undo.push_async_callback(self.netlink.flush_device, device.index)
        return device

    def _open_queues(self, count: int) -> Device:
        try:
            return open_device(
                self.config.name,
                offloads=self.config.offload,
                queues=count,
                mode=self.config.mode,
            )
        except DeviceError:
            if count == 1 or self.config.workers != "auto":
                raise
            # A persistent device may have been made with one queue.
            return open_device(
                self.config.name, offloads=self.config.offload, mode=self.config.mode
            )

    def _count_workers(self) -> int:
        if self.config.workers == "auto":
            return min(len(os.sched_getaffinity(0)), AUTO_WORKERS) if self.with_device else 1
        if self.config.workers > 1 and not self.with_device:
            raise ConfigError(
                f"workers {self.config.workers} need a device (without one there is one worker)",
                key=("workers",),
            )
        return self.config.workers

    async def _settle_in(self) -> None:
        """Becomes who runs on, and learns what it is to be."""
        if self.config_source is not None:
            self.config_source.prepare(user=self._user)
        if self._confined:
            prepare_subnet_file(self.config.subnet_file, user=self._user)
            drop_privileges(user=self._user, port=self.config.port)
        if self.config_source is not None:
            self._loading = True
            self.config = await self.config_source.load()
            self._loading = False

    def _make_workers(self) -> Workers:
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
        return Workers(
            forwarders, supervisor=self.supervisor, attend=self._attend, failed=self._fail
        )

    async def _set_device_up(self) -> None:
        if self.kernel is None or not isinstance(self.device, Device):
            return
        await self.peers.fit()
        mac = self.underlay.mac if self.fdb is not None else None
        await self.netlink.set_up(self.device.index, mac=mac)
        for interface in self.config.addresses:
            await self.kernel.add_address(interface)
        self._undo.push_async_callback(self.kernel.close)
        await self.kernel.start(addresses_changed=self.peers.vteps.move)

    # Running.

    @property
    def is_open(self) -> bool:
        return self._started and self._closing is None

    @property
    def ready(self) -> bool:
        """Whether packets can pass: it is open, its device is up, and its tasks run."""
        return self.is_open and self.device_up and self.supervisor.healthy

    @property
    def device_up(self) -> bool:
        """Whether nobody has set its device down; so without one."""
        return not isinstance(self.device, Device) or self.device.is_up()

    @property
    def phase(self) -> str:
        """What it does now: ``not open``, ``opens``, ``waits for the store ...: why``, ``open``,
        ``closes`` or ``closed``."""
        if self._closing is not None:
            return "closed" if self._closed.is_set() else "closes"
        if self._loading and self.config_source is not None:
            return describe_wait(self.config_source.status())
        if self._opening and not self._started:
            return "opens"
        return "open" if self._started else "not open"

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
        """Those in use now; ``trains`` as long as any peer gets them."""
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
        self.peers.own(config.subnets)
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
        """While this is entered `capture` ends with the node. Raises StateError if it has."""
        self.check_open()
        self._captures.add(capture)
        try:
            yield
        finally:
            self._captures.discard(capture)

    def look_at_offloads(self) -> None:
        """Says once when one was turned off."""
        lost, self._offloads_seen = self._offloads_seen - self.offloads, self.offloads
        for offload in lost:
            self.events.emit(OffloadLost(offload))
        if lost:
            log.warning("%s: turned off at run time: %s", self.config.name, ", ".join(sorted(lost)))

    def _attend(self) -> None:
        """Something other than packets wants to be seen: an offload was lost, letters came."""
        self.peers.prober.attend()
        self.look_at_offloads()

    # Closing.

    async def close(self) -> None:
        """Undoes all that was made, once. Cancelled, it finishes first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._undo.aclose())
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    async def wait_closed(self) -> None:
        """Raises why, where it closed by itself."""
        await self._closed.wait()
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: OSError) -> None:
        """Closes, with the reason for who waits."""
        if self.failure is not None:
            return
        name, why = self.config.name, error.strerror
        if error.filename in self.device.queues:
            self.failure = DeviceError(f"device {name} is gone: {why}")
        else:
            self.failure = UnderlayError(f"the UDP socket of {name} failed: {why}")
        self.failure.__cause__ = error
        log.info("%s: closing: %s", self.config.name, self.failure)
        self._stop()
        self._closing = self._closing or self._loop.create_task(self._undo.aclose())

    def _stop(self) -> None:
        self.workers.close()
        self.peers.stop()
        for capture in tuple(self._captures):
            capture.close()
