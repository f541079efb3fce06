"""nftables: rules through the program ``nft``, and the kernel's notifications of changes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tunnel.errors import DeviceError
from tunnel.linux.capabilities import NET_ADMIN, ambient_capability

_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # Debian's for users lacks these
_TIMEOUT = 10.0  # seconds

_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7  # linux/netlink.h, linux/netfilter/nfnetlink.h
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_LARGEST_MESSAGE = 65536


class Nft:
    """
    The program ``nft``, run in the network namespace of the calling thread.

    Raises:
        DeviceError: It is not installed.
    """

    def __init__(self) -> None:
        path = shutil.which("nft", path=_PATH)
        if path is None:
            raise DeviceError(
                "cannot find nft, which --ip-masq needs (install the package nftables, or leave "
                "--ip-masq out)"
            )
        self._path = path

    async def run(self, commands: list[dict[str, Any]]) -> None:
        """
        Applies all commands, or none. If cancelled, it finishes first: the caller may have to undo
        it.

        Raises:
            DeviceError: The kernel or nft refuses.
        """
        text = json.dumps({"nftables": commands})
        call = asyncio.ensure_future(asyncio.to_thread(self._call, ["-f", "-"], text))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            raise

    async def list_table(self, family: str, name: str) -> dict[str, Any]:
        """Returns the contents of a table with their handles, empty when it does not exist or
        cannot be read. If cancelled, nothing changes."""
        with suppress(DeviceError):
            output = await asyncio.to_thread(self._call, ["list", "table", family, name])
            listing: dict[str, Any] = json.loads(output)
            return listing
        return {}

    def _call(self, arguments: list[str], text: str = "") -> str:
        pipe = subprocess.PIPE
        try:
            # nft keeps the capability; this thread has it to pass on only for the start.
            with ambient_capability(NET_ADMIN):
                process = subprocess.Popen(
                    [self._path, "-j", *arguments],
                    stdin=pipe,
                    stdout=pipe,
                    stderr=pipe,
                    text=True,
                    process_group=0,  # Ctrl-C must not end the nft that removes the rules
                )
            with process:
                try:
                    stdout, stderr = process.communicate(text, timeout=_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(str(error)) from error
        if process.returncode:
            # "internal:0:0-0: Error: Could not process rule: Operation not permitted", and more.
            first = (stderr.strip().splitlines() or ["no reason given"])[0]
            raise _failed(first.rpartition("Error: ")[2])
        return stdout


class TableWatch:
    """
    Calls `changed` in the running loop when a table, or anything in it, is added or removed, by
    another program or by this one.

    Raises:
        DeviceError: The kernel has no nftables, or CAP_NET_ADMIN is missing.
    """

    def __init__(self, table: str, *, changed: Callable[[], None]) -> None:
        self._changed = changed
        # Every message about a table contains its name as a string attribute.
        self._name = table.encode() + b"\0"
        self._loop = asyncio.get_running_loop()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise _failed(f"no netlink socket: {error.strerror}") from error
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, 0))  # the kernel skips a socket without a port
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise _failed(f"they cannot be watched: {error.strerror}") from error
        self._loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        try:
            changed = self._name in self._socket.recv(_LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: notifications were lost, perhaps of this table
            changed = True
        if changed:
            self._changed()


def _failed(why: str) -> DeviceError:
    return DeviceError(
        f"cannot set nftables rules: {why} (run with CAP_NET_ADMIN, on a kernel with nft_masq, or "
        "leave --ip-masq out)"
    )
