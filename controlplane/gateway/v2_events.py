"""Triton's server-sent events on their way to the client: what is no JSON is not passed on.

Triton writes NaN and Infinity as such, for which JSON has no form: a client's parser fails on them
in whatever way it does. Such an event becomes an error in Triton's form, and the stream goes on:
the next event may be as good as the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from controlplane.gateway.errors import UnwritableAnswer
from controlplane.gateway.v2_checks import check_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_END = b"\n\n"
_DATA = b"data: "
# An event that is longer is passed on unseen rather than held.
_MOST_HELD = 16 * 2**20
_REFUSED = (
    "An event of the answer holds NaN or Infinity, for which JSON has no form. Ask over gRPC "
    "(ModelStreamInfer)."
)


async def checked_events(
    chunks: AsyncIterator[bytes], on_refused: Callable[[str], None]
) -> AsyncIterator[bytes]:
    """The chunks, whole events at a time; events that are no JSON as errors.

    Args:
        on_refused: told the error code of each that is.
    """
    held = b""
    async for chunk in chunks:
        held += chunk
        end = held.rfind(_END) + len(_END)
        if end < len(_END):
            if len(held) > _MOST_HELD:
                yield held
                held = b""
            continue
        whole, held = held[:end], held[end:]
        yield whole if _is_plain(whole) else _mended(whole, on_refused)
    if held:
        yield held


def _is_plain(content: bytes) -> bool:
    return b"NaN" not in content and b"Inf" not in content


def _mended(events: bytes, on_refused: Callable[[str], None]) -> bytes:
    return b"".join(
        _event(event, on_refused) + _END for event in events.removesuffix(_END).split(_END)
    )


def _event(event: bytes, on_refused: Callable[[str], None]) -> bytes:
    if not event.startswith(_DATA):
        return event
    try:
        check_answer(event.removeprefix(_DATA))
    except UnwritableAnswer as error:
        on_refused(error.code)
        return _DATA + msgspec.json.encode({"error": _REFUSED})
    return event
