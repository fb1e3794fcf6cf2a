"""Errors on their way out: one table per transport, one envelope (domain §7).

The tables are keyed by exception class and read through the class hierarchy, so a new kind of
failure that derives from a known one is mapped before anybody thinks of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from controlplane import errors as e
from controlplane.gateway.trace import current_trace_id

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class UnknownRoute(e.ModelMoraError):
    """No such address. Unlike ModelNotFound it says nothing about a model."""

    code = "NOT_FOUND"


class MethodNotAllowed(e.ModelMoraError):
    code = "METHOD_NOT_ALLOWED"


class BodyTooLarge(e.ModelMoraError):
    code = "PAYLOAD_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The request is larger than {limit} bytes (MODELMORA_MAX_REQUEST_BYTES).",
            max_request_bytes=limit,
        )


class UnsupportedMedia(e.ModelMoraError):
    code = "UNSUPPORTED_MEDIA_TYPE"


class NotOffered(e.ModelMoraError):
    """A part of Triton's protocol that ModelMora does not serve."""

    code = "NOT_IMPLEMENTED"


class BodyTooSlow(e.ModelMoraError):
    code = "REQUEST_TIMEOUT"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Nothing of the request's body came for {seconds:g} seconds.")


class ClientGone(e.ModelMoraError):
    """The client closed its connection before the answer was there; nobody is told."""

    code = "CANCELLED"

    def __init__(self) -> None:
        super().__init__("The client is gone.")


class UnwritableAnswer(e.ModelMoraError):
    """The model's answer cannot be written in the form that was asked for."""

    code = "NOT_REPRESENTABLE"

    def __init__(self) -> None:
        super().__init__(
            "The answer holds NaN or Infinity, for which JSON has no form. Ask for binary data: "
            'the request parameter "binary_data_output": true.'
        )


HTTP_STATUS: dict[type[Exception], int] = {
    e.ModelMoraError: 500,
    e.ValidationFailed: 400,
    e.InvalidInput: 400,
    e.BatchSizeExceeded: 400,
    e.InvalidModelId: 400,
    e.InvalidTaskType: 400,
    e.InvalidChecksum: 400,
    e.ArtifactNotAccessible: 400,
    e.UnsafeWeights: 400,
    e.SourceRefused: 400,
    e.TritonModelInvalid: 400,
    e.NoRestInference: 400,
    e.ModelNotFound: 404,
    e.VersionNotFound: 404,
    e.ModelNotLoaded: 404,
    e.LockNotFound: 404,
    e.OperationNotFound: 404,
    e.ModelAlreadyExists: 409,
    e.VersionAlreadyExists: 409,
    e.ModelAlreadyLoaded: 409,
    e.ModelNotReady: 409,
    e.InstallInProgress: 409,
    e.PluginUnavailable: 409,
    e.OperationFinished: 409,
    e.ConcurrentModification: 409,
    e.CurrentVersionProtected: 409,
    e.ModelPinned: 409,
    e.ChecksumMismatch: 409,
    e.InvalidStateTransition: 409,
    e.PreconditionFailed: 412,
    e.BackupExists: 409,
    e.NoDatabase: 404,
    e.LockAlreadyExists: 409,
    e.ModelLocked: 409,
    e.LockDiffers: 409,
    e.LockDrift: 409,
    e.SyncFailed: 409,
    e.KeptModelsTooLarge: 409,
    e.DownloadFailed: 502,
    e.InsufficientMemory: 503,
    e.QueueFull: 503,
    e.ModelUnhealthy: 503,
    e.ServiceUnavailable: 503,
    e.LoadTimeout: 504,
    e.LoadInterrupted: 503,
    e.InferenceTimeout: 504,
    e.SourceBeingRead: 503,
    e.DatabaseUnusable: 503,
    e.InsufficientDisk: 507,
    UnknownRoute: 404,
    MethodNotAllowed: 405,
    BodyTooLarge: 413,
    UnsupportedMedia: 415,
    BodyTooSlow: 408,
    ClientGone: 499,  # as nginx logs it; never sent
    UnwritableAnswer: 422,
    NotOffered: 501,
}

