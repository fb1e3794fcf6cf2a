"""Bodies of inference. What `input_data` and its like hold, by task: `task_schemas.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from controlplane.gateway.rest.schemas import Id, Json, Request, Version

if TYPE_CHECKING:
    from controlplane.inference.infer import InferResult


class InferenceRequest(Request):
    """One call. `input_data` and `parameters` are the task's: GET /api/v1/models/{…}/schema."""

    input_data: Annotated[
        Json,
        Meta(
            description="The task's input, one item or lists of items.",
            examples=[{"text": "How do I reset my password?"}],
        ),
    ]
    parameters: Json = msgspec.field(default_factory=dict)
    priority: Annotated[str, Meta(description="critical, high, medium or low.")] = "medium"
    timeout_seconds: Annotated[
        float | None, Meta(description="How long to wait for the answer, up to 600 seconds.")
    ] = None
    version: Version | None = None
    stream: Annotated[
        bool, Meta(description="Answer with server-sent events while the model works.")
    ] = False


class InferenceUsage(msgspec.Struct, kw_only=True):
    """Tokens, over all items of the call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class InferenceMetadata(msgspec.Struct, kw_only=True):
    """Times in milliseconds; the total includes waiting for the model to be loaded."""

    inference_time_ms: float
    total_time_ms: float
    batch_size: int
    device: str
    usage: InferenceUsage | UnsetType = UNSET


class InferenceResponse(msgspec.Struct, kw_only=True):
    """The answer; `output_data` as the task says."""

    model_id: Id
    version: Version
    output_data: Json
    metadata: InferenceMetadata

    @classmethod
    def of(cls, result: InferResult) -> InferenceResponse:
        known = result.metadata
        return cls(
            model_id=result.model_id,
            version=result.version,
            output_data=result.output_data,
            metadata=InferenceMetadata(
                inference_time_ms=known.inference_time_ms,
                total_time_ms=known.total_time_ms,
                batch_size=known.batch_size,
                device=known.device,
                usage=InferenceUsage(**known.usage) if known.usage else UNSET,
            ),
        )


class TaskSchema(msgspec.Struct, kw_only=True):
    """How a model is asked over REST.

    Attributes:
        input_data, parameters, output_data: JSON schemas.
        streams: with `stream` the model tells of its work before it has ended.
        example: a request's body, where the task has one.
    """

    model_id: Id
    version: Version
    task_type: str
    streams: bool
    input_data: Json
    parameters: Json
    output_data: Json
    example: Json | UnsetType = UNSET
