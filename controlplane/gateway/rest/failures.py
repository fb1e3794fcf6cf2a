"""Every failure of a REST request as the one envelope, Litestar's own included."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from controlplane.errors import ModelMoraError, ValidationFailed
from controlplane.gateway.errors import (
    GENERIC_MESSAGE,
    HTTP_STATUS,
    BodyTooLarge,
    MethodNotAllowed,
    UnknownRoute,
    envelope,
    lookup,
    retry_after,
)

log = structlog.get_logger(__name__)

AnyRequest = Request[Any, Any, Any]


def domain_failure(_: AnyRequest, error: ModelMoraError) -> Response[bytes]:
    """One of our own errors."""
    headers = {}
    if wait := retry_after(error):
        headers["Retry-After"] = wait
    status = lookup(HTTP_STATUS, error, 500)
    if status >= 500:
        log.warning(
            "request failed",
            error_code=error.code,
            error=error.message,
            error_details=error.details,
            exc_info=error if status == 500 else None,
        )
    return _response(status, envelope(error.code, error.message, error.details), headers)


def framework_failure(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """One of Litestar's: unknown route, wrong method, wrong parameters, too large a body."""
    if error.status_code == 500:
        return unexpected_failure(request, error)
    ours = _as_ours(request, error)
    response = _response(
        error.status_code, envelope(ours.code, ours.message, ours.details), error.headers or {}
    )
    if error.status_code == 413:  # the rest of the body was not read: the connection is spent
        response.headers["Connection"] = "close"
    return response


def unexpected_failure(_: AnyRequest, error: Exception) -> Response[bytes]:
    """A bug: told to the log with its stack, to the client without a word of it."""
    log.error("unexpected error", error_code="INTERNAL_ERROR", exc_info=error)
    return _response(500, envelope("INTERNAL_ERROR", GENERIC_MESSAGE), {})


EXCEPTION_HANDLERS: dict[Any, Any] = {
    ModelMoraError: domain_failure,
    HTTPException: framework_failure,
    Exception: unexpected_failure,
}


def _as_ours(request: AnyRequest, error: HTTPException) -> ModelMoraError:
    place = f"{request.scope['method']} {request.scope['path']}"
    if isinstance(error, ValidationException):
        return ValidationFailed(_fields(error))
    if error.status_code == 404:
        return UnknownRoute(f"There is no {place}. See /docs for what there is.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", "")
        return MethodNotAllowed(f"{place} is not allowed; allowed: {allowed}.")
    if error.status_code == 413:
        return BodyTooLarge(request.app.state.max_request_bytes)
    return ValidationFailed({"request": [error.detail]}, error.detail)


def _fields(error: ValidationException) -> dict[str, list[str]]:
    """Litestar's list of messages as the map of domain §7.2."""
    fields: dict[str, list[str]] = {}
    for entry in error.extra if isinstance(error.extra, list) else []:
        name = entry.get("key", "request")
        if name == "data":
            name, entry = "body", {"message": "a JSON body is required"}
        fields.setdefault(name, []).append(entry["message"])
    return fields or {"request": [error.detail]}


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> Response[bytes]:
    # `str`: details may hold what JSON has no form for, and an error must never fail to be told.
    content = msgspec.json.encode(body, enc_hook=str)
    return Response(content, status_code=status, headers=headers, media_type="application/json")
