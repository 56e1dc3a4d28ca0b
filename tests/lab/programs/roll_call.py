"""Who hears whom: each host says its name to every other one and prints the names that it hears.

roll_call.py hear             print every name that arrives, for ever
roll_call.py say NAME HOST …  send the name to each host, three times
"""

import socket
import sys

_PORT = 9002

if __name__ == "__main__":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as room:
        if sys.argv[1] == "hear":
            room.bind(("", _PORT))
            print("ready", flush=True)
            while True:
                print(room.recv(99).decode(), flush=True)
        for host in sys.argv[3:]:
            for _ in range(3):
                room.sendto(sys.argv[2].encode(), (host, _PORT))
