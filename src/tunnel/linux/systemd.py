"""Notifications to systemd (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Notify(Protocol):
    """Sends one notification, like ``READY=1``."""

    def __call__(self, state: str) -> None: ...


@contextmanager
def notifications() -> Iterator[Notify]:
    """
    Yields a function that notifies the service manager. It does nothing if no service manager
    started this process (no NOTIFY_SOCKET).

    The socket is connected here, before privileges are dropped. A notification that cannot be
    delivered is lost; the node continues.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)

        def notify(state: str) -> None:
            with suppress(OSError):
                channel.send(state.encode())

        if path:
            with suppress(OSError):
                channel.connect("\0" + path[1:] if path.startswith("@") else path)
        yield notify
