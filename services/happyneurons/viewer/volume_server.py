"""A small HTTP server of volumes, and of Neuroglancer itself, for looking at results on one's own machine.

`/data/NAME/PATH` serves files of the root NAME, `/v/viewer/` Neuroglancer's client (from the PyPI
package `neuroglancer`, so that no internet is needed). With a token every path begins with it:
whoever has the link may look, nobody else.
"""

from __future__ import annotations

import hmac
import importlib.util
import json
import mimetypes
import re
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from happyneurons.errors import HappyError, UserError
from happyneurons.viewer.sources import FolderSource, Item, Source

PIECE = 1 << 20
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_HEARTBEAT_S = 15.0
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "Range, X-Requested-With",
    "Access-Control-Expose-Headers": "Content-Range, Content-Length, Content-Encoding, Accept-Ranges",
    "Access-Control-Allow-Private-Network": "true",  # a public Neuroglancer page may read from this machine
}
Observer = Callable[[str, str, int], None]


def client_folder() -> Path | None:
    """Neuroglancer's static client, None if the package is not installed."""
    spec = importlib.util.find_spec("neuroglancer")  # found, not imported: it would start servers of its own
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "static" / "client"
    return folder if (folder / "index.html").is_file() else None


class VolumeServer:
    """Serves roots until `stop()`; a context manager, too.

    roots: name → source. port 0: any free one. token: first part of every path. observer is called
    with (method, path, status) of each answer.
    """

    def __init__(
        self,
        roots: Mapping[str, Source],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.roots = dict(roots)
        self.token = token
        self.observer = observer
        self.stopping = threading.Event()
        client = client_folder()
        self.client: Source | None = FolderSource(client) if client is not None else None
        server = self

        class Handler(_Handler):
            owner = server

        try:
            self._http = _Server((host, port), Handler)
        except OSError as error:
            raise UserError(f"cannot serve on {host}:{port}: {error.strerror or error}; choose another port") from error
        shown = "127.0.0.1" if host in ("0.0.0.0", "") else host
        self.url = f"http://{shown}:{self._http.server_address[1]}" + (f"/{quote(token)}" if token else "")
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="volume-server", daemon=True
        )

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def close(self) -> None:
        """Give up the port of a server that was not started."""
        self._http.server_close()

    def wait(self) -> None:
        """Until `stop()` is called, by a signal handler say."""
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def data_url(self, name: str) -> str:
        return f"{self.url}/data/{quote(name)}"

    def page_url(self, state: Mapping[str, Any]) -> str:
        """The local Neuroglancer page showing a state. Raises UserError if the client is not installed."""
        if self.client is None:
            raise UserError("the local viewer needs the package neuroglancer: pip install 'happyneurons[viewer]'")
        return f"{self.url}/v/viewer/#!{quote(json.dumps(state, separators=(',', ':')))}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers drop connections when the view moves on: nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    owner: VolumeServer
    protocol_version = "HTTP/1.1"
    server_version = "happyneurons"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the observer is told."""

    def do_OPTIONS(self) -> None:
        self._answer(HTTPStatus.NO_CONTENT, {"Access-Control-Max-Age": "86400"})

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        path = self._path()
        if path is None:
            self._answer(HTTPStatus.FORBIDDEN)
            return
        place, _, rest = path.partition("/")
        if place == "events" and body:
            self._events()
            return
        try:
            item, kind = self._find(place, rest)
        except HappyError as error:
            self._answer(HTTPStatus.BAD_GATEWAY, message=str(error))
            return
        if item is None:
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._send(item, kind, body)

    def _path(self) -> str | None:
        """The decoded path without the token; None if it is refused."""
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if self.owner.token is not None:
            token, _, path = path.partition("/")
            if not hmac.compare_digest(token.encode(), self.owner.token.encode()):
                return None
        return None if ".." in path.split("/") or "\0" in path else path

    def _find(self, place: str, rest: str) -> tuple[Item | None, str]:
        if place == "v" and self.owner.client is not None:
            name = rest.partition("/")[2] or "index.html"
            return self.owner.client.find(name), mimetypes.guess_type(name)[0] or "application/octet-stream"
        if place == "data":
            root, _, name = rest.partition("/")
            source = self.owner.roots.get(root)
            kind = "application/json" if name.rpartition("/")[2] == "info" else "application/octet-stream"
            return (source.find(name) if source is not None else None), kind
        return None, ""

    def _send(self, item: Item, kind: str, body: bool) -> None:
        wanted = self.headers.get("Range")
        if wanted is not None:
            item = item.decoded()
        headers = {"Content-Type": kind, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
        start, length, status = 0, item.size, HTTPStatus.OK
        if wanted is not None and (match := _RANGE.match(wanted)) and match[0] != "bytes=-":
            span = _span(match, item.size)
            if span is None:
                self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{item.size}"})
                return
            start, length = span
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{item.size}"
        if item.encoding is not None:
            headers["Content-Encoding"] = item.encoding
        self._answer(status, headers, length=length)
        while body and length > 0:
            piece = item.read(start, min(PIECE, length))
            if not piece:  # it was cut short meanwhile: the connection's end tells the reader
                self.close_connection = True
                return
            self.wfile.write(piece)
            start, length = start + len(piece), length - len(piece)

    def _events(self) -> None:
        """Neuroglancer's packaged client waits for state from Python; here all state is in the link.

        The stream stays open and empty, or the client would tell the user that it is disconnected.
        """
        self._answer(HTTPStatus.OK, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}, length=None)
        self.close_connection = True
        while True:
            self.wfile.write(b": still here\n\n")
            self.wfile.flush()
            if self.owner.stopping.wait(_HEARTBEAT_S):
                return

    def _answer(
        self, status: HTTPStatus, headers: Mapping[str, str] | None = None, *, length: int | None = 0, message: str = ""
    ) -> None:
        """Status line and headers; with a message also the body."""
        data = message.encode()
        self.send_response(status)
        for name, value in {**CORS, **(headers or {})}.items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
        elif status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(data) or length))
        self.end_headers()
        if data and self.command != "HEAD":
            self.wfile.write(data)
        if self.owner.observer is not None:
            self.owner.observer(self.command, urlsplit(self.path).path, int(status))


def _span(match: re.Match[str], size: int) -> tuple[int, int] | None:
    """(start, length) of a Range header within a file, None if nothing of it is there."""
    if match[1]:
        start, end = int(match[1]), int(match[2]) if match[2] else size - 1
    else:
        start, end = max(size - int(match[2]), 0), size - 1
    end = min(end, size - 1)
    return (start, end - start + 1) if start <= end else None
