"""
Makes the README's table, and docs/benchmarks.md with its plots, from the results.

    python -m benchmarks.report
"""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import CONTESTANTS
from benchmarks.rounds import BASELINE, Results, median, ratio
from benchmarks.tables import Cell, Rows, short, text
from tunnel.testing import bench

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

COLUMNS = ("tcp1", "tcp1_back", "tcp4", "tcp4_back", "udp64", "rr_p50", "rr_p99", "ping", "cpu1")
"""Columns of the README; docs/benchmarks.md has all."""

PLOTS = ("tcp1", "tcp4", "udp64", "rr_p50")

BAR, ROW, LEFT = 420, 22, 180
WIDE, HIGH, EDGE, KEY = 420, 240, 56, 180
"""Pixels: of a plot with bars, and of a plot with lines and their key."""

COLOURS = ("#2a6fbb", "#d1642a", "#3c9a5f", "#8a5fb0")


def print_rows(results: Results) -> None:
    """Prints one row for each contestant: medians, and ratios to the kernel's vxlan."""
    keys = [key for key in COLUMNS if any(key in samples for samples in results.values())]
    table = Table("")
    for key in keys:
        table.add_column(bench.UNITS[key], justify="right")
    for row in rows(results, keys):
        table.add_row(*row)
    Console(highlight=False, width=160).print(table)


def rows(results: Results, keys: Sequence[str]) -> list[list[str]]:
    return [
        [CONTESTANTS[name].name, *(cell(results, name, key) for key in keys)] for name in results
    ]


def cell(results: Results, name: str, key: str) -> str:
    middle = median(results, name, key)
    if middle is None:
        return "-"
    times = ratio(results, name, key)
    if times is None or name == BASELINE:
        return short(middle)
    return f"{short(middle)} ({times:.2f})"


def markdown(results: Results, keys: Sequence[str]) -> str:
    head = ["", *(bench.UNITS[key] for key in keys)]
    return grid([head, *rows(results, keys)])


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown; the first line is its head."""
    head, *rest = lines
    ruler = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *rest))


def passport_line(result: Mapping[str, Any]) -> str:
    known = result["passport"]
    words = (known[word] for word in ("date", "commit", "machine", "kernel"))
    return f"{', '.join(words)}; `{known['command']}`. In brackets: ratio to the kernel's vxlan."


def bars(results: Results, key: str) -> str:
    """Returns an SVG of medians as bars, with minimum and maximum as a line."""
    shown = [name for name in results if key in results[name]]
    scale = BAR / max(max(results[name][key]) for name in shown)
    height = ROW * (len(shown) + 1)
    parts = []
    for i, name in enumerate(shown, start=1):
        values, top = results[name][key], i * ROW
        middle = (median(results, name, key) or 0) * scale
        least, most = min(values) * scale, max(values) * scale
        colour = "#2a6fbb" if CONTESTANTS[name].name.startswith("tunnel") else "#b0b8c0"
        parts += [
            f'<text x="4" y="{top + 15}">{CONTESTANTS[name].name}</text>',
            f'<rect x="{LEFT}" y="{top + 3}" width="{middle:.1f}" height="16" fill="{colour}"/>',
            f'<path d="M{LEFT + least:.1f} {top + 11}H{LEFT + most:.1f}" stroke="black"/>',
            f'<text x="{LEFT + most + 6:.1f}" y="{top + 15}">{short(middle / scale)}</text>',
        ]
    return svg(bench.UNITS[key], parts, width=LEFT + BAR + 80, height=height)


def lines(title: str, table: Rows, columns: Sequence[int]) -> str:
    """Returns an SVG of columns over the first one: medians joined by lines, minimum and maximum as
    vertical ones."""
    head, *points = table
    top = max(max(measured(row[column])) for row in points for column in columns) or 1
    base, xs = 24 + HIGH, [EDGE + (i + 0.5) * WIDE / len(points) for i in range(len(points))]
    parts = [
        f'<path d="M{EDGE} 24V{base}H{EDGE + WIDE}" fill="none" stroke="#b0b8c0"/>',
        f'<text x="{EDGE - 4}" y="34" text-anchor="end">{short(top)}</text>',
        f'<text x="{EDGE - 4}" y="{base}" text-anchor="end">0</text>',
        f'<text x="{EDGE + WIDE}" y="{base + 34}" text-anchor="end">{text(head[0])}</text>',
    ]
    for x, row in zip(xs, points, strict=True):
        parts.append(
            f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{text(row[0])}</text>'
        )
    for number, column in enumerate(columns):
        colour = COLOURS[number % len(COLOURS)]
        cells = [[value * HIGH / top for value in measured(row[column])] for row in points]
        joined = " ".join(
            f"{x:.1f},{base - statistics.median(cell):.1f}"
            for x, cell in zip(xs, cells, strict=True)
        )
        parts += [
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>',
            *(
                f'<path d="M{x:.1f} {base - min(cell):.1f}V{base - max(cell):.1f}" '
                f'stroke="{colour}"/>'
                for x, cell in zip(xs, cells, strict=True)
            ),
            f'<text x="{EDGE + WIDE + 8}" y="{34 + 18 * number}" fill="{colour}">'
            f"{text(head[column])}</text>",
        ]
    return svg(title, parts, width=EDGE + WIDE + KEY, height=base + 42)


def measured(cell: Cell) -> Sequence[float]:
    """Returns the numbers of a cell. Raises TypeError for a text."""
    if isinstance(cell, str | int):
        raise TypeError(f"{cell!r} was not measured, and cannot be plotted")
    return cell


def svg(title: str, parts: Sequence[str], *, width: int, height: int) -> str:
    start = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="4" y="15" font-weight="bold">{title}</text>',
    ]
    return "\n".join([*start, *parts, "</svg>", ""])


def newest(root: Path, kind: str) -> dict[str, Any]:
    """Returns the newest results of a kind, by their names without the date."""
    files = sorted((root / "benchmarks" / "results").glob(f"*-{kind}-*.json"))
    last = {file.stem[11:]: file for file in files}
    return {name: json.loads(file.read_text()) for name, file in last.items()}


@click.command()
@click.option("--root", type=click.Path(path_type=Path), default=ROOT, help="The project.")
def main(*, root: Path) -> None:
    """Make the README's table, and docs/benchmarks.md with its plots, from the newest results."""
    pictures = root / "docs" / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.glob("*.svg"):
        old.unlink()
    sections = []
    # The README shows the newest full run, or else quick run, on a link of MTU 1500.
    quick, paths = newest(root, "quick"), newest(root, "paths")
    for name, kept in {**quick, **paths}.items():
        result = {"link": {"mtu": 1500, "offloads": True}, **kept}
        sections.append(section(name, result, pictures=pictures))
        if name in quick or name == "paths-mtu1500-offloads":
            fill_readme(root / "README.md", readme_table(result))
    for name, result in newest(root, "tables").items():
        sections.append(tables(name, result, pictures=pictures))
    head = (
        "# Benchmarks\n\nMade by `python -m benchmarks.report` from `benchmarks/results/`; how it"
        " is measured, and what the numbers do not say, is in `benchmarks/README.md`.\n"
    )
    (root / "docs" / "benchmarks.md").write_text("\n".join([head, *sections]))


