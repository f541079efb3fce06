"""
A program with an overlay, which the command "tunnel" can inspect while it runs.

    python embed_control.py 10.244.1.0/24 192.0.2.2=10.244.2.0/24     (as root, on 192.0.2.1)
    tunnel status                                                     (in another terminal there)
    tunnel ping 10.244.2.0
    tunnel down

It also answers a request of its own, which "python embed_control.py greet" sends.
"""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tunnel import Client, Service, Tunnel, TunnelError


async def greet(_: Mapping[str, Any]) -> str:
    return "hello from inside"


async def main(subnet: str, *peers: str) -> None:
    stop = asyncio.Event()
    async with (
        Tunnel(subnets=[subnet], peers=peers) as tunnel,
        Service(tunnel, down=stop.set, calls={"greet": greet}) as service,
    ):
        print(f"{tunnel.describe()}, control socket {service.path}", flush=True)
        printing = asyncio.create_task(print_events(tunnel))
        await stop.wait()
        printing.cancel()


async def print_events(tunnel: Tunnel) -> None:
    async for event in tunnel.events():
        print(event, flush=True)


async def request() -> None:
    async with Client() as node:
        print(await node.call("greet"))


if __name__ == "__main__":
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(request() if sys.argv[1:] == ["greet"] else main(*sys.argv[1:]))
    except TunnelError as error:
        sys.exit(str(error))
