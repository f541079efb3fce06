"""``tunnel status``: a running node and its peers at a glance, once or live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    RenderableType,
    RenderResult,
)
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunnel.cli import node
from tunnel.errors import TunnelError
from tunnel.rpc.client import Client, find

Status = Mapping[str, Any]
"""As the node tells it: the fields of :class:`tunnel.Status` by their names."""

_EVERY = 1.0  # seconds
_GAP = 2  # columns between two of a table
_STYLES = {"up": "green", "silent": "red", "unknown": "yellow"}


@click.command()
@click.option("--watch", is_flag=True, help="Go on, once a second, with rates, until Ctrl-C.")
@node.options
def status(watch: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Say how a running node is, and each of its peers.

    State, round trip and loss come from echoes through the data path, a few a minute and more
    while somebody looks. A peer that never answered one is unknown, which is all that can be
    said of a kernel vxlan device. A narrow terminal gets the more important columns.
    """
    if watch:
        with suppress(KeyboardInterrupt):
            asyncio.run(_watch(control or find(name), as_json=as_json))
        return
    now = node.ask("status", name=name, control=control)
    if as_json:
        node.print_json(now)
    else:
        node.console().print(view(now))


async def _watch(path: Path, *, as_json: bool) -> None:
    """With JSON, a line each time."""
    if as_json:
        async for now in _statuses(path):
            click.echo(json.dumps(now))
        return
    before: Status | None = None
    with Live(console=node.console(), auto_refresh=False) as live:
        async for now in _statuses(path):
            live.update(view(now, before=before), refresh=True)
            before = now


async def _statuses(path: Path) -> AsyncIterator[Status]:
    async with Client(path) as running:
        while True:
            try:
                yield await running.call("status")
            except TunnelError as error:
                # It was there: what the words asked for could be had, so this is no exit code 2.
                raise click.ClickException(str(error)) from error
            await asyncio.sleep(_EVERY)


def view(now: Status, *, before: Status | None = None) -> RenderableType:
    """What people see; with rates where an earlier status is given."""
    return Group(_head(now), Text(), _Peers(now, before=before))


def _head(now: Status) -> Table:
    mtu, workers = now["mtu"], now["workers"]
    lasted = node.duration(now["uptime"])
    device = f"{now['device']}{'' if now['device_up'] else ' (down)'}" if now["device"] else "none"
    facts = {
        now["name"]: f"vni {now['vni']}, mtu {mtu}, workers {workers}, up for {lasted}",
        "endpoint": ", ".join(now["endpoints"]),
        "device": f"{device}, mac {now['mac']}",
        "offloads": " ".join(now["offloads"]) or "none",
        "drops": ", ".join(f"{why} {n}" for why, n in now["drops"].items()) or "none",
    }
    if store := now.get("store"):
        facts |= _store(store)
    if failed := [task for task in now.get("tasks", ()) if not task["healthy"]]:
        facts["failed"] = "\n".join(f"{task['name']}: {task['why']}" for task in failed)
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for fact, value in facts.items():
        table.add_row(Text(fact), Text(value))
    return table


def _store(store: Mapping[str, Any]) -> dict[str, str]:
    lasted = node.duration(store["state_age"])
    facts = {"store": f"{store['address']}, away for {lasted}: {store['why']}"}
    if store["connected"]:
        facts["store"] = f"{store['address']} for {lasted}, revision {store['revision']}"
    remaining = store["lease_remaining"]
    left = "reserved" if remaining is None else f"{node.duration(remaining)} left"
    none = "none: looks for a subnet" if store["connected"] else "none: goes on with what it had"
    facts["lease"] = f"{store['key']}, {left}" if store["key"] else none
    if store["troubles"]:
        facts["trouble"] = "\n".join(store["troubles"])
    return facts


@dataclass(frozen=True)
class _Column:
    """The one of least `worth` goes first where there is no room."""

    title: str
    worth: int
    cell: Callable[[Mapping[str, Any]], str]
    justify: JustifyMethod = "right"


def _loss(peer: Mapping[str, Any]) -> str:
    return "-" if peer["loss"] is None else f"{100 * peer['loss']:.0f} %"


_COLUMNS = (
    _Column("peer", 99, lambda peer: peer["endpoint"], justify="left"),
    _Column("address", 20, lambda peer: peer["address"] or "unresolved", justify="left"),
    _Column("state", 98, lambda peer: peer["state"], justify="left"),
    _Column("for", 70, lambda peer: node.duration(peer["state_age"])),
    _Column("RTT", 90, lambda peer: node.trip(peer["rtt"])),
    _Column("loss", 80, _loss),
    _Column("path MTU", 50, lambda peer: str(peer["path_mtu"] or "-")),
    _Column("out", 60, lambda peer: decimal(peer["outbound"]["bytes"])),
    _Column("in", 59, lambda peer: decimal(peer["inbound"]["bytes"])),
    _Column("packets out", 30, lambda peer: str(peer["outbound"]["packets"])),
    _Column("packets in", 29, lambda peer: str(peer["inbound"]["packets"])),
    _Column("last drop", 40, lambda peer: peer["last_drop"] or "-", justify="left"),
)

_RATES = (
    _Column("out/s", 89, lambda peer: decimal(peer["out_rate"])),
    _Column("in/s", 88, lambda peer: decimal(peer["in_rate"])),
)


class _Peers:
    """A line for each peer, of as many columns as there is room for: nothing wraps."""

    def __init__(self, now: Status, *, before: Status | None) -> None:
        self._peers: list[Mapping[str, Any]] = now["peers"]
        self._columns: tuple[_Column, ...] = _COLUMNS
        if before is not None:
            self._peers = _with_rates(now, before)
            self._columns = (*_COLUMNS[:5], *_RATES, *_COLUMNS[5:])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._peers:
            yield Text("no peers")
            return
        cells = {one: [one.cell(peer) for peer in self._peers] for one in self._columns}
        widths = {one: max(map(cell_len, [one.title, *cells[one]])) for one in self._columns}
        while len(widths) > 1 and sum(widths.values()) + _GAP * len(widths) > options.max_width:
            del widths[min(widths, key=lambda one: one.worth)]
        table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
        for one in widths:
            table.add_column(one.title, justify=one.justify, no_wrap=True)
        for row in zip(*(cells[one] for one in widths), strict=True):
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        yield table


def _with_rates(now: Status, before: Status) -> list[Mapping[str, Any]]:
    """Peers with the bytes a second that went each way since the status before."""
    earlier = {peer["endpoint"]: peer for peer in before["peers"]}
    seconds: float = max(now["uptime"] - before["uptime"], 1e-3)

    def rate(peer: Mapping[str, Any], way: str) -> int:
        # A peer that went and came again in between counts from nothing.
        past = earlier.get(peer["endpoint"], peer)
        gained: int = peer[way]["bytes"] - past[way]["bytes"]
        return max(0, round(gained / seconds))

    return [
        {**peer, "out_rate": rate(peer, "outbound"), "in_rate": rate(peer, "inbound")}
        for peer in now["peers"]
    ]
