"""Run a client program, unchanged, and print one JSON line for each socket it connected and sent on.

    observed.py --messages "Test message 01" "Test message 02" -- paper_client.py server 8888

The program runs once per message, with the message as its last argument. A line has ``message``, ``connect_start_ns``,
``connected_ns``, ``local_port``, ``sent_ns``, and ``error`` if the program failed. Times are CLOCK_REALTIME in
nanoseconds; all containers of one engine share that clock.
"""

import json
import runpy
import socket
import sys
import time
from typing import Any


class ObservedSocket(socket.socket):
    """A socket that notes when and from which port it connected, and when it sent."""

    record: dict[str, Any] = {}  # noqa: RUF012  # one program at a time; `main` replaces it

    def connect(self, address: Any) -> None:
        """As socket.connect."""
        self.record["connect_start_ns"] = time.time_ns()
        super().connect(address)
        self.record["connected_ns"] = time.time_ns()
        self.record["local_port"] = self.getsockname()[1]

    def send(self, data: Any, flags: int = 0) -> int:
        """As socket.send."""
        self.record["sent_ns"] = time.time_ns()
        return super().send(data, flags)


def main() -> int:
    """Run the program for each message; exit 1 if it failed for any."""
    split = sys.argv.index("--")
    messages, program = sys.argv[2:split], sys.argv[split + 1 :]
    socket.socket = ObservedSocket  # type: ignore[misc]  # so that the program uses it
    failed = False
    for message in messages:
        ObservedSocket.record = {"message": message}
        sys.argv = [*program, message]
        try:
            runpy.run_path(program[0], run_name="__main__")
        except (OSError, SystemExit) as error:
            ObservedSocket.record["error"] = f"{type(error).__name__}: {error}"
            failed = True
        print(json.dumps(ObservedSocket.record), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
