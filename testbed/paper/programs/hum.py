"""``hum.py HOST RATE``: other traffic: so many small datagrams a second to a port that nobody listens on, for ever."""

import socket
import sys
import time

host, interval_s = sys.argv[1], 1 / float(sys.argv[2])
beside = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
while True:
    beside.sendto(b"hum", (host, 9))  # discard (RFC 863); unconnected, so that no refusal comes back as an error
    time.sleep(interval_s)
