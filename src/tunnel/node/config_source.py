"""Where a node gets the part of its configuration that it does not have when it starts."""

from __future__ import annotations

from typing import Protocol

from tunnel.config.node import Config
from tunnel.status import StoreStatus


class ConfigSource(Protocol):
    """
    The node calls :meth:`prepare`, gives up its privileges if it is confined, and then awaits
    :meth:`load`. :meth:`status` may be called at any time.
    """

    def prepare(self, *, user: str | None) -> None:
        """
        Does what needs the privileges of the process that starts the node.

        Args:
            user: The user that the process is going to run as, None if it does not change.
        """

    async def load(self) -> Config:
        """
        Returns the configuration; waits for as long as that takes.

        Its name, mode and workers are those of the configuration that the node was made with.
        """

    def status(self) -> StoreStatus:
        """Returns the state of the connection to the store."""


def describe_wait(status: StoreStatus) -> str:
    """Says in one phrase what :meth:`ConfigSource.load` waits for."""
    why = status.why or "; ".join(status.troubles)
    return f"waits for the store {status.address}" + (f": {why}" if why else "")
