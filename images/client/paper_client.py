"""The paper's client: connect, send one message, close.

G. Zholdangarova, "The development of the TCP protocol in Python" (2020), figure 3. Faithful in what it does, its
limits included: it trusts ``send`` and waits for no answer. Only address and message come from outside, with the
paper's as defaults.

    paper_client.py [HOST [PORT [MESSAGE]]]     or  SERVER_HOST, SERVER_PORT, MESSAGE in the environment
"""

import os
import socket
import sys


def send(host: str, port: int, message: bytes) -> None:
    """Connect, send, close."""
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.connect((host, port))
    client.send(message)
    client.close()


def main() -> None:
    """Read address and message, then send."""
    arguments = sys.argv[1:]
    host = arguments[0] if arguments else os.environ.get("SERVER_HOST", "localhost")
    port = int(arguments[1] if len(arguments) > 1 else os.environ.get("SERVER_PORT", "8888"))
    message = arguments[2] if len(arguments) > 2 else os.environ.get("MESSAGE", "Test message")
    send(host, port, message.encode("utf-8"))


if __name__ == "__main__":
    main()
