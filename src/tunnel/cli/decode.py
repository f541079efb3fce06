"""``tunnel decode``: what is in a packet, and what a node's checks say of it."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text
from rich.tree import Tree

from tunnel.cli import output
from tunnel.cli.control import node_options, request
from tunnel.errors import CodecError, ConfigError
from tunnel.types import Mac, Prefix, parse_prefix

if TYPE_CHECKING:
    from tunnel.diagnostics.decode import Explanation, Receiver

_MOST = 64 << 20  # bytes of input
_HEX = re.compile(r"[0-9a-fA-FxX:\s]*")


@click.command()
@click.option(
    "--as",
    "kind",
    type=click.Choice(["ethernet", "ip", "vxlan"]),
    help="What a hex dump begins with.  [default: what it looks like]",
)
@click.option(
    "--vni",
    type=click.IntRange(0, 2**24 - 1),
    metavar="N",
    help="The VNI that the checks expect.  [default: the node's, else the packet's own]",
)
@node_options
@click.argument("source", metavar="[FILE.pcap|HEX|-]", default="-")
def decode(  # noqa: PLR0917 - click names them
    source: str,
    kind: str | None,
    vni: int | None,
    name: str | None,
    control: Path | None,
    as_json: bool,
) -> None:
    """
    Explain packets: outer headers, VXLAN, the inner packet or control frame, and whether a node
    would take it.

    Reads pcap, pcapng or hex, at most 64 MiB, from a file, the word itself or standard input.
    With --name or --control, checks as that running node does, who its peers are and what they
    own included; without, as a node that takes every VNI and every source. With --json, one object
    a line for each packet. Needs scapy, the extra "inspect".

    \b
      tunnel capture --outer -w - -c 10 | tunnel decode
      tunnel decode 0800000000000100...
    """
    inspector = _load()
    receiver = inspector.Receiver(vni=vni)
    judge = f"a node that takes {'every VNI' if vni is None else f'VNI {vni}'} and every source"
    if name or control:
        status = request("status", name=name, control=control)
        receiver, judge = _receiver_from(status, vni=vni), f"{status['name']} and its peers"
    if not as_json:
        output.console().print(Text(f"judged as by {judge}"))
    for number, frame in enumerate(inspector.read(_read(source), kind=kind), start=1):
        found = inspector.explain(frame, receiver=receiver)
        if as_json:
            click.echo(json.dumps(found.words()))
        else:
            output.console().print(_tree(number, found))


def _load() -> Any:
    """scapy takes most of a second to load, and is not always there."""
    # What it warns about is this machine's interfaces, not the packets.
    logging.getLogger("scapy").setLevel(logging.ERROR)
    try:
        from tunnel.diagnostics import decode as inspector  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'decode needs {error.name} (install it with: pip install "tunnel[inspect]")'
        ) from error
    return inspector


def _receiver_from(status: dict[str, Any], *, vni: int | None) -> Receiver:
    owners: dict[Any, tuple[Prefix, ...]] = {}
    for peer in status["peers"]:
        if peer["address"]:
            address = ipaddress.ip_address(peer["address"])
            owned = tuple(parse_prefix(prefix) for prefix in peer["prefixes"])
            owners[address] = owners.get(address, ()) + owned
    places = [endpoint.rpartition(":")[0].strip("[]") for endpoint in status["endpoints"]]
    receiver: Receiver = _load().Receiver(
        vni=status["vni"] if vni is None else vni,
        mac=Mac.parse(status["mac"]),
        bridged=status["mode"] == "tap",
        addresses=frozenset(ipaddress.ip_address(place) for place in places),
        owners=owners,
    )
    return receiver


def _read(source: str) -> bytes:
    if source == "-":
        if sys.stdin.isatty():
            raise click.UsageError("nothing to decode: give a FILE, hex, or pipe either in")
        content = sys.stdin.buffer.read(_MOST + 1)
    else:
        try:
            with open(source, "rb") as file:
                content = file.read(_MOST + 1)
        except FileNotFoundError as error:
            if not _HEX.fullmatch(source):
                raise ConfigError(
                    f"cannot read {source}: no such file, and it is no hex"
                ) from error
            content = source.encode()
        except OSError as error:
            # A hex dump may be longer than a file's name.
            if error.errno != errno.ENAMETOOLONG:
                reason = (error.strerror or "").lower()
                raise ConfigError(f"cannot read {source}: {reason}") from error
            content = source.encode()
    if len(content) > _MOST:
        raise CodecError("more than 64 MiB of input (take a part of it: editcap -c)")
    return content


def _tree(number: int, found: Explanation) -> Tree:
    tree = branch = Tree(Text(f"packet {number}, {found.size} bytes", style="bold"))
    for layer in found.layers:
        words = ", ".join(f"{name} {value}" for name, value in layer.fields.items())
        branch = branch.add(Text.assemble((layer.name, "bold cyan"), " ", words))
    for note in found.notes:
        tree.add(Text(note))
    if found.verdict is not None:
        reason, meaning = found.verdict.reason, found.verdict.meaning
        text = f"dropped as {reason}: {meaning}" if reason else "taken"
        tree.add(Text(text, style="red" if reason else "green"))
    return tree
