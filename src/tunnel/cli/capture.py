"""``tunnel capture``: packets as they pass a node, for Wireshark or one line each."""

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
from tunnel.diagnostics.capture import Capture, capture_node
from tunnel.diagnostics.packet_summary import summarize
from tunnel.errors import ConfigError, DeviceError
from tunnel.rpc.codec import decode
from tunnel.status import Status


@click.command()
@click.option(
    "-w", "--write", metavar="FILE|-", help="Write pcapng, to a file or to standard output."
)
@click.option(
    "--inner/--outer",
    "inner",
    default=True,
    help="Capture inner packets on the tunnel's device (default), or the datagrams that carry "
    "them on the interfaces that lead to peers.",
)
@click.option(
    "-c", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after N packets."
)
@node_options
@click.argument("expression", nargs=-1, metavar="[FILTER]...")
def capture(  # noqa: PLR0917 - click names them
    expression: tuple[str, ...],
    write: str | None,
    inner: bool,
    count: int | None,
    name: str | None,
    control: Path | None,
    as_json: bool,
) -> None:
    """
    Show packets as they pass a running node, until Ctrl-C.

    FILTER is an expression in tcpdump's language (pcap-filter(7)). Packets that the kernel moves
    together are shown as one of up to 64 KiB; "tunnel decode" splits such trains. Needs
    CAP_NET_RAW, and must run in the network namespace of the node.

    \b
      tunnel capture icmp
      tunnel capture --outer -w - | wireshark -k -i -
    """
    if write and as_json:
        raise click.UsageError("--write and --json exclude each other: a file is pcapng")
    if write == "-" and sys.stdout.isatty():
        raise click.UsageError("-w - writes binary data to a terminal (pipe it, or use -w FILE)")
    status = decode(Status, request("status", name=name, control=control))
    text = " ".join(expression)
    asyncio.run(_run(status, text, inner=inner, write=write, count=count, as_json=as_json))


async def _run(
    status: Status,
    text: str,
    *,
    inner: bool,
    write: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    opened = await capture_node(status, outer=not inner, text=text)
    with opened as packets, _open(write) as file:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, packets.close)
        names = ", ".join(interface.name for interface in packets.interfaces)
        click.echo(f"capturing on {names} (stop with Ctrl-C)", err=True)
        try:
            if file is None:
                captured = await _print_packets(packets, count, as_json=as_json)
            else:
                captured = await _write_packets(packets, count, file, text=text)
        except BrokenPipeError:
            # The reader has ended. Python must not report that again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except DeviceError as error:
            raise click.ClickException(str(error)) from error
        dropped = sum(dropped for _, dropped in packets.counts)
    noun = "packet" if captured == 1 else "packets"
    click.echo(f"{captured} {noun} captured, {dropped} dropped by the kernel", err=True)


def _open(target: str | None) -> AbstractContextManager[BinaryIO | None]:
    if target is None:
        return nullcontext()
    if target == "-":
        return open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        return open(target, "wb")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {(error.strerror or '').lower()}") from error


async def _write_packets(packets: Capture, count: int | None, file: BinaryIO, *, text: str) -> int:
    """Flushes when no packet waits, so that a reader sees each packet when it arrives."""
    numbers = {interface: number for number, interface in enumerate(packets.interfaces)}
    file.write(pcapng.header(f"tunnel {version('tunnel')}"))
    for interface in packets.interfaces:
        file.write(pcapng.interface(interface, filtered=text))
    file.flush()

    def write(packet: Packet) -> None:
        file.write(pcapng.packet(numbers[packet.interface], packet))
        if not packets.pending:
            file.flush()

    captured = await _for_each(packets, count, write)
    now = time.time_ns()
    for number, (received, dropped) in enumerate(packets.counts):
        file.write(pcapng.statistics(number, time=now, received=received, dropped=dropped))
    file.flush()
    return captured


async def _print_packets(packets: Capture, count: int | None, *, as_json: bool) -> int:
    def show(packet: Packet) -> None:
        print(_as_json(packet) if as_json else _as_line(packet), flush=not packets.pending)

    return await _for_each(packets, count, show)


async def _for_each(packets: Capture, count: int | None, show: Callable[[Packet], None]) -> int:
    """Returns the number of packets shown, at most `count`."""
    shown = 0
    async for packet in packets:
        show(packet)
        shown += 1
        if shown == count:
            break
    return shown


def _as_line(packet: Packet) -> str:
    seconds, rest = divmod(packet.time, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    direction = "out" if packet.outbound else "in "
    return f"{clock}.{rest // 1000:06} {packet.interface.name} {direction} {summarize(packet)}"


def _as_json(packet: Packet) -> str:
    return json.dumps(
        {
            "time": packet.time / 1e9,
            "interface": packet.interface.name,
            "direction": "outbound" if packet.outbound else "inbound",
            "length": len(packet.data),
            "summary": summarize(packet),
            "data": packet.data.hex(),
        }
    )
