"""A web service: answers every request with a line."""

import http.server


class Hello(http.server.BaseHTTPRequestHandler):
    """Says hello."""

    def do_GET(self) -> None:
        """See `http.server`."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello\n")


http.server.ThreadingHTTPServer(("", 8000), Hello).serve_forever()
