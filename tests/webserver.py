"""A web server with faults, over http or https with a certificate of its own.

    with WebServer(tmp_path, tls=True) as web:
        web.files["/model.zip"] = content
        web.faults["/model.zip"] = [Fault("truncate", after=1000)]
        os.environ["SSL_CERT_FILE"] = str(web.certificate)

Serves ranges with If-Range and ETag; `sent` counts the bytes of bodies, `requests` keeps what was
asked.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import ssl
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Fault:
    """What happens to one answer: status, truncate, corrupt, stall, drop, redirect, other_range."""

    kind: str
    status: int = 500
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class WebServer:
    """Attributes: files by path; faults by path, used up in order; digest, etag: send them."""

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.extra: dict[str, str] = {}
        self.etag = True
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.stalled = threading.Event()
        self.released = threading.Event()
        self.certificate = folder / "certificate.pem"
        server = self

        class Handler(_Handler):
            owner = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        if tls:
            make_certificate(self.certificate)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> WebServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: WebServer
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        owner, path = self.owner, self.path
        owner.requests.append((path, dict(self.headers.items())))
        faults = owner.faults[path.partition("?")[0]]
        fault = faults.pop(0) if faults else Fault("none")
        content = owner.files.get(path.partition("?")[0])
        if fault.kind == "drop":
            return
        if fault.kind in ("status", "redirect"):
            self._head(fault.status, {"Content-Length": "0"} | fault.headers)
        elif content is None:
            self._head(404, {"Content-Length": "0"})
        else:
            self._send(content, fault)

    def _send(self, content: bytes, fault: Fault) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = dict(self.owner.extra) | ({"ETag": tag} if self.owner.etag else {})
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and self.headers.get("If-Range") in (None, tag) else 0
        if fault.kind == "other_range":
            start = int(match[1]) - 10 if match else 0
        if start >= len(content) > 0:
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault.kind == "corrupt":
            content = bytes(byte ^ 0xFF for byte in content)
        part = content[start:]
        length = len(part) + (fault.after if fault.kind == "lie" else 0)
        self._head(206 if start else 200, headers | {"Content-Length": str(length)})
        cut = fault.kind in ("truncate", "stall")
        self._write(part[: fault.after] if cut else part)
        if fault.kind == "stall":
            self.owner.stalled.set()
            self.owner.released.wait(60)

    def _write(self, body: bytes) -> None:
        try:
            self.wfile.write(body)
            self.wfile.flush()
            self.owner.sent += len(body)
        except OSError:  # the client went away
            return

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def make_certificate(path: Path) -> None:
    """A key and a certificate for 127.0.0.1 and localhost that signs itself, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    content = key.private_bytes(serialization.Encoding.PEM, form, plain)
    path.write_bytes(content + certificate.public_bytes(serialization.Encoding.PEM))
