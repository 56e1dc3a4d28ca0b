"""`testbed watch`: a running session as a picture, in the terminal or in a browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
from rich.live import Live

from testbed.commands.console import OUT, say, write
from testbed.commands.options import command, example
from testbed.errors import UserError
from testbed.lab.waiting import NotSeenError, await_condition
from testbed.lab.window import VERSION, seen_through, windows
from testbed.report.watched import Film, Scene, rendered
from testbed.resources import resource
from testbed.units import parse_time

_LOOKS_EVERY_S = 0.2
_PAGE = "testbed/report/assets/watch.html"


@command()
@click.option("--html", is_flag=True, help="Serve a page on this machine's loopback instead, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of that page; 0 for a free one.")
@click.option("--once", is_flag=True, help="Print one picture and end; with --json as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print each picture as a line of JSON.")
@click.option("--pid", type=int, help="Of the session, or its worker, if several run.")
@click.option("--wait", metavar="TIME", default="0s", help="Wait so long for a session that has a stack up.")
@example("""testbed watch
             testbed watch --html --port 8080""")
def watch(html: bool, port: int, once: bool, as_json: bool, pid: int | None, wait: str) -> int:
    """Watch a running pytest session: its stack, each link as asked and as it is now, cuts, timelines, events.

    It looks at a session on this machine, of the same user, until that ends. A session pays only while somebody
    watches: a reading of its kernels' counters, twice a second.
    """
    name = _window(pid, parse_time(wait, name="--wait"))
    if html:
        return _serve(name, port)
    film = Film()
    if as_json or once:
        for picture in _pictures(name):
            if as_json:
                write(json.dumps(picture))
            else:
                OUT.print(rendered(film.add(picture)))
            if once:
                break
        return 0
    with Live(console=OUT, screen=OUT.is_terminal, auto_refresh=False) as live:
        for picture in _pictures(name):
            live.update(rendered(film.add(picture)), refresh=True)
    say("the session has ended")
    return 0


def _window(pid: int | None, wait_s: float) -> str:
    """The window of the one session, or of that process. Raises UserError if there is none, or several."""

    def there() -> dict[int, str]:
        return {process: name for process, name in windows().items() if pid in (None, process)}

    if wait_s and not there():
        say("waiting for a session whose stack is up")
    try:
        names = await_condition(there, bool, deadline_s=wait_s, every_s=_LOOKS_EVERY_S)
    except NotSeenError:
        which = "no session with a stack" if pid is None else f"--pid {pid}: no such session, or without a stack,"
        raise UserError(f"{which} is running on this machine: start pytest, or say --wait 5min") from None
    if len(names) > 1:
        raise UserError(f"several sessions run: say which, --pid {' or --pid '.join(map(str, sorted(names)))}")
    return next(iter(names.values()))


def _pictures(name: str) -> Iterator[dict[str, object]]:
    """What the window shows. Raises UserError if it cannot be looked through."""
    try:
        for picture in seen_through(name):
            if picture["version"] != VERSION:
                raise UserError(f"the session runs another testbed (version {picture['version']} of what it shows)")
            yield picture
    except OSError as error:
        raise UserError(f"the session cannot be watched: {error.strerror or error}") from None


# --- the page ----------------------------------------------------------------------------------------


class _Latest:
    """The latest scene, and a wait for the next one."""

    def __init__(self) -> None:
        self._new = threading.Condition()
        self._number, self._scene, self.over = 0, "", False

    def put(self, scene: Scene | None) -> None:
        """None: there will be no other."""
        with self._new:
            if scene is None:
                self.over = True
            else:
                self._scene = json.dumps(asdict(scene))
            self._number += 1
            self._new.notify_all()

    def after(self, number: int) -> tuple[int, str]:
        """The latest scene and its number, once that is another."""
        with self._new:
            self._new.wait_for(lambda: self._number != number)
            return self._number, self._scene


def _serve(name: str, port: int) -> int:
    latest = _Latest()
    page = resource(_PAGE).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's page may not read it, also by a name that leads here.
            if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._begin("text/html; charset=utf-8")
                self.wfile.write(page)
            elif self.path == "/scenes":
                self._begin("text/event-stream")
                self._stream()
            else:
                self.send_error(404)

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()

        def _stream(self) -> None:
            number, scene = latest.after(-1)
            try:
                while True:
                    if scene:
                        self.wfile.write(f"data: {scene}\n\n".encode())
                    if latest.over:
                        self.wfile.write(b"event: over\ndata: {}\n\n")
                        return
                    number, scene = latest.after(number)
            except OSError:  # the page was closed
                return

        def log_request(self, *_args: object) -> None:
            """Nothing is printed for each."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror or error}") from None
    server.daemon_threads = True
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        write(f"http://127.0.0.1:{server.server_address[1]}/")
        film = Film()
        for picture in _pictures(name):
            latest.put(film.add(picture))
        latest.put(None)
        server.shutdown()
    say("the session has ended")
    return 0


COMMANDS = (watch,)
