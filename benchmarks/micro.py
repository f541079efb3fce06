"""
Times of the C core's operations, and of the codec compared with struct and scapy, in nanoseconds.

    python -m benchmarks.micro [--keep]

``tests/native/test_budgets.py`` counts the instructions of the same operations, which do not depend
on the load of the machine.
"""

import json
import struct
import subprocess
import tempfile
import timeit
from array import array
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import tables
from tunnel import vxlan
from tunnel.errors import TunnelError
from tunnel.testing.bench import BenchError
from tunnel.vxlan import ANY_VTEP_MAC, FRAME, OVERHEAD

FRAMES, SIZE = 64, 1400
GOALS = {"encode_batch, beyond the copy": 100, "decode_batch": 30}
"""Most nanoseconds for each frame."""

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src" / "tunnel" / "native"
OPERATIONS = ROOT / "tests" / "native" / "budgets.c"

_HEADER = struct.Struct("!II6s6sH")


def build(directory: Path) -> Path:
    """
    Builds the program that calls the core's operations, optimised like the installed core, and
    returns its path.

    Raises:
        BenchError: gcc is missing or fails.
    """
    program = directory / "operations"
    binding = {CORE / "module.c", *CORE.glob("py_*.c")}
    sources = [OPERATIONS, *sorted({*CORE.glob("*.c")} - binding)]
    # Keep operations with equal code apart, so that each has a name of its own.
    flags = ["-std=gnu11", "-O3", "-fno-ipa-icf", "-g", "-D_GNU_SOURCE", f"-I{CORE}"]
    words = ["gcc", *flags, "-o", str(program), *map(str, sources)]
    try:
        subprocess.run(words, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BenchError("cannot run gcc: not found (apt-get install gcc)") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"cannot build {OPERATIONS.name}: {error.stderr.strip()}") from error
    return program


def core() -> tables.Rows:
    with tempfile.TemporaryDirectory() as directory:
        words = [str(build(Path(directory))), "time"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = (
        (one["name"], one["ns"], one["ns"] / one["packets"]) for one in json.loads(done.stdout)
    )
    return [
        ["operation", "ns", "ns a packet"],
        *([name, f"{whole:.1f}", f"{each:.1f}"] for name, whole, each in found),
    ]


def packet() -> bytes:
    head = bytes.fromhex("4500057800004000401100000a0000010a000002")
    return head + bytes(SIZE - len(head))


def encode_by_struct(one: bytes) -> bytes:
    return _HEADER.pack(0x08000000, 1 << 8, ANY_VTEP_MAC, ANY_VTEP_MAC, 0x0800) + one


def decode_by_struct(frame: bytes) -> tuple[int, bytes]:
    _, vni, _, _, _ = _HEADER.unpack_from(frame)
    return vni >> 8, frame[OVERHEAD:]


def nanoseconds(call: Callable[[], object], *, items: int = 1) -> float:
    """The minimum of seven times of a call, for each item: disturbances only add."""
    timer = timeit.Timer(call)
    count, _ = timer.autorange()
    return min(timer.repeat(7, max(1, count // 4))) / max(1, count // 4) / items * 1e9


def codec() -> dict[str, float]:
    from scapy.layers.inet import IP  # noqa: PLC0415  # a second to import, and needed here only
    from scapy.layers.l2 import Ether  # noqa: PLC0415
    from scapy.layers.vxlan import VXLAN  # noqa: PLC0415

    one = packet()
    frame = vxlan.encode(one)
    packets, sizes = one * FRAMES, array("I", [SIZE]) * FRAMES
    out = bytearray(FRAMES * (SIZE + OVERHEAD))
    frames, frame_sizes = frame * FRAMES, array("I", [len(frame)]) * FRAMES
    found, copy = bytearray(FRAMES * FRAME.size), memoryview(bytearray(len(packets)))

    def copy_all() -> None:
        copy[:] = packets

    batch = nanoseconds(lambda: vxlan.encode_batch(packets, sizes, out), items=FRAMES)
    copied = nanoseconds(copy_all, items=FRAMES)
    return {
        "encode": nanoseconds(lambda: vxlan.encode(one)),
        "encode, struct": nanoseconds(lambda: encode_by_struct(one)),
        "encode, scapy": nanoseconds(lambda: bytes(VXLAN(vni=1) / Ether() / IP(one))),
        "decode": nanoseconds(lambda: vxlan.decode(frame)),
        "decode, struct": nanoseconds(lambda: decode_by_struct(frame)),
        "decode, scapy": nanoseconds(lambda: VXLAN(frame)),
        "encode_batch": batch,
        "the copy alone": copied,
        "encode_batch, beyond the copy": batch - copied,
        "decode_batch": nanoseconds(
            lambda: vxlan.decode_batch(frames, frame_sizes, found), items=FRAMES
        ),
    }


@click.command()
@click.option("--keep", is_flag=True, help="Keep the result in benchmarks/results/.")
@click.option("--directory", type=click.Path(path_type=Path), default=tables.RESULTS)
def main(*, keep: bool, directory: Path) -> None:
    """Measure the core's operations, and the codec with 64 frames of 1,400 bytes."""
    measured = codec()
    rows: tables.Rows = [
        ["", "ns a frame", "goal"],
        *([name, [ns], GOALS.get(name, "")] for name, ns in measured.items()),
    ]
    try:
        result = {
            "Operations of the C core": core(),
            f"Codec, {FRAMES} frames of {SIZE} bytes": rows,
        }
    except TunnelError as error:
        raise click.ClickException(str(error)) from error
    tables.show(result)
    if keep:
        tables.keep(result, module="benchmarks.micro", directory=directory)


if __name__ == "__main__":
    main()
