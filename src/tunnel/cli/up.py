"""``tunnel up``: one node in the foreground, from the words to the last route removed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import uvloop

from tunnel import Tunnel
from tunnel.cli.cluster import cluster_options
from tunnel.cluster.member import Cluster
from tunnel.config.cluster import ClusterConfig, read_config
from tunnel.config.node import Config
from tunnel.config.tomlfile import ConfigFile
from tunnel.errors import ConfigError, TunnelError
from tunnel.linux.systemd import notifications
from tunnel.rpc.server import Service

log = logging.getLogger(__name__)

Serving = Callable[[Tunnel], AbstractAsyncContextManager[object]]
"""What serves a tunnel while it is entered."""


def _load_metrics(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> Serving | None:
    """What serves metrics there; its library is loaded only where they are wanted."""
    if text is None:
        return None
    from tunnel.metrics import MetricsServer, Place  # noqa: PLC0415

    return partial(MetricsServer, place=Place.parse(text))


# Values stay as loose as they are written: words.py knows what they mean, and says what is
# wrong with one in the same words for flag, environment, file and library.
@click.command(context_settings={"auto_envvar_prefix": "TUNNEL"})
@click.option("--name", help='The device\'s name, at most 15 bytes.  [default: "tunnel<VNI>"]')
@click.option("--vni", type=int, metavar="N", help="Which overlay, 0 to 16777215.  [default: 1]")
@click.option(
    "--local",
    metavar="ADDR",
    help="Underlay address of this node.  [default: the one that the route to the first peer uses]",
)
@click.option("--port", type=int, metavar="N", help="UDP port of this node.  [default: 8472]")
@click.option(
    "--subnet",
    multiple=True,
    metavar="PREFIX",
    help="What lives behind this node; may be given many times.",
)
@click.option(
    "--address",
    multiple=True,
    metavar="ADDR/LEN",
    help="Address of the device; may be given many times.  [default: each subnet's first, with "
    "/32 or /128]",
)
@click.option(
    "--mtu",
    type=int,
    metavar="N",
    help="MTU of the device.  [default: the underlay route's, minus 50 for IPv4 or 70 for IPv6]",
)
@click.option(
    "--mac",
    metavar="MAC",
    help="This node's VTEP MAC.  [default: made from VNI, local address and port]",
)
@click.option(
    "--peer",
    multiple=True,
    metavar="ENDPOINT=PREFIX[,PREFIX...][,mac=MAC]",
    help="Another node and what lives behind it; may be given many times. ENDPOINT is an address "
    "or name, with :PORT unless that is 8472, IPv6 in brackets. Without mac= it is asked for that.",
)
@click.option(
    "--mode",
    metavar="tun|tap",
    help="Move packets by their routes, or Ethernet frames by their MACs.  [default: tun]",
)
@click.option(
    "--flood/--no-flood",
    default=None,
    help="With --mode tap: send to every peer what is for all, or for a MAC that nobody is known "
    "for.  [default: flood]",
)
@click.option(
    "--learning/--no-learning",
    default=None,
    help="With --mode tap: learn from frames behind which peer a MAC is.  [default: learning]",
)
@click.option(
    "--ageing",
    type=int,
    metavar="SECONDS",
    help="With --mode tap: forget what was learned and not seen since.  [default: 300]",
)
@click.option(
    "--storm-limit",
    type=int,
    metavar="FRAMES",
    help="With --mode tap: most flooded frames a second to each peer and from each, 0 for any "
    "number.  [default: 2000]",
)
@click.option(
    "--offload",
    metavar="auto|none|LIST",
    help="Which to use, out of tso,uso,trains,gro.  [default: auto, all that work]",
)
@click.option("--loop", metavar="uvloop|asyncio", help="The event loop.  [default: uvloop]")
@click.option(
    "--source-ports",
    type=int,
    metavar="N",
    help="Spread flows over this many UDP source ports, 1 to 64; 1 sends from --port alone, for "
    "NAT.  [default: 8]",
)
@click.option(
    "--workers",
    metavar="auto|N",
    help="Move packets in so many threads, each with a queue of the device and a socket; 1 leaves "
    "it to the event loop.  [default: auto, one for each CPU up to 4]",
)
@click.option(
    "--network",
    multiple=True,
    metavar="PREFIX",
    help="The whole overlay's prefix, one of each family, for the two below.",
)
@click.option(
    "--subnet-file",
    is_flag=False,
    flag_value="/run/flannel/subnet.env",
    envvar=["TUNNEL_SUBNET_FILE", "FLANNELD_SUBNET_FILE"],
    metavar="[PATH]",
    help="Write subnet.env as flannel does, for its CNI plugin and Docker.  [PATH, if left out: "
    "/run/flannel/subnet.env]",
)
@click.option(
    "--ip-masq",
    is_flag=True,
    default=None,
    envvar=["TUNNEL_IP_MASQ", "FLANNELD_IP_MASQ"],
    help="Masquerade what containers send out of the overlay; needs nftables.",
)
@cluster_options
@click.option(
    "--control",
    metavar="PATH|none",
    help="Where other verbs reach this node.  [default: NAME.sock in /run/tunnel or "
    "$XDG_RUNTIME_DIR/tunnel]",
)
@click.option(
    "--metrics",
    metavar="ADDR:PORT",
    callback=_load_metrics,
    help="Serve Prometheus metrics, /healthz and /readyz there, over HTTP.",
)
@click.option(
    "--user",
    metavar="NAME",
    help="Run on as this user, once the device is there.  [default: nobody if root started it]",
)
@click.option(
    "--config",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help='TOML with the same words; flags override it. See "tunnel config check".',
)
@click.option("-v", "--verbose", count=True, help="Log what happens (-vv: more) to stderr.")
def up(
    config: Path | None,
    control: str | None,
    metrics: Serving | None,
    user: str | None,
    verbose: int,
    **flags: object,
) -> None:
    """
    Join this host to an overlay, until SIGTERM or Ctrl-C.

    Makes a TUN or TAP device, sends what the kernel routes into it to the peer that owns the
    destination, and removes all it made when it ends. Needs CAP_NET_ADMIN, which is all that it
    keeps of the privileges it was started with; root becomes nobody. With --config, SIGHUP has it
    read the file again.

    \b
    On 192.0.2.1:
      tunnel up --subnet 10.244.1.0/24 --peer 192.0.2.2=10.244.2.0/24
    On 192.0.2.2:
      tunnel up --subnet 10.244.2.0/24 --peer 192.0.2.1=10.244.1.0/24
    On any number of hosts, after "tunnel network init":
      tunnel up --etcd-endpoints http://192.0.2.9:2379

    Each option is also an environment variable: TUNNEL_VNI, TUNNEL_SOURCE_PORTS ...; many
    values in one are separated by spaces. Those that flannel has as well are read from its
    FLANNELD_ETCD_ENDPOINTS ..., too.
    """
    _log(verbose)
    given = {
        name.replace("_", "-"): value for name, value in flags.items() if value not in (None, ())
    }
    words = Words(config, given)
    made = words.read()
    node = made.node if isinstance(made, ClusterConfig) else made
    new_loop = uvloop.new_event_loop if node.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_until_stopped(made, words=words, control=control, metrics=metrics, user=user))


def _log(verbose: int) -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.getLogger("tunnel").setLevel(level)


@dataclass(frozen=True)
class Words:
    """What a node was told: its file's words under those of the flags."""

    path: Path | None
    flags: dict[str, object]

    def read(self) -> Config | ClusterConfig:
        """Raises ConfigError, with the file's line where the word stands there."""
        words = ConfigFile.read(self.path).words if self.path else {}
        with self.placing():
            return read_config({**words, **self.flags})

    async def reload(self, node: Tunnel | Cluster) -> None:
        """Reads them again, for a node that runs. Raises what its own reload does."""
        with self.placing():
            match node, self.read():
                case Tunnel(), Config() as config:
                    await node.reload(config)
                case Cluster(), ClusterConfig() as config:
                    await node.reload(config)
                case _:
                    raise ConfigError("where peers are from cannot change (restart it)")
        log.info("%s was read again", self.path)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Adds the file's line to a ConfigError, where the word that is wrong stands there."""
        try:
            yield
        except ConfigError as error:
            if self.path is None or not error.key or error.key[0] in self.flags:
                raise
            file = ConfigFile.read(self.path)
            if error.key[0] not in file.words:
                raise
            raise ConfigError(file.describe(error)) from None


