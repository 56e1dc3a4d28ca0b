"""The paper's server: a blocking TCP server that reads one message from each client and prints it.

G. Zholdangarova, "The development of the TCP protocol in Python" (2020), figures 2 and 4. Faithful in what it
does, its limits included: one client at a time, a queue of five, one ``recv(1024)`` however long the message is,
and no answer. Only address and port come from outside, with the paper's as defaults.

    paper_server.py [HOST [PORT]]     or  SERVER_HOST, SERVER_PORT in the environment
"""

import os
import socket
import sys


def serve(host: str, port: int) -> None:
    """Accept for ever; Ctrl-C (SIGINT) closes the listening socket and ends."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, port))
    listener.listen(5)
    try:
        while True:
            client, _address = listener.accept()
            message = client.recv(1024)
            client.close()
            print("Message", message.decode("utf-8"), flush=True)
    except KeyboardInterrupt:
        pass  # the paper's way to end it
    finally:
        listener.close()


def main() -> None:
    """Read address and port, then serve."""
    arguments = sys.argv[1:]
    host = arguments[0] if arguments else os.environ.get("SERVER_HOST", "")
    port = int(arguments[1] if len(arguments) > 1 else os.environ.get("SERVER_PORT", "8888"))
    serve(host, port)


if __name__ == "__main__":
    main()
