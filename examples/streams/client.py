"""Read four streams, on one connection or on four; print how long each stream was silent at most, in seconds."""

import json
import socket
import sys
import threading
import time

STREAMS = ("a", "b", "c", "d")
silent_s = dict.fromkeys(STREAMS, 0.0)


def read(streams: tuple[str, ...]) -> None:
    """Read what comes of these streams on one connection."""
    with socket.create_connection(("server", 9000)) as connection:
        connection.sendall(" ".join(streams).encode() + b"\n")
        latest: dict[str, float] = {}
        for line in connection.makefile():
            stream, now = line.split()[0], time.monotonic()
            silent_s[stream] = max(silent_s[stream], now - latest.get(stream, now))
            latest[stream] = now


connections = [STREAMS] if sys.argv[1] == "one" else [(stream,) for stream in STREAMS]
threads = [threading.Thread(target=read, args=(streams,)) for streams in connections]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(silent_s))
