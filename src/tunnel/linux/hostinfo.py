"""State of this host, read from /proc and from tools; changes nothing."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunnel.types import Address

_CAP_NET_ADMIN = 12
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex has 208 at most
_NFT_SECONDS = 10.0
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # Debian's for users lacks these

_NET = Path("/proc/thread-self/net")  # of this thread's network namespace


@dataclass(frozen=True)
class UdpSocket:
    """
    A line of /proc/net/udp.

    Attributes:
        inode: 0 for a socket of the kernel's own.
        drops: Datagrams dropped because its buffer was full.
    """

    address: Address
    port: int
    inode: int
    drops: int


def has_net_admin() -> bool:
    """Whether this thread has CAP_NET_ADMIN, in any user namespace."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def tun_error() -> int:
    """Errno of opening /dev/net/tun, 0 when it opens."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def sysctl(name: str) -> int | None:
    """The number in /proc/sys/net/NAME, None when there is none."""
    try:
        return int(Path("/proc/sys/net", name).read_text())
    except (OSError, ValueError):
        return None


def reverse_path_filter(device: str) -> int:
    """0 off, 1 strict, 2 loose: the larger of the device's own and that of all."""
    switches = (sysctl(f"ipv4/conf/{one}/rp_filter") for one in ("all", device))
    return max(switch or 0 for switch in switches)


def reverse_path_drops() -> int:
    """Packets that the reverse-path filter has dropped in this network namespace."""
    with suppress(OSError):
        lines = (_NET / "netstat").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counters = dict(zip(names.split(), values.split(), strict=True))
            if "IPReversePathFilter" in counters:
                return int(counters["IPReversePathFilter"])
    return 0


def udp_sockets(port: int) -> list[UdpSocket]:
    """The sockets bound to `port`, of both families."""
    return [one for table in ("udp", "udp6") for one in _read_sockets(table) if one.port == port]


def owners(inodes: Collection[int]) -> dict[int, str]:
    """Names by pid of the processes that have one of these sockets open, as far as this user may
    see them."""
    links = {f"socket:[{inode}]" for inode in inodes}
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(one) in links for one in (process / "fd").iterdir()):
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def clock_is_synchronised() -> bool | None:
    """Whether the clock is synchronised, None when the kernel does not report it."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = int(libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return None if state < 0 else state != _TIME_ERROR


def read_ruleset() -> tuple[dict[str, Any], str]:
    """The output of ``nft -j list ruleset``, and the reason when it is empty."""
    nft = shutil.which("nft", path=_PATH)
    if nft is None:
        return {}, "nft is not installed"
    try:
        done = subprocess.run(
            [nft, "-j", "list", "ruleset"],
            capture_output=True,
            check=True,
            text=True,
            timeout=_NFT_SECONDS,
        )
        words = json.loads(done.stdout or "{}")
    except subprocess.CalledProcessError as error:
        return {}, (error.stderr.strip().splitlines() or ["nft failed"])[0]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {}, f"nft: {error}"
    return words if isinstance(words, dict) else {}, ""


def has_legacy_rules() -> bool:
    """Whether iptables-legacy, which nft does not show, filters here as well."""
    for name in ("ip_tables_names", "ip6_tables_names"):
        with suppress(OSError):
            if "filter" in (_NET / name).read_text().split():
                return True
    return False


def _read_sockets(table: str) -> Iterator[UdpSocket]:
    try:
        lines = (_NET / table).read_text().splitlines()[1:]
    except OSError:  # a kernel without IPv6
        return
    for line in lines:
        columns = line.split()
        address, _, port = columns[1].partition(":")
        yield UdpSocket(_address(address), int(port, 16), int(columns[9]), int(columns[12]))


def _address(text: str) -> Address:
    """An address in words of 32 bits, each in hex and in the byte order of this machine."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
