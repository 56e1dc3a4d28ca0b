"""The server of the documents' examples: takes what is sent on port 8888 to its end, and answers how many bytes."""

import socketserver


class _Count(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        count = sum(len(chunk) for chunk in iter(lambda: self.request.recv(65536), b""))
        self.wfile.write(b"%d\n" % count)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


with _Server(("", 8888), _Count) as server:
    server.serve_forever()
