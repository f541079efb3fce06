"""The view of a status: rows about the node, then a table of its peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from rich.table import Table
from rich.text import Text

from tunnel.cli import output

Status = Mapping[str, Any]
"""A status as JSON values: the fields of :class:`tunnel.status.Status` by name."""

_GAP = 2  # columns between two columns of a table
_STYLES = {"up": "green", "silent": "red", "unknown": "yellow"}


def view(now: Status, *, before: Status | None = None) -> RenderableType:
    """Returns the view of `now`, with rates if there is an earlier status."""
    if now.get("phase", "open") in ("open", "closes", "closed"):
        return Group(_grid(_node_rows(now)), Text(), _Peers(now, before=before))
    return _grid({now["name"]: now["phase"], **_process(now)})


def _grid(rows: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0))
    for label, value in rows.items():
        table.add_row(Text(label), Text(value))
    return table


def _node_rows(now: Status) -> dict[str, str]:
    mtu, workers = now["mtu"], now["workers"]
    since = output.duration(now["uptime"])
    device = f"{now['device']}{'' if now['device_up'] else ' (down)'}" if now["device"] else "none"
    rows = {
        now["name"]: f"vni {now['vni']}, mtu {mtu}, workers {workers}, up for {since}",
        "endpoint": ", ".join(now["endpoints"]),
        "device": f"{device}, mac {now['mac']}",
        **_process(now),
        "offloads": " ".join(now["offloads"]) or "none",
        "drops": ", ".join(f"{reason} {n}" for reason, n in now["drops"].items()) or "none",
    }
    if store := now.get("store"):
        rows |= _store(store)
    if failed := [task for task in now.get("tasks", ()) if not task["healthy"]]:
        rows["failed"] = "\n".join(f"{task['name']}: {task['why']}" for task in failed)
    return rows


def _process(now: Status) -> dict[str, str]:
    if not now.get("pid"):  # an older node
        return {}
    return {"process": f"{now['pid']}, network namespace {now['netns']}"}


def _store(store: Mapping[str, Any]) -> dict[str, str]:
    since = output.duration(store["state_age"])
    rows = {"store": f"{store['address']}, unavailable for {since}: {store['why']}"}
    if store["connected"]:
        rows["store"] = f"{store['address']} for {since}, revision {store['revision']}"
    remaining = store["lease_remaining"]
    left = "reserved" if remaining is None else f"{output.duration(remaining)} left"
    none = "none: acquires a subnet" if store["connected"] else "none: keeps the last known subnet"
    rows["lease"] = f"{store['key']}, {left}" if store["key"] else none
    if store["troubles"]:
        rows["trouble"] = "\n".join(store["troubles"])
    return rows


@dataclass(frozen=True)
class _Column:
    """The column of least `priority` is omitted first if the terminal is narrow."""

    title: str
    priority: int
    cell: Callable[[Mapping[str, Any]], str]
    justify: JustifyMethod = "right"


def _loss(peer: Mapping[str, Any]) -> str:
    return "-" if peer["loss"] is None else f"{100 * peer['loss']:.0f} %"


_COLUMNS = (
    _Column("peer", 99, lambda peer: peer["endpoint"], justify="left"),
    _Column("address", 20, lambda peer: peer["address"] or "unresolved", justify="left"),
    _Column("state", 98, lambda peer: peer["state"], justify="left"),
    _Column("for", 70, lambda peer: output.duration(peer["state_age"])),
    _Column("RTT", 90, lambda peer: output.round_trip(peer["rtt"])),
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
    """One line a peer, with as many columns as fit: nothing wraps."""

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
            del widths[min(widths, key=lambda one: one.priority)]
        table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
        for one in widths:
            table.add_column(one.title, justify=one.justify, no_wrap=True)
        for row in zip(*(cells[one] for one in widths), strict=True):
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        yield table


def _with_rates(now: Status, before: Status) -> list[Mapping[str, Any]]:
    """Returns the peers with ``out_rate`` and ``in_rate``, in bytes a second since `before`."""
    earlier = {peer["endpoint"]: peer for peer in before["peers"]}
    seconds: float = max(now["uptime"] - before["uptime"], 1e-3)

    def rate(peer: Mapping[str, Any], direction: str) -> int:
        # The counters of a peer that was removed and added again started at 0.
        past = earlier.get(peer["endpoint"], peer)
        gained: int = peer[direction]["bytes"] - past[direction]["bytes"]
        return max(0, round(gained / seconds))

    return [
        {**peer, "out_rate": rate(peer, "outbound"), "in_rate": rate(peer, "inbound")}
        for peer in now["peers"]
    ]