# Triton's own protocol knows no "bad name" and no "not ready": for its clients both mean that
# there is no such model to call, now or ever.
V2_HTTP_STATUS = HTTP_STATUS | {e.InvalidModelId: 404, e.ModelNotReady: 503}

GRPC_CODE: dict[type[Exception], grpc.StatusCode] = {
    e.ModelMoraError: grpc.StatusCode.INTERNAL,
    e.ValidationFailed: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    e.BatchSizeExceeded: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidModelId: grpc.StatusCode.NOT_FOUND,
    e.InvalidTaskType: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidChecksum: grpc.StatusCode.INVALID_ARGUMENT,
    e.ArtifactNotAccessible: grpc.StatusCode.FAILED_PRECONDITION,
    e.UnsafeWeights: grpc.StatusCode.FAILED_PRECONDITION,
    e.SourceRefused: grpc.StatusCode.FAILED_PRECONDITION,
    e.TritonModelInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    e.NoRestInference: grpc.StatusCode.FAILED_PRECONDITION,
    e.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    e.VersionNotFound: grpc.StatusCode.NOT_FOUND,
    e.OperationNotFound: grpc.StatusCode.NOT_FOUND,
    e.ModelNotLoaded: grpc.StatusCode.FAILED_PRECONDITION,
    e.ModelAlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    e.VersionAlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    e.ModelAlreadyLoaded: grpc.StatusCode.ALREADY_EXISTS,
    e.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    e.InstallInProgress: grpc.StatusCode.FAILED_PRECONDITION,
    e.PluginUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    e.OperationFinished: grpc.StatusCode.FAILED_PRECONDITION,
    e.ConcurrentModification: grpc.StatusCode.ABORTED,
    e.CurrentVersionProtected: grpc.StatusCode.FAILED_PRECONDITION,
    e.ModelPinned: grpc.StatusCode.FAILED_PRECONDITION,
    e.ChecksumMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.InvalidStateTransition: grpc.StatusCode.FAILED_PRECONDITION,
    e.PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    e.LockNotFound: grpc.StatusCode.NOT_FOUND,
    e.LockAlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    e.ModelLocked: grpc.StatusCode.FAILED_PRECONDITION,
    e.LockDiffers: grpc.StatusCode.FAILED_PRECONDITION,
    e.LockDrift: grpc.StatusCode.FAILED_PRECONDITION,
    e.SyncFailed: grpc.StatusCode.FAILED_PRECONDITION,
    e.KeptModelsTooLarge: grpc.StatusCode.FAILED_PRECONDITION,
    e.DownloadFailed: grpc.StatusCode.UNAVAILABLE,
    e.InsufficientMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.InsufficientDisk: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.ModelUnhealthy: grpc.StatusCode.UNAVAILABLE,
    e.ServiceUnavailable: grpc.StatusCode.UNAVAILABLE,
    e.DatabaseUnusable: grpc.StatusCode.UNAVAILABLE,
    e.LoadTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    e.LoadInterrupted: grpc.StatusCode.UNAVAILABLE,
    e.InferenceTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    BodyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BodyTooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    ClientGone: grpc.StatusCode.CANCELLED,
    UnwritableAnswer: grpc.StatusCode.OUT_OF_RANGE,
    NotOffered: grpc.StatusCode.UNIMPLEMENTED,
}

GENERIC_MESSAGE = "Something went wrong inside ModelMora. The log tells more under this trace id."


def lookup(table: Mapping[type[Exception], T], error: Exception, default: T) -> T:
    """The entry of the error's class, or of its nearest ancestor in the table."""
    return next((table[c] for c in type(error).__mro__ if c in table), default)


def envelope(code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of every REST error; `details` and `trace_id` are left out when empty."""
    body: dict[str, Any] = {"code": code, "message": message}
    if details:
        body["details"] = dict(details)
    if trace_id := current_trace_id():
        body["trace_id"] = trace_id
    return {"error": body}


def retry_after(error: Exception) -> str | None:
    """Value of the Retry-After header (whole seconds, RFC 9110 §10.2.3), None for none."""
    seconds = getattr(error, "retry_after", None)
    return None if seconds is None else str(math.ceil(seconds))
