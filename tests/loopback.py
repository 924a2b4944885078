"""A server of the test's own on a free port of 127.0.0.1, for as long as it is used."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, content: bytes = b"", **headers: str) -> None:
        """An answer with its length."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Json(Quiet):
    """Answers with what `judge` says of a request's body: a status, and something that JSON can hold. Verbs are named by its classes."""

    def judge(self, raw: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def answer(self) -> None:
        status, told = self.judge(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.say(status, json.dumps(told).encode(), Content_Type="application/json")


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Its address; with TLS by the name localhost, which certificates hold."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{'http://127.0.0.1' if tls is None else 'https://localhost'}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
