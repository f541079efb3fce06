"""
A program with an overlay inside that people can look into while it runs.

    python embed_control.py 10.244.1.0/24 192.0.2.2=10.244.2.0/24     (as root, on 192.0.2.1)
    tunnel status                                                     (in another terminal there)
    tunnel ping 10.244.2.0
    tunnel down

It answers a question of its own, too: "python embed_control.py greet" asks it.
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
        telling = asyncio.create_task(tell(tunnel))
        await stop.wait()
        telling.cancel()


async def tell(tunnel: Tunnel) -> None:
    async for event in tunnel.events():
        print(event, flush=True)


async def ask() -> None:
    async with Client() as node:
        print(await node.call("greet"))


if __name__ == "__main__":
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(ask() if sys.argv[1:] == ["greet"] else main(*sys.argv[1:]))
    except TunnelError as error:
        sys.exit(str(error))
