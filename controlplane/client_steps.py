"""What the client's operations are made of: calls and pauses, without an HTTP library.

An operation is a generator: it yields steps, is sent their answers (or thrown their errors) and
returns its result. `client.py` performs the steps, waiting or awaiting.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from controlplane.client_types import ModelMoraApiError
from controlplane.errors import InvalidModelId
from controlplane.registry.model import ModelId

if TYPE_CHECKING:
    from controlplane.client_sse import Listen

T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request.

    Attributes:
        result: what the body is decoded to; None when there is none, bytes as it is.
        content: a body that is not JSON, of `content_type`.
        also: statuses beyond 2xx whose body is an answer, not an error.
        timeout: seconds to wait for the answer; None waits as long as the server works, which
            has deadlines of its own.
    """

    method: str
    path: str
    result: type[T]
    json: Any = None
    content: bytes | None = None
    content_type: str = "application/json"
    params: dict[str, Any] = {}
    also: tuple[int, ...] = ()
    timeout: float | None = 30.0


class Pause(msgspec.Struct, frozen=True):
    seconds: float


Steps = Generator["Call[Any] | Pause | Listen", Any, T]


def ask(method: str, path: str, result: type[T], **more: Any) -> Steps[T]:
    """One call; `more` are further fields of `Call`."""
    answer: T = yield Call(method=method, path=path, result=result, **more)
    return answer


def model_path(model_id: str, action: str = "") -> str:
    """Address of a model, and of what can be done with it.

    Raises:
        ModelMoraApiError: `model_id` is none.
    """
    return f"/api/v1/models/{spelled(model_id)}{action}"


def spelled(model_id: str) -> str:
    """A model id as a path carries it. Raises as `model_path`."""
    # Checked here, because '..' or a second slash would address another endpoint.
    try:
        return quote(str(ModelId.from_any_spelling(model_id)))
    except InvalidModelId as error:
        raise ModelMoraApiError(error.code, error.message, error.details, 400) from error


def given(**fields: Any) -> dict[str, Any]:
    """Those fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