async def _until_stopped(
    config: Config | ClusterConfig,
    *,
    words: Words,
    control: str | None,
    metrics: Serving | None,
    user: str | None,
) -> None:
    """Runs a tunnel until SIGTERM, SIGINT or "tunnel down"; during start-up as well, these end it
    cleanly."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    waiting = asyncio.create_task(stopped.wait())
    running = asyncio.create_task(
        _run(config, words=words, control=control, metrics=metrics, user=user, down=stopped.set)
    )
    await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    # Cancelled once, however often Ctrl-C is pressed: nothing interrupts the cleaning up.
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def _run(
    config: Config | ClusterConfig,
    *,
    words: Words,
    control: str | None,
    metrics: Serving | None,
    user: str | None,
    down: Callable[[], None],
) -> None:
    async with AsyncExitStack() as stack:
        notify = stack.enter_context(notifications())
        with words.placing():
            node, tunnel = _make(config, user=user)
        reload = partial(words.reload, node) if words.path else None
        # These take their places now, while we still may.
        served: list[AbstractAsyncContextManager[object]] = [metrics(tunnel)] if metrics else []
        if control != "none":
            service = Service(tunnel, path=control, reload=reload, down=down)
            stack.callback(service.remove)
            served.append(_control(service, user=user, needed=control is not None))
        with words.placing():
            await stack.enter_async_context(node)
        if words.path is not None and reload is not None:
            _check_readable(words.path)
            _reload_on_hangup(tunnel, reload)
        for one in served:
            await stack.enter_async_context(one)
        print(tunnel.describe(), flush=True)
        notify("READY=1")
        try:
            await tunnel.wait_closed()
        except TunnelError as error:
            # It ran: what the words asked for could be had, so this is no exit code 2.
            raise click.ClickException(str(error)) from error
        finally:
            notify("STOPPING=1")
            drops = " ".join(f"{reason}={n}" for reason, n in tunnel.stats.drops.items())
            print(f"drops: {drops or 'none'}", flush=True)


def _make(config: Config | ClusterConfig, *, user: str | None) -> tuple[Tunnel | Cluster, Tunnel]:
    """What is entered, and the tunnel that is open then."""
    if isinstance(config, ClusterConfig):
        cluster = Cluster(config, confined=True, user=user)
        return cluster, cluster.tunnel
    tunnel = Tunnel.from_config(config, confined=True, user=user)
    return tunnel, tunnel


def _control(
    service: Service, *, user: str | None, needed: bool
) -> AbstractAsyncContextManager[object]:
    """An overlay without a control socket is better than none, unless that was asked for."""
    try:
        service.listen()
    except TunnelError as error:
        if needed:
            raise
        return _complaint(error)
    service.hand_over(user)
    return service


@asynccontextmanager
async def _complaint(error: TunnelError) -> AsyncIterator[None]:
    """Not heard before there is a tunnel, whose failure would say more."""
    log.warning("%s", error)
    yield


def _check_readable(path: Path) -> None:
    """Who we are now may not be who could read it at the start."""
    if not os.access(path, os.R_OK):
        log.warning(
            "%s cannot be read again: uid %d, which this node runs on as, may not (change its mode "
            "or that of its directory, or choose another --user)",
            path,
            os.getuid(),
        )


def _reload_on_hangup(tunnel: Tunnel, reload: Callable[[], Awaitable[None]]) -> None:
    """Whoever sends SIGHUP gets no answer, so what went wrong is logged."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    async def attempt() -> None:
        try:
            await reload()
        except TunnelError as error:
            log.error("%s: not reloaded: %s", tunnel.config.name, error)

    def hang_up() -> None:
        task = loop.create_task(attempt())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
