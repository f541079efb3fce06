"""``tunnel decode``: explains packets, and whether a node would accept them."""

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

_MAX_INPUT = 64 << 20  # bytes
_HEX = re.compile(r"[0-9a-fA-FxX:\s]*")


@click.command()
@click.option(
    "--as",
    "kind",
    type=click.Choice(["ethernet", "ip", "vxlan"]),
    help="First header of a hex dump.  [default: guessed]",
)
@click.option(
    "--vni",
    type=click.IntRange(0, 2**24 - 1),
    metavar="N",
    help="VNI that the node expects.  [default: that of --name or --control, else any]",
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
    would accept it.

    Reads pcap, pcapng or hex, at most 64 MiB, from a file, the argument or standard input. With
    --name or --control, the checks are those of that running node, with its peers and their
    prefixes; otherwise those of a node that accepts every VNI and every source. --json prints one
    object per packet and line. Needs scapy (the extra "inspect").

    \b
      tunnel capture --outer -w - -c 10 | tunnel decode
      tunnel decode 0800000000000100...
    """
    decoder = _load()
    receiver = decoder.Receiver(vni=vni)
    checked = f"a node that accepts {'every VNI' if vni is None else f'VNI {vni}'} and every source"
    if name or control:
        status = request("status", name=name, control=control)
        receiver, checked = _receiver_of(status, vni=vni), f"{status['name']} with its peers"
    if not as_json:
        output.console().print(Text(f"checked as by {checked}"))
    for number, packet in enumerate(decoder.read_packets(_read(source), kind=kind), start=1):
        explanation = decoder.explain_packet(packet, receiver=receiver)
        if as_json:
            click.echo(json.dumps(explanation.as_json()))
        else:
            output.console().print(_tree(number, explanation))


def _load() -> Any:
    """Imports the decoder late: scapy takes most of a second to load, and may be missing."""
    # scapy warns about this machine's interfaces, not about the packets.
    logging.getLogger("scapy").setLevel(logging.ERROR)
    try:
        from tunnel.diagnostics import decode as decoder  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'decode needs {error.name} (install it with: pip install "tunnel[inspect]")'
        ) from error
    return decoder


def _receiver_of(status: dict[str, Any], *, vni: int | None) -> Receiver:
    owners: dict[Any, tuple[Prefix, ...]] = {}
    for peer in status["peers"]:
        if peer["address"]:
            address = ipaddress.ip_address(peer["address"])
            owned = tuple(parse_prefix(prefix) for prefix in peer["prefixes"])
            owners[address] = owners.get(address, ()) + owned
    hosts = [endpoint.rpartition(":")[0].strip("[]") for endpoint in status["endpoints"]]
    receiver: Receiver = _load().Receiver(
        vni=status["vni"] if vni is None else vni,
        mac=Mac.parse(status["mac"]),
        bridged=status["mode"] == "tap",
        addresses=frozenset(ipaddress.ip_address(host) for host in hosts),
        owners=owners,
    )
    return receiver


def _read(source: str) -> bytes:
    if source == "-":
        if sys.stdin.isatty():
            raise click.UsageError("nothing to decode: give a file or hex, or pipe either in")
        content = sys.stdin.buffer.read(_MAX_INPUT + 1)
    else:
        try:
            with open(source, "rb") as file:
                content = file.read(_MAX_INPUT + 1)
        except FileNotFoundError as error:
            if not _HEX.fullmatch(source):
                raise ConfigError(f"cannot read {source}: no such file, and not hex") from error
            content = source.encode()
        except OSError as error:
            # A hex dump may be longer than a file name can be.
            if error.errno != errno.ENAMETOOLONG:
                reason = (error.strerror or "").lower()
                raise ConfigError(f"cannot read {source}: {reason}") from error
            content = source.encode()
    if len(content) > _MAX_INPUT:
        raise CodecError("the input exceeds 64 MiB (split it with editcap -c)")
    return content


def _tree(number: int, explanation: Explanation) -> Tree:
    tree = branch = Tree(Text(f"packet {number}, {explanation.size} bytes", style="bold"))
    for layer in explanation.layers:
        fields = ", ".join(f"{name} {value}" for name, value in layer.fields.items())
        branch = branch.add(Text.assemble((layer.name, "bold cyan"), " ", fields))
    for note in explanation.notes:
        tree.add(Text(note))
    if explanation.verdict is not None:
        reason, meaning = explanation.verdict.reason, explanation.verdict.meaning
        text = f"dropped as {reason}: {meaning}" if reason else "accepted"
        tree.add(Text(text, style="red" if reason else "green"))
    return tree
