"""The error responses of the OpenAPI document."""

from __future__ import annotations

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from controlplane.gateway.rest.schemas import ErrorResponse

_TRACE = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"
_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_EXAMPLES = {
    400: (
        "The request breaks a rule; details.fields names the fields",
        "VALIDATION_ERROR",
        "priority: must be one of critical, high, medium, low",
        {"fields": {"priority": ["must be one of critical, high, medium, low"]}},
    ),
    404: (
        "There is no such model, version or loaded model",
        "MODEL_NOT_FOUND",
        f"Model '{_MODEL}' is not registered.",
        {"model_id": _MODEL},
    ),
    409: (
        "The model is not in a state for this",
        "MODEL_ALREADY_LOADED",
        f"Model '{_MODEL}' is already loaded.",
        {"model_id": _MODEL},
    ),
    412: (
        "The model is not what If-Match names",
        "PRECONDITION_FAILED",
        f"Model '{_MODEL}' is no longer as it was when you read it.",
        {"model_id": _MODEL},
    ),
    413: (
        "The body is too large",
        "PAYLOAD_TOO_LARGE",
        "The request is larger than 268435456 bytes (MODELMORA_MAX_REQUEST_BYTES).",
        {"max_request_bytes": 268435456},
    ),
    415: (
        "The body is not JSON",
        "UNSUPPORTED_MEDIA_TYPE",
        "Send JSON as application/json, not as text/plain.",
        {},
    ),
    500: (
        "The model failed, or ModelMora did",
        "INFERENCE_FAILED",
        f"Model '{_MODEL}' failed: Stub process is not healthy.",
        {"model_id": _MODEL},
    ),
    502: (
        "The hub does not answer",
        "DOWNLOAD_FAILED",
        f"{_MODEL} cannot be downloaded from https://huggingface.co now (HTTP 503).",
        {},
    ),
    507: (
        "The disk is full",
        "INSUFFICIENT_DISK",
        "Not enough disk space in .modelmora/backups: 12 MB needed, 3 MB free.",
        {"path": ".modelmora/backups", "needed_mb": 12.0, "free_mb": 3.0},
    ),
    503: (
        "No room in memory, or Triton is away; see Retry-After",
        "INSUFFICIENT_MEMORY",
        f"Model '{_MODEL}' needs 210 MB and every loaded model is busy or kept.",
        {"model_id": _MODEL, "need_mb": 210.0, "budget_mb": 8192.0},
    ),
    504: (
        "Not done in time",
        "INFERENCE_TIMEOUT",
        f"Model '{_MODEL}' gave no answer within 60 s.",
        {"model_id": _MODEL, "timeout_seconds": 60.0},
    ),
}


def failures(*statuses: int) -> dict[int, ResponseSpec]:
    """The `responses` of a route that can fail with these statuses."""
    return {status: _spec(status) for status in statuses}


def _spec(status: int) -> ResponseSpec:
    description, code, message, details = _EXAMPLES[status]
    error = {"code": code, "message": message, "details": details, "trace_id": _TRACE}
    if not details:
        del error["details"]
    return ResponseSpec(
        data_container=ErrorResponse,
        generate_examples=False,
        description=description + ".",
        examples=[Example(summary=code, value={"error": error})],
    )
