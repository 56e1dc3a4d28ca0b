"""Send 100 kB to the host named, and see that all of it arrived."""

import socket
import sys

SIZE = 100_000
with socket.create_connection((sys.argv[1], 8888), timeout=60) as connection:
    connection.sendall(bytes(SIZE))
    connection.shutdown(socket.SHUT_WR)
    answer = connection.makefile("rb").read()
sys.exit(0 if answer == b"%d\n" % SIZE else f"the server took {answer!r} of {SIZE}")
