"""An archive on the web as a source: plain HTTP GET, every hop of it checked.

The standard library's client, because the connection must be made to the address that was checked
(`addresses.py`). No cookies, no credentials, no proxy.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
import ssl
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from controlplane.errors import (
    ArtifactNotAccessible,
    ChecksumMismatch,
    DownloadFailed,
    SourceRefused,
)
from controlplane.registry.addresses import Resolve, check_addresses, resolve
from controlplane.registry.archives import unpack
from controlplane.registry.patience import RETRIED, HubLimits, Patience, Transient
from controlplane.registry.transfer import Answer, NothingThere, receive_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.registry.file_intake import FileIntake
    from controlplane.registry.files import FetchedSource, SourceRules
    from controlplane.registry.intake import Intake
    from controlplane.registry.source_url import SourceUrl
    from controlplane.registry.stopping import Stop

_CHUNK = 64 * 1024
_HOPS = 5
_MOVED = frozenset({301, 302, 303, 307, 308})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Head(NamedTuple):
    """What an answer's headers say of the whole file."""

    start: int
    size: int | None
    validator: str | None
    sha256: str | None


def fetch_web_archive(
    address: str,
    url: SourceUrl,
    intake: Intake,
    rules: SourceRules,
    limits: HubLimits,
    stop: Stop,
    *,
    find: Resolve = resolve,
) -> FetchedSource:
    """Download an archive, verify it where it has a digest, take the model's files out of it.

    Args:
        address: as it was given, with query and fragment.
        find: resolves names.

    Raises:
        As `sources.fetch`.
    """
    web = Web(rules, limits, find)
    key = "web-" + hashlib.sha256(urldefrag(address).url.encode()).hexdigest()
    name = url.shown.rpartition("/")[2]
    with intake.receiving(name, key=key) as target:
        try:
            Patience(limits, stop).call(
                lambda: receive_once(target, partial(web.ask, address, intake), None),
                count=lambda: target.received,
            )
        except Transient as error:
            raise DownloadFailed(
                f"{url.shown} cannot be downloaded now ({error}). Try again later: what came is "
                "kept where the server lets it be continued."
            ) from error
        _verify(target, url.shown, url.sha256 or web.announced)
        unpack(target, url.shown, intake, rules)
    return intake.finish(None, url.shown)


def _verify(target: FileIntake, shown: str, wanted: str | None) -> None:
    found = target.sync().sha256
    if wanted is not None and found != wanted:
        target.forget()
        raise ChecksumMismatch(shown, f"sha256:{wanted}", f"sha256:{found}")


class Web:
    """GET requests under the operator's rules.

    Attributes:
        announced: the SHA-256 that the last answer gave for the whole file.
    """

    def __init__(self, rules: SourceRules, limits: HubLimits, find: Resolve = resolve) -> None:
        self.announced: str | None = None
        self._rules = rules
        self._limits = limits
        self._find = find

    @contextmanager
    def ask(self, address: str, intake: Intake, target: FileIntake) -> Iterator[Answer]:
        """Ask for the bytes of a file that are missing in `target`.

        Raises:
            Transient, NothingThere: see `transfer.py`.
            SourceRefused: an address, a scheme or the size is not allowed.
            ArtifactNotAccessible, DownloadFailed: it is not to be had.
        """
        headers = {"User-Agent": "modelmora", "Accept-Encoding": "identity"}
        if target.received and target.validator is not None:
            headers |= {"Range": f"bytes={target.received}-", "If-Range": target.validator}
        with _failures(urlsplit(address).netloc), self._follow(address, headers) as response:
            if _is_whole(response, target):
                yield Answer(target.received, iter(()), target.received)
                return
            _check_status(response, address)
            head = _head(response)
            self.announced = head.sha256
            if head.size is not None:
                intake.check_size(head.size)
                intake.expect(head.size, here=head.start)
            # read1: what came before a silence is not lost
            chunks = iter(lambda: response.read1(_CHUNK), b"")
            yield Answer(head.start, chunks, head.size, head.validator)

    def read(self, address: str, most: int, seconds: float) -> bytes:
        """What lies at an address, in memory: at most `most` bytes, within about `seconds`.

        Raises:
            Transient: it cannot be had now, or not in that time.
            SourceRefused: an address, a scheme or the size is not allowed.
            ArtifactNotAccessible, DownloadFailed: it is not to be had.
        """
        deadline = time.monotonic() + seconds
        headers = {"User-Agent": "modelmora", "Accept-Encoding": "identity"}
        content = bytearray()
        with _failures(urlsplit(address).netloc), self._follow(address, headers) as response:
            _check_status(response, address)
            size = _head(response).size
            while len(content) <= most and (chunk := response.read1(_CHUNK)):
                content += chunk
                if time.monotonic() > deadline:
                    raise Transient(f"it was not all there after {seconds:g} s")
        if len(content) > most:
            raise SourceRefused(f"{_shown(address)} has more than {most / 1e6:g} MB.")
        if size is not None and len(content) != size:
            raise Transient(f"{len(content)} of {size} bytes came")
        return bytes(content)

    @contextmanager
    def _follow(self, address: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        for _ in range(_HOPS + 1):
            connection = self._connect(address)
            try:
                parts = urlsplit(address)
                path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
                query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
                connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
                with connection.getresponse() as response:
                    location = response.getheader("Location")
                    if response.status not in _MOVED or location is None:
                        yield response
                        return
                address = urldefrag(urljoin(address, location)).url
            finally:
                connection.close()
        raise DownloadFailed(
            f"{urlsplit(address).netloc} redirects more than {_HOPS} times, perhaps in a loop."
        )

    def _connect(self, address: str) -> http.client.HTTPConnection:
        """A connection to one of the host's addresses, all of which are allowed."""
        parts = urlsplit(address)
        self._check_scheme(parts.scheme, parts.netloc)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        addresses = self._find(host, port)
        check_addresses(host, addresses, allow_private=self._rules.allow_private)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, port, timeout=self._limits.answer)
        plain = self._open(addresses)
        try:
            # With a socket of its own it never resolves the name again.
            connection.sock = _secured(plain, host) if secure else plain
        except BaseException:
            plain.close()
            raise
        return connection

    def _check_scheme(self, scheme: str, host: str) -> None:
        if scheme not in ("http", "https") or not host:
            raise DownloadFailed(f"A source leads to the address {scheme}://{host}, not to https.")
        if scheme == "http" and not self._rules.allow_http:
            raise SourceRefused(
                f"http://{host} is not encrypted, so that anybody on the way can change what comes."
                " Use https://, or allow it with MODELMORA_ALLOW_HTTP=true."
            )

    def _open(self, addresses: list[tuple[object, ...]]) -> socket.socket:
        failure = "the name has no address"
        for address in addresses:
            family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(self._limits.answer)
                plain.connect(address)
            except OSError as error:
                plain.close()
                failure = str(error) or type(error).__name__
            else:
                return plain
        raise Transient(failure)


