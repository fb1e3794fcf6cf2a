"""Between a client and an S3 server: hands requests on and spoils the answers that it is told to.

    with FaultyS3(endpoint) as faulty:
        faulty.faults["model.safetensors"] = [Fault("truncate", after=1000)]
        os.environ["AWS_ENDPOINT_URL"] = faulty.url

Faults are for GETs of objects whose key ends so, and used up in order; `requests` keeps the keys
asked for, with their Range.
"""

from __future__ import annotations

import http.client
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.webserver import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fault", "FaultyS3"]

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


class FaultyS3:
    """Kinds of faults: status, truncate, corrupt, stall, drop, etag, no_range, longer, do.

    Attributes:
        actions: what `do` calls before it hands the request on, by the end of the key.
    """

    def __init__(self, endpoint: str) -> None:
        self.target = urlsplit(endpoint).netloc
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.actions: dict[str, Callable[[], None]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.released = threading.Event()
        faulty = self

        class Handler(_Handler):
            owner = faulty

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def asked(self, end: str) -> list[str | None]:
        """The Range of each request for such an object."""
        return [part for key, part in self.requests if key.endswith(end)]

    def __enter__(self) -> FaultyS3:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyS3
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        key = unquote(urlsplit(self.path).path)
        self.owner.requests.append((key, self.headers.get("Range")))
        fault = self._fault(key)
        if fault.kind == "drop":
            return
        if fault.kind == "do":
            self.owner.actions[key.rpartition("/")[2]]()
        if fault.kind == "status":
            self._answer(fault.status, {"Content-Type": "application/xml"}, _error(fault))
            return
        status, headers, body = self._forward(fault)
        self._spoil(fault, status, headers, body)

    def _fault(self, key: str) -> Fault:
        for end, faults in self.owner.faults.items():
            if key.endswith(end) and faults:
                return faults.pop(0)
        return Fault("none")

    def _forward(self, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        without = {"no_range": ("range",), "etag": ("if-match",), "do": ("if-match",)}
        left_out = without.get(fault.kind, ())
        headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
        connection = http.client.HTTPConnection(self.owner.target, timeout=30)
        try:
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    def _spoil(self, fault: Fault, status: int, headers: dict[str, str], body: bytes) -> None:
        if fault.kind == "etag":
            headers = {k: v for k, v in headers.items() if k.lower() != "etag"}
            headers["ETag"] = '"' + "0" * 32 + '"'
        if fault.kind == "corrupt":
            body = bytes(byte ^ 0xFF for byte in body)
        if fault.kind == "longer":
            body += b"more"
        self._answer(status, headers, body, fault)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        cut = fault is not None and fault.kind in ("truncate", "stall")
        try:
            self.wfile.write(body[: fault.after] if cut and fault is not None else body)
            self.wfile.flush()
            if fault is not None and fault.kind == "stall":
                self.owner.released.wait(60)
        except OSError:  # the client went away
            return


def _error(fault: Fault) -> bytes:
    code = {403: "AccessDenied", 404: "NoSuchKey", 429: "SlowDown"}.get(fault.status, "Internal")
    return f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
