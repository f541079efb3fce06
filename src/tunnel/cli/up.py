"""
``tunnel up``: one node in the foreground.

    options  ->  configuration  ->  node, control socket, metrics  ->  until a signal or a failure
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import uvloop

from tunnel import Tunnel
from tunnel.cli.options import command_option, option_groups
from tunnel.cluster.member import Cluster
from tunnel.config.cluster import ClusterConfig
from tunnel.config.merged import MergedOptions
from tunnel.config.node import Config
from tunnel.errors import ConfigError, TunnelError
from tunnel.linux.systemd import notifications
from tunnel.rpc.server import Service

log = logging.getLogger(__name__)

Server = Callable[[Tunnel], AbstractAsyncContextManager[object]]
"""Makes a context that serves a tunnel while it is entered."""


def _load_metrics(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> Server | None:
    """Imports the metrics server, and the library that it needs, only if the option is given."""
    if text is None:
        return None
    from tunnel.metrics import MetricsServer, Place  # noqa: PLC0415

    return partial(MetricsServer, place=Place.parse(text))


@click.command()
@option_groups("node", "frames", "containers", "store", "cluster")
@command_option("control")
@command_option("metrics", callback=_load_metrics)
@command_option("user")
@command_option("config", type=click.Path(readable=False, path_type=Path))
@command_option("verbose", "-v")
def up(
    config: Path | None,
    control: str | None,
    metrics: Server | None,
    user: str | None,
    verbose: int,
    **flags: object,
) -> None:
    """
    Join this host to an overlay, until SIGTERM or Ctrl-C.

    Creates a TUN or TAP device, sends what the kernel routes into it to the peer that owns the
    destination, and removes everything it has created when it ends. Needs CAP_NET_ADMIN, and
    drops all other privileges when the device is open; started by root, it then runs as nobody.
    With --config, SIGHUP reloads the file.

    \b
    On 192.0.2.1:
      tunnel up --subnet 10.244.1.0/24 --peer 192.0.2.2=10.244.2.0/24
    On 192.0.2.2:
      tunnel up --subnet 10.244.2.0/24 --peer 192.0.2.1=10.244.1.0/24
    On any number of hosts, after "tunnel network init":
      tunnel up --etcd-endpoints http://192.0.2.9:2379

    Each option can be set by an environment variable, such as TUNNEL_VNI or TUNNEL_SOURCE_PORTS;
    several values in one variable are separated by spaces. The options that flannel has as well
    are also read from its variables, such as FLANNELD_ETCD_ENDPOINTS.
    """
    _set_up_logging(verbose)
    options = MergedOptions.from_click(config, flags)
    run = _Run(options.read(), options, control=control, metrics=metrics, user=user)
    with asyncio.Runner(loop_factory=run.loop_factory) as runner:
        runner.run(_run_until_signal(run))


def _set_up_logging(verbose: int) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.getLogger("tunnel").setLevel(level)


@dataclass(frozen=True)
class _Run:
    """The configuration of one run of the command."""

    config: Config | ClusterConfig
    options: MergedOptions
    control: str | None
    metrics: Server | None
    user: str | None

    @property
    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        node = self.config.node if isinstance(self.config, ClusterConfig) else self.config
        return uvloop.new_event_loop if node.loop == "uvloop" else asyncio.new_event_loop

    def create(self) -> tuple[Tunnel | Cluster, Tunnel]:
        """Returns the object to enter, and its tunnel."""
        if isinstance(self.config, ClusterConfig):
            cluster = Cluster(self.config, confined=True, user=self.user)
            return cluster, cluster.tunnel
        tunnel = Tunnel(self.config, confined=True, user=self.user)
        return tunnel, tunnel


async def _run_until_signal(run: _Run) -> None:
    """Runs a node until SIGTERM, SIGINT or ``tunnel down``; each closes it, also during start."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    waiting = asyncio.create_task(stopped.wait())
    running = asyncio.create_task(_run_node(run, stop=stopped.set))
    await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    # Cancelled once, however often Ctrl-C is pressed: nothing interrupts the removal.
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def _run_node(run: _Run, *, stop: Callable[[], None]) -> None:
    """Opens a node, its control socket and its metrics, and waits until the node closes."""
    async with AsyncExitStack() as stack:
        # With the privileges of the user that started it.
        notify = stack.enter_context(notifications())
        with run.options.locate_faults():
            node, tunnel = run.create()
        reload = partial(_reload, run.options, node) if run.options.path else None
        metrics = run.metrics(tunnel) if run.metrics else None
        control_error: TunnelError | None = None
        if run.control != "none":
            service = Service(tunnel, path=run.control, reload=reload, down=stop)
            stack.callback(service.remove)
            control_error = _listen(service, run)
            if control_error is None:
                await stack.enter_async_context(service)  # it answers while the node opens

        with run.options.locate_faults():
            await stack.enter_async_context(node)

        # With CAP_NET_ADMIN only, perhaps as another user.
        if control_error is not None:
            log.warning("%s", control_error)
        if run.options.path is not None and reload is not None:
            _warn_if_unreadable(run.options.path)
            _reload_on_sighup(tunnel, reload)
        if metrics is not None:
            await stack.enter_async_context(metrics)
        await _report_until_closed(tunnel, notify=notify)


def _listen(service: Service, run: _Run) -> TunnelError | None:
    """Opens the control socket, or returns why it cannot. A node runs without one unless its path
    was given."""
    try:
        service.listen()
    except TunnelError as error:
        if run.control is not None:
            raise
        return error
    service.hand_over(run.user)
    return None


async def _report_until_closed(tunnel: Tunnel, *, notify: Callable[[str], None]) -> None:
    """Prints and notifies the start and the end of a tunnel that is open."""
    print(tunnel.describe(), flush=True)
    notify("READY=1")
    try:
        await tunnel.wait_closed()
    except TunnelError as error:
        # Exit code 1: the tunnel did start, so its options were not at fault.
        raise click.ClickException(str(error)) from error
    finally:
        notify("STOPPING=1")
        drops = " ".join(f"{reason}={n}" for reason, n in tunnel.stats.drops.items())
        print(f"drops: {drops or 'none'}", flush=True)


# Reloading.


async def _reload(options: MergedOptions, node: Tunnel | Cluster) -> None:
    """Reads the options again and applies them to a running node. Raises what its own reload
    raises."""
    with options.locate_faults():
        match node, options.read():
            case Tunnel(), Config() as config:
                await node.reload(config)
            case Cluster(), ClusterConfig() as config:
                await node.reload(config)
            case _:
                raise ConfigError(
                    "a node cannot join or leave a cluster while it runs (restart it)"
                )
    log.info("%s: reloaded", options.path)


def _warn_if_unreadable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        log.warning(
            "%s cannot be reloaded: uid %d, as which this node runs, may not read it (change its "
            "mode or that of its directory, or choose another --user)",
            path,
            os.getuid(),
        )


def _reload_on_sighup(tunnel: Tunnel, reload: Callable[[], Awaitable[None]]) -> None:
    """Reloads on each SIGHUP. A failure is logged: a signal has no answer."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def attempt() -> None:
        try:
            await reload()
        except TunnelError as error:
            log.error("%s: not reloaded: %s", tunnel.config.name, error)

    def start() -> None:
        task = loop.create_task(attempt())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, start)