def _secured(plain: socket.socket, host: str) -> ssl.SSLSocket:
    """TLS over a connection; certificates as the system and SSL_CERT_FILE trust them."""
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


@contextmanager
def _failures(host: str) -> Iterator[None]:
    """Failures of the network as `Transient`, of certificates as what they are."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise ArtifactNotAccessible(
            f"The certificate of {host} is not trusted ({error.verify_message}). For one of your "
            "own authority, name its file with SSL_CERT_FILE."
        ) from error
    except ValueError as error:
        raise DownloadFailed(f"{host} leads to what is no address ({error}).") from error
    except http.client.HTTPException as error:
        raise Transient(f"not an HTTP answer: {type(error).__name__}") from error
    except (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror) as error:
        raise Transient(str(error) or type(error).__name__) from error


def _is_whole(response: http.client.HTTPResponse, target: FileIntake) -> bool:
    """Nothing is missing: all had come before the last attempt was killed (RFC 9110 §15.5.17)."""
    length = f"bytes */{target.received}"
    return response.status == 416 and response.getheader("Content-Range") == length


def _check_status(response: http.client.HTTPResponse, address: str) -> None:
    status = response.status
    if status in (200, 206):
        return
    shown = _shown(address)
    if status in RETRIED:
        text = response.getheader("Retry-After") or ""
        raise Transient(f"HTTP {status}", float(text) if text.isdecimal() else None)
    if status in (412, 416):
        raise NothingThere
    if status in (401, 403):
        raise ArtifactNotAccessible(
            f"{shown} wants a login (HTTP {status}), and ModelMora has none for it: use a signed "
            "address, S3, or a directory."
        )
    if status in (404, 410):
        raise ArtifactNotAccessible(f"{shown} does not exist (HTTP {status}).")
    raise DownloadFailed(f"{shown} was refused with HTTP {status}.")


def _shown(address: str) -> str:
    """Without what may be a secret: signed addresses have their signature behind the '?'."""
    return address.partition("?")[0].partition("#")[0]


def _head(response: http.client.HTTPResponse) -> _Head:
    start, length = 0, response.getheader("Content-Length")
    size = int(length) if length is not None and length.isdecimal() else None
    if response.status == 206:
        match = _RANGE.fullmatch(response.getheader("Content-Range") or "")
        if match is None:
            raise Transient("a part of the file without its place")
        start = int(match[1])
        size = int(match[2]) if match[2] != "*" else None
    tag = response.getheader("ETag")
    # A weak tag does not promise equal bytes (RFC 9110 §13.1.5).
    strong = tag if tag is not None and not tag.startswith("W/") else None
    validator = strong or response.getheader("Last-Modified")
    return _Head(start, size, validator, _digest(response))


def _digest(response: http.client.HTTPResponse) -> str | None:
    """SHA-256 of the whole file in hexadecimal, from Repr-Digest (RFC 9530) or the older Digest."""
    text = response.getheader("Repr-Digest") or response.getheader("Digest") or ""
    match = re.search(r"sha-256=:?([A-Za-z0-9+/]{43}=)", text, re.IGNORECASE)
    return base64.b64decode(match[1]).hex() if match else None
