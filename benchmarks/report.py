"""
From results to papers: the README's table, and docs/benchmarks.md with its plots.

    python -m benchmarks.report
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import CONTESTANTS
from benchmarks.rounds import BASELINE, Results, median, short
from tunnel import bench

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

COLUMNS = ("tcp1", "tcp1_back", "tcp4", "tcp4_back", "udp64", "rr_p50", "rr_p99", "ping", "cpu1")
"""Those of the README; docs/benchmarks.md has all."""

BAR, ROW, LEFT = 420, 22, 180
"""Pixels of a plot."""


def print_rows(results: Results) -> None:
    """Contestants in rows, for there are many: median, and ratio to the kernel's vxlan."""
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
    base = median(results, BASELINE, key)
    return f"{short(middle)} ({middle / base:.2f})" if base and name != BASELINE else short(middle)


def markdown(results: Results, keys: Sequence[str]) -> str:
    head = ["", *(bench.UNITS[key] for key in keys)]
    lines = [head, ["---", *("--:" for _ in keys)], *rows(results, keys)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def passport_line(result: Mapping[str, Any]) -> str:
    known = result["passport"]
    words = (known[word] for word in ("date", "commit", "machine", "kernel"))
    return f"{', '.join(words)}; `{known['command']}`. In brackets: ratio to the kernel's vxlan."


def plot(results: Results, key: str) -> str:
    """Medians as bars with least and most as a line, as SVG."""
    shown = [name for name in results if key in results[name]]
    scale = BAR / max(max(results[name][key]) for name in shown)
    height = ROW * (len(shown) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + BAR + 80}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="4" y="15" font-weight="bold">{bench.UNITS[key]}</text>',
    ]
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
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    # The README has the newest run of everybody, or of the few, on an ordinary link.
    quick = {file.stem[11:]: file for file in sorted(RESULTS.glob("*-quick-*.json"))}
    paths = {file.stem[11:]: file for file in sorted(RESULTS.glob("*-paths-*.json"))}
    sections = []
    for name, file in {**quick, **paths}.items():
        result = {"link": {"mtu": 1500, "offloads": True}, **json.loads(file.read_text())}
        sections.append(section(name, result))
        if name in quick or name == "paths-mtu1500-offloads":
            samples = result["samples"]
            shown = [key for key in COLUMNS if any(key in one for one in samples.values())]
            fill_readme(f"{markdown(samples, shown)}\n\n{passport_line(result)}")
    for file in sorted(RESULTS.glob("*-tables-*.json")):
        sections.append(tables(json.loads(file.read_text())))
    head = (
        "# Benchmarks\n\nMade by `python -m benchmarks.report` from `benchmarks/results/`; how it"
        " is measured, and what the numbers do not say, is in `benchmarks/README.md`.\n"
    )
    (DOCS / "benchmarks.md").write_text("\n".join([head, *sections]))


def section(name: str, result: Mapping[str, Any]) -> str:
    link, results = result["link"], result["samples"]
    offloads = "with" if link["offloads"] else "without"
    keys = [key for key in bench.UNITS if any(key in samples for samples in results.values())]
    pictures = DOCS / "benchmarks"
    pictures.mkdir(exist_ok=True)
    lines = [f"## {name}: MTU {link['mtu']}, {offloads} offloads on the link", ""]
    for key in ("tcp1", "tcp4", "udp64", "rr_p50"):
        if key in keys:
            (pictures / f"{name}-{key}.svg").write_text(plot(results, key))
            lines.append(f"![{bench.UNITS[key]}](benchmarks/{name}-{key}.svg)")
    for some in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
        lines += ["", markdown(results, some)]
    absent = [
        f"{CONTESTANTS[one].name}: {why}"
        for one, why in result["passport"].get("absent", {}).items()
    ]
    return "\n".join([*lines, "", passport_line(result), *absent, ""])


def tables(result: Mapping[str, Any]) -> str:
    """What ``scaling`` and ``micro`` keep: a title, and rows of two or more words."""
    lines = []
    for title, table in result["tables"].items():
        head, *rest = ([str(word) for word in row] for row in table)
        ruler = ["---", *("--:" for _ in head[1:])]
        lines += [f"## {title}", "", *(f"| {' | '.join(r)} |" for r in (head, ruler, *rest)), ""]
    known = result["passport"]
    return "\n".join([*lines, f"{known['date']}, {known['commit']}, {known['machine']}.", ""])


def fill_readme(text: str) -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        return
    between = re.compile(f"(?<={BEGIN}\n).*?(?={END})", flags=re.DOTALL)
    readme.write_text(between.sub(lambda _: f"{text}\n", readme.read_text()))


if __name__ == "__main__":
    main()
