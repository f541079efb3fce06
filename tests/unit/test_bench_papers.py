"""The benchmarks without measuring: the order of turns, and the pages made from results."""

import json
import tomllib
from pathlib import Path
from xml.etree import ElementTree

from click.testing import CliRunner

from benchmarks import report, rounds, tables
from benchmarks.contestants.tunnel import _others
from benchmarks.full import _accepting

RESULTS: rounds.Results = {
    "kernel": {"tcp1": [8.0, 10.0, 12.0], "udp2000_loss": [1.0]},
    "tunnel": {"tcp1": [4.0, 5.0, 7.0], "udp2000_loss": [3.0]},
    "socat": {},
}
PASSPORT = {
    "date": "2026-01-02",
    "commit": "c0ffee",
    "machine": "2 x",
    "kernel": "6",
    "command": "c",
}


def test_every_other_round_goes_backwards() -> None:
    plan = list(rounds.turns(["a", "b"], ["ping"], rounds=3))
    assert [name for _, name in plan] == ["a", "b", "b", "a", "a", "b"]


def test_rates_are_measured_in_every_third_round_and_both_ways() -> None:
    plan = list(rounds.turns(["a", "b"], ["rates", "ping"], rounds=4))
    assert [name for measure, name in plan if measure == "rates"] == ["a", "b", "b", "a"]


def test_a_ratio_is_to_the_median_of_the_kernel() -> None:
    assert report.cell(RESULTS, "tunnel", "tcp1") == "5 (0.50)"
    assert report.cell(RESULTS, "kernel", "tcp1") == "10"
    assert report.cell(RESULTS, "socat", "tcp1") == "-"


def test_a_loss_has_no_ratio() -> None:
    assert report.cell(RESULTS, "tunnel", "udp2000_loss") == "3"


def test_a_cell_shows_its_spread() -> None:
    assert tables.text([1.0, 2.0, 250.0]) == "2 (1 - 250)"
    assert tables.text([2.0]) == "2"
    assert tables.text("auto") == "auto"


def test_columns_of_one_unit_share_a_plot() -> None:
    assert report.by_unit(["streams", "kernel, Gbit/s", "UDP, kpps", "tunnel, Gbit/s"]) == {
        "Gbit/s": [1, 3],
        "kpps": [2],
    }


def test_a_large_link_is_for_contestants_that_accept_its_packets() -> None:
    assert list(_accepting(["tunnel", "tinc"], mtu=1500)) == ["tunnel", "tinc"]
    assert list(_accepting(["tunnel", "tinc"], mtu=9000)) == ["tunnel"]


def test_additional_peers_have_each_prefix_once() -> None:
    peers = tomllib.loads(_others("192.0.2.2", 3, 10, 100))["peer"]
    prefixes = [prefix for peer in peers for prefix in peer["prefix"]]
    assert len(peers) == 3
    assert len(set(prefixes)) == len(prefixes) == 10
    assert not set(prefixes) & set(_others("192.0.2.2", 1, 50, 110).split('"'))


def test_pages_are_made_from_the_newest_results(tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    paths = {
        "passport": {**PASSPORT, "absent": {"socat": "broke: no more"}},
        "link": {"mtu": 1500, "offloads": True},
        "samples": RESULTS,
    }
    streams = [["streams", "kernel, Gbit/s"], ["1", [9.0, 8.0, 7.0]], ["64", [6.0, 5.0, 4.0]]]
    (results / "2026-01-01-paths-mtu1500-offloads.json").write_text("not read: there is a newer")
    for name, result in {
        "2026-01-02-paths-mtu1500-offloads.json": paths,
        "2026-01-02-tables-scaling.json": {"passport": PASSPORT, "tables": {"Streams": streams}},
        "2026-01-02-tables-micro.json": {"passport": PASSPORT, "tables": {"Codec": [["", "ns"]]}},
    }.items():
        (results / name).write_text(json.dumps(result))

    done = CliRunner().invoke(report.main, ["--root", str(tmp_path)])

    assert done.exit_code == 0, done.output
    assert "| tunnel | 5 (0.50) |" in readme.read_text()
    assert "old" not in readme.read_text()
    paper = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| 64 | 5 (4 - 6) |" in paper
    assert "socat: broke: no more" in paper
    pictures = {path.name: path for path in (tmp_path / "docs" / "benchmarks").iterdir()}
    assert set(pictures) == {"paths-mtu1500-offloads-tcp1.svg", "streams-gbit-s.svg"}
    for name, picture in pictures.items():
        ElementTree.parse(picture)
        assert f"(benchmarks/{name})" in paper
