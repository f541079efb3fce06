"""The driver goes on with a batch when the kernel refuses a part of it."""

import ipaddress
from typing import Any
from unittest.mock import AsyncMock, Mock

from tunnel.errors import DeviceError
from tunnel.node.driver import Driver
from tunnel.node.vteps import AddKernelRoutes, AnswerNeighbours

PARTS = ("device", "netlink", "underlay", "workers", "containers", "channel", "events", "fdb")


async def test_routes_that_the_kernel_does_not_take_are_refused_and_the_rest_is_applied() -> None:
    parts: dict[str, Any] = {name: Mock() for name in (*PARTS, "kernel", "prober", "vteps")}
    error = DeviceError("cannot send to the kernel: no buffer space available")
    parts["kernel"].add_routes = AsyncMock(side_effect=error)
    prefix = ipaddress.ip_network("10.2.0.0/16")

    refused = await Driver("tunnel1", **parts).change_vteps(
        [AddKernelRoutes({prefix: None}), AnswerNeighbours(())]
    )

    assert refused == {prefix: error}
    parts["workers"].set_neighbours.assert_called_once()
    parts["vteps"].refused.assert_called_once_with(refused)
