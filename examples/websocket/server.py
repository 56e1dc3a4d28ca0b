"""A WebSocket server that tells how many clients it believes to have; with a heartbeat, or without one."""

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, serve

HEARTBEAT = {"ping_interval": 1, "ping_timeout": 2, "close_timeout": 1}
OPTIONS = HEARTBEAT if sys.argv[1] == "heartbeat" else {"ping_interval": None}
clients: set[ServerConnection] = set()


async def handle(client: ServerConnection) -> None:
    """Count a client for as long as its connection is open."""
    clients.add(client)
    print(f"{len(clients)} clients", flush=True)
    try:
        await client.wait_closed()
    finally:
        clients.remove(client)
        print(f"{len(clients)} clients", flush=True)


async def main() -> None:
    """Serve for ever."""
    async with serve(handle, "", 8765, **OPTIONS) as server:
        await server.serve_forever()


asyncio.run(main())
