"""Connect to a WebSocket server, say so, and listen."""

import asyncio
import sys

from websockets.asyncio.client import connect


async def main() -> None:
    """Listen until the connection ends."""
    async with connect(f"ws://{sys.argv[1]}:8765", ping_interval=None) as server:
        print("connected", flush=True)
        await server.wait_closed()


asyncio.run(main())
