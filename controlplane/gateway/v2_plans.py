"""What the heads of infer requests ask for, remembered by their bytes: clients repeat them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import ModelMoraError
from controlplane.gateway.http_heads import read_head
from controlplane.gateway.trace import TRACE_HEADER
from controlplane.gateway.v2_answers import HEADER_LENGTH
from controlplane.gateway.v2_paths import parse_target, upstream_path

if TYPE_CHECKING:
    from controlplane.gateway.http_heads import Head
    from controlplane.gateway.v2_checks import Checked
    from controlplane.gateway.v2_relay import Relay
    from controlplane.registry.model import Servable

MOST_HEAD = 4096  # bytes
_MOST_KNOWN = 1024


class Plan:
    """What the head of an infer request asks for; the same bytes ask for the same."""

    __slots__ = (
        *("_leased", "_start", "header_length", "length", "lines", "name", "path", "traces"),
        "version",
    )

    def __init__(self, head: Head, name: str, version: str | None, lines: list[bytes]) -> None:
        headers = dict(reversed(head.headers))  # of several the first counts, as `asgi.header`
        self.path = head.path.decode()
        self.name, self.version, self.length = name, version, head.length
        self.header_length = _text(headers.get(HEADER_LENGTH.encode()))
        self.traces = (
            _text(headers.get(TRACE_HEADER.encode())),
            _text(headers.get(b"traceparent")),
        )
        self.lines = b"".join(lines)
        self._leased: Servable | None = None
        self._start = b""

    def head_for(self, leased: Servable, checked: Checked) -> bytes:
        """The head of the request to Triton."""
        if leased is not self._leased:
            start = f"POST {upstream_path(leased)}/infer HTTP/1.1\r\nhost: triton\r\n".encode()
            self._leased, self._start = leased, start + self.lines
        if checked.header_length is None:
            return b"%bcontent-length: %d\r\n\r\n" % (self._start, len(checked.body))
        return b"%b%b: %d\r\ncontent-length: %d\r\n\r\n" % (
            *(self._start, HEADER_LENGTH.encode(), checked.header_length),
            len(checked.body),
        )


class Plans:
    """Those of one gateway.

    Args:
        limit: bytes of a body that are not too many for the short way.
    """

    def __init__(self, relay: Relay, limit: int) -> None:
        self._relay = relay
        self._limit = limit
        self._known: dict[bytes, Plan | None] = {}

    def of(self, raw: bytes) -> Plan | None:
        """What the bytes of a head ask for; None where it is nothing for the short way."""
        try:
            return self._known[raw]
        except KeyError:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            plan = self._known[raw] = self._planned(raw)
            return plan

    def _planned(self, raw: bytes) -> Plan | None:
        head = read_head(raw)
        if head is None or head.method != b"POST" or head.length > self._limit:
            return None
        encoded = [value for name, value in head.headers if name == b"content-encoding"]
        if encoded not in ([], [b""], [b"identity"]):
            return None
        try:
            target = parse_target(head.path.decode().removeprefix("/v2/models/"))
            lines = self._relay.forwarded({"headers": head.headers})
        except ModelMoraError:
            return None
        return Plan(head, target.name, target.version, lines) if target.action == "infer" else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
