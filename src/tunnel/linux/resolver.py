"""Looks names up, each in a thread of its own, so that a slow one holds up nothing else."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading
from contextlib import suppress

from tunnel.types import Address


class Resolver:
    """
    Look-ups of the running loop.

    The C library's getaddrinfo(3) cannot be interrupted. Here nothing waits for it: neither another
    look-up, as in a pool of threads, nor the end of the loop or of the process. While a look-up of
    a name is in progress, another of that name waits for the same answer.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[Address]] = {}
        self._closed = False

    async def resolve(self, name: str) -> Address:
        """
        Returns the first address of a name. If cancelled, the look-up goes on for others.

        Raises:
            OSError: The name has no address, or the resolver is closed.
        """
        if self._closed:
            raise _closed_error()
        if name not in self._running:
            self._start(name)
        return await asyncio.shield(self._running[name])

    def close(self) -> None:
        """Ends every :meth:`resolve` at once; a thread ends when getaddrinfo(3) returns."""
        self._closed = True
        for future in tuple(self._running.values()):
            if not future.done():
                future.set_exception(_closed_error())

    def _start(self, name: str) -> None:
        future: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._running[name] = future

        def end(_: object) -> None:
            del self._running[name]
            future.exception()  # no fault if nothing awaits it any more

        future.add_done_callback(end)
        threading.Thread(
            target=_look_up, args=(name, future), name=f"resolve {name}", daemon=True
        ).start()


def _look_up(name: str, future: asyncio.Future[Address]) -> None:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        result: Address | OSError = ipaddress.ip_address(found[0][4][0])
    except OSError as error:
        result = error
    except ValueError as error:  # a name that has no form in the DNS (UnicodeError)
        result = OSError(errno.EINVAL, str(error))
    with suppress(RuntimeError):  # the loop is closed
        future.get_loop().call_soon_threadsafe(_finish, future, result)


def _finish(future: asyncio.Future[Address], result: Address | OSError) -> None:
    if future.done():
        return
    if isinstance(result, OSError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _closed_error() -> OSError:
    return OSError(errno.ECANCELED, "the node is closed")
