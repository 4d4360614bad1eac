"""Serve the built site on localhost: `make serve`. Pyodide needs http; a page opened as a file has none."""

from __future__ import annotations

import argparse
import functools
import http.server
import sys
from pathlib import Path
from typing import Any

from lmlib.book import settings


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the site, never cached (a rebuilt page must show); the book's own page for what is missing."""

    extensions_map = {  # noqa: RUF012 - the name and type are the parent's
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".woff2": "font/woff2",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        page = Path(self.directory) / "404.html"
        if code != 404 or not page.is_file():
            super().send_error(code, message, explain)
            return
        body = page.read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests: the terminal keeps the address in view."""


class Server(http.server.ThreadingHTTPServer):
    """A server that takes it calmly when a reader leaves a page that is still loading."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(html: Path, port: int) -> Server:
    """A server of the folder `html` on localhost; port 0 takes any free one."""
    return Server(("127.0.0.1", port), functools.partial(Handler, directory=str(html)))


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Serve the built site on localhost.")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    html = settings.root() / "_build" / "html"
    if not (html / "index.html").is_file():
        sys.exit("There is no built site yet: run `make book` first.")
    try:
        running = server(html, args.port)
    except (OSError, OverflowError) as error:
        sys.exit(f"Cannot serve on port {args.port} ({error}). Name another: make serve PORT=8001")
    print(f"The book is at http://localhost:{running.server_port}/ (Ctrl-C ends)", flush=True)
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
