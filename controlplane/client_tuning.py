"""The client's operation that has a model's engines measured again; see `client_operations`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.client_background import await_installation
from controlplane.client_operation_types import Operation
from controlplane.client_steps import Steps, ask, given, model_path

if TYPE_CHECKING:
    from controlplane.client_types import ModelInfo, OnProgress


def begin_tuning(
    model_id: str,
    version: str | None = None,
    *,
    engine: str | None = None,
    precision: str | None = None,
) -> Steps[Operation]:
    """Start to measure the engines of an installed model again; returns at once."""
    body = given(version=version, engine=engine, precision=precision)
    return ask("POST", model_path(model_id, "/tune"), Operation, json=body)


def tune(
    model_id: str,
    version: str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
    *,
    engine: str | None = None,
    precision: str | None = None,
) -> Steps[ModelInfo]:
    """Measure the engines of an installed model again and serve it with the best one.

    It is served as before meanwhile; a loaded one is loaded anew at the end.

    Args:
        version: None is the current one.
        engine, precision: what is to serve it; None or `auto` chooses the fastest by measurement.
        on_progress, timeout: as `install`.

    Raises:
        InstallFailed: with the server's reason; it is served as before.
        WaitTimeout: it goes on at the server.
    """
    operation = yield from begin_tuning(model_id, version, engine=engine, precision=precision)
    return (yield from await_installation(operation, on_progress, timeout))
