"""Work on each order that comes by UDP, and answer it; tell on stdout."""

import socketserver


class Order(socketserver.DatagramRequestHandler):
    """An order is a datagram."""

    def handle(self) -> None:
        """Work on an order."""
        order = self.rfile.read()
        print("worked on", order.decode(), flush=True)
        self.wfile.write(order)


socketserver.UDPServer(("", 8000), Order).serve_forever()
