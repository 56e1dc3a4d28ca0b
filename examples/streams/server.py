"""Send messages of several streams: a client asks for `STREAM STREAM …`, and gets a line per message and stream."""

import socketserver
import time

MESSAGES, EVERY_S = 20, 0.01


class Streams(socketserver.StreamRequestHandler):
    """One connection, with one stream or several."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Send the messages of all its streams in turn."""
        streams = self.rfile.readline().split()
        for number in range(MESSAGES if streams else 0):
            for stream in streams:
                self.wfile.write(b"%s %d\n" % (stream, number))
            time.sleep(EVERY_S)


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection."""

    allow_reuse_address = True


Server(("", 9000), Streams).serve_forever()