def readme_table(result: Mapping[str, Any]) -> str:
    found = result["samples"]
    shown = [key for key in COLUMNS if any(key in one for one in found.values())]
    return f"{markdown(found, shown)}\n\n{passport_line(result)}"


def section(name: str, result: Mapping[str, Any], *, pictures: Path) -> str:
    link, results = result["link"], result["samples"]
    offloads = "with" if link["offloads"] else "without"
    keys = [key for key in bench.UNITS if any(key in samples for samples in results.values())]
    parts = [f"## {name}: MTU {link['mtu']}, {offloads} offloads on the link", ""]
    for key in PLOTS:
        if key in keys:
            (pictures / f"{name}-{key}.svg").write_text(bars(results, key))
            parts.append(f"![{bench.UNITS[key]}](benchmarks/{name}-{key}.svg)")
    for some in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
        parts += ["", markdown(results, some)]
    absent = [
        f"{CONTESTANTS[one].name}: {why}"
        for one, why in result["passport"].get("absent", {}).items()
    ]
    return "\n".join([*parts, "", passport_line(result), *absent, ""])


def tables(name: str, result: Mapping[str, Any], *, pictures: Path) -> str:
    """Returns the sections of what ``scaling`` and ``micro`` wrote: a title, and a table."""
    parts = []
    for title, table in result["tables"].items():
        parts += [f"## {title}", ""]
        if name == "tables-scaling":
            for unit, columns in by_unit(table[0]).items():
                file = "-".join(re.findall(r"\w+", f"{title} {unit}".lower())) + ".svg"
                (pictures / file).write_text(lines(f"{title}: {unit}", table, columns))
                parts.append(f"![{title}: {unit}](benchmarks/{file})")
            parts.append("")
        parts += [grid([[text(cell) for cell in row] for row in table]), ""]
    known = result["passport"]
    return "\n".join([*parts, f"{known['date']}, {known['commit']}, {known['machine']}.", ""])


def by_unit(head: Sequence[str]) -> dict[str, list[int]]:
    """Returns the columns of each unit, which is the end of a column's title."""
    found: dict[str, list[int]] = {}
    for column, title in enumerate(head[1:], start=1):
        found.setdefault(title.rpartition(", ")[2], []).append(column)
    return found


def fill_readme(readme: Path, table: str) -> None:
    """Replaces what is between the README's markers; without markers it changes nothing."""
    between = re.compile(f"(?<={BEGIN}\n).*?(?={END})", flags=re.DOTALL)
    readme.write_text(between.sub(lambda _: f"{table}\n", readme.read_text()))


if __name__ == "__main__":
    main()
