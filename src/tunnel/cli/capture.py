"""``tunnel capture``: packets as they pass a node, for Wireshark or as a line each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import click

from tunnel.cli.control import node_options, request
from tunnel.diagnostics import Packet, pcapng
from tunnel.diagnostics import capture as captures
from tunnel.diagnostics.capture import Capture
from tunnel.errors import ConfigError, DeviceError
from tunnel.rpc.client import read_status
from tunnel.status import Status

Show = Callable[[Packet], None]


@click.command()
@click.option(
    "-w", "--write", metavar="FILE|-", help="Write pcapng, to a file or to standard output."
)
@click.option(
    "--inner/--outer",
    "inner",
    default=True,
    help="What is in the tunnel, on its device (default); or the datagrams that carry it, on the "
    "interfaces that lead to peers.",
)
@click.option(
    "-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after so many packets."
)
@node_options
@click.argument("words", nargs=-1, metavar="[FILTER]...")
def capture(  # noqa: PLR0917 - click names them
    words: tuple[str, ...],
    write: str | None,
    inner: bool,
    count: int | None,
    name: str | None,
    control: Path | None,
    as_json: bool,
) -> None:
    """
    Show packets as they pass a running node, until Ctrl-C.

    FILTER is tcpdump's language (pcap-filter(7)). Packets that the kernel moves together come
    whole, as one of up to 64 KiB; "tunnel decode" takes trains apart. Needs CAP_NET_RAW, in the
    network namespace of the node.

    \b
      tunnel capture icmp
      tunnel capture --outer -w - | wireshark -k -i -
    """
    if write and as_json:
        raise click.UsageError("--write and --json exclude each other: a file is pcapng")
    if write == "-" and sys.stdout.isatty():
        raise click.UsageError("-w - to a terminal: pcapng is for programs (pipe it, or -w FILE)")
    status = read_status(request("status", name=name, control=control))
    asyncio.run(
        _run(status, " ".join(words), inner=inner, write=write, count=count, as_json=as_json)
    )


async def _run(
    status: Status,
    text: str,
    *,
    inner: bool,
    write: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    prepared = await captures.of(status, outer=not inner, text=text)
    with prepared as packets, _open(write) as out:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, packets.close)
        names = ", ".join(interface.name for interface in packets.interfaces)
        click.echo(f"capturing on {names} (Ctrl-C ends it)", err=True)
        try:
            if out is None:
                shown = await _show(packets, count, as_json=as_json)
            else:
                shown = await _write(packets, count, out, text=text)
        except BrokenPipeError:
            # Whoever read this has had enough; Python shall not say so once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except DeviceError as error:
            raise click.ClickException(str(error)) from error
        dropped = sum(dropped for _, dropped in packets.counts)
    counted = f"{shown} packet{'' if shown == 1 else 's'}"
    click.echo(f"{counted} captured, {dropped} dropped by the kernel", err=True)


def _open(target: str | None) -> AbstractContextManager[BinaryIO | None]:
    if target is None:
        return nullcontext()
    if target == "-":
        return open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        return open(target, "wb")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {(error.strerror or '').lower()}") from error


async def _write(packets: Capture, count: int | None, out: BinaryIO, *, text: str) -> int:
    """Flushed whenever no packet waits, so that who reads along sees each as it comes."""
    numbers = {interface: number for number, interface in enumerate(packets.interfaces)}
    out.write(pcapng.header(f"tunnel {version('tunnel')}"))
    for one in packets.interfaces:
        out.write(pcapng.interface(one, filtered=text))
    out.flush()

    def write(one: Packet) -> None:
        out.write(pcapng.packet(numbers[one.interface], one))
        if not packets.pending:
            out.flush()

    shown = await _each(packets, count, write)
    now = time.time_ns()
    for number, (received, dropped) in enumerate(packets.counts):
        out.write(pcapng.statistics(number, time=now, received=received, dropped=dropped))
    out.flush()
    return shown


async def _show(packets: Capture, count: int | None, *, as_json: bool) -> int:
    def show(one: Packet) -> None:
        print(_as_json(one) if as_json else _as_line(one), flush=not packets.pending)

    return await _each(packets, count, show)


async def _each(packets: Capture, count: int | None, show: Show) -> int:
    shown = 0
    async for one in packets:
        show(one)
        shown += 1
        if shown == count:
            break
    return shown


def _as_line(packet: Packet) -> str:
    seconds, rest = divmod(packet.time, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    way = "out" if packet.outbound else "in "
    return f"{clock}.{rest // 1000:06} {packet.interface.name} {way} {captures.describe(packet)}"


def _as_json(packet: Packet) -> str:
    return json.dumps(
        {
            "time": packet.time / 1e9,
            "interface": packet.interface.name,
            "direction": "outbound" if packet.outbound else "inbound",
            "length": len(packet.data),
            "summary": captures.describe(packet),
            "data": packet.data.hex(),
        }
    )
