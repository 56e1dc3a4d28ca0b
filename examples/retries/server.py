"""Work on each order that comes by UDP, and answer it; tell on stdout."""

import socketserver


class Order(socketserver.DatagramRequestHandler):
    """An order is a datagram."""

    def handle(self) -> None:
        """Work on an order."""
        print("worked on", self.rfile.read().decode(), flush=True)
        self.wfile.write(b"done")


socketserver.UDPServer(("", 8000), Order).serve_forever()
