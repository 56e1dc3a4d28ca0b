"""An HTTP server: ``GET /N`` is answered with N bytes, ``POST`` with the number of bytes that came."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080


class Bodies(BaseHTTPRequestHandler):
    """One connection, which is kept for further requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together

    def do_GET(self) -> None:
        """Answer with as many bytes as the path says."""
        self._answer(b"x" * int(self.path.strip("/") or 1))

    def do_POST(self) -> None:
        """Answer with how many bytes came."""
        self._answer(b"%d" % len(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Bodies).serve_forever()
