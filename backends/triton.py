"""What all backends do on Triton's side: logging, the version folder, parameters, errors.

Protocol: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import triton_python_backend_utils as pb_utils

from backends import engines
from backends.engines.native import member_of
from backends.errors import BackendError, InputError, RequestAbandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

# What Triton takes to deal with a client that has gone away, and much more.
_SETTLING_SECONDS = 0.5


class _TritonLog(logging.Handler):
    """Sends our log lines to Triton's log, which the control plane reads."""

    def emit(self, record: logging.LogRecord) -> None:
        write = {
            logging.ERROR: pb_utils.Logger.log_error,
            logging.WARNING: pb_utils.Logger.log_warn,
        }.get(record.levelno, pb_utils.Logger.log_info)
        write(self.format(record))


def log_to_triton() -> None:
    """Send the log of this process to Triton's."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_TritonLog()])


def version_folder(args: Mapping[str, str]) -> Path:
    """The folder of the version being loaded, of what Triton gives `initialize`.

    Where the control plane has one of Triton's own backends run its graph, `open_engine` opens it
    there from now on.
    """
    engines.use_member(member_of(args))
    return Path(args["model_repository"]) / args["model_version"]


def device_id(args: Mapping[str, str]) -> int:
    """Which CUDA device the instance is for; 0 where Triton leaves the choice to us."""
    on_gpu = args.get("model_instance_kind") == "GPU"
    return int(args["model_instance_device_id"]) if on_gpu else 0


def load_failure(error: BackendError) -> Exception:
    """What `initialize` is to raise: Triton gives its text as the load's error."""
    failure: Exception = pb_utils.TritonModelException(str(error))
    return failure


def opened(args: Mapping[str, str], open_artefact: Callable[..., T]) -> T:
    """What `initialize` is to keep: the artefact of the version, opened for its device.

    Args:
        args: what Triton gives `initialize`.
        open_artefact: called with the version's folder and `device_id`; raises BackendError.

    Raises:
        pb_utils.TritonModelException: in one sentence, which Triton gives as load error.
    """
    log_to_triton()
    try:
        return open_artefact(version_folder(args), device_id=device_id(args))
    except BackendError as error:
        raise load_failure(error) from error


def parameters(request: Any) -> dict[str, Any]:
    """The request's parameters, the model's own and Triton's.

    Raises:
        InputError: a number among them is none (NaN, infinite), which Triton writes as no JSON.
    """
    try:
        given: dict[str, Any] = json.loads(request.parameters() or "{}")
    except ValueError as error:
        raise InputError("The request's parameters hold what is no finite number.") from error
    return given


def one_element(request: Any, name: str) -> Any:
    """The only element of an input tensor; None when the request has no such input.

    Raises:
        InputError: it has more than one, or none.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise InputError(f"{name} must have exactly one element, got {len(values)}.")
    return values[0]


def failed(error: BackendError) -> Any:
    """The response that tells a client of a failure, with Triton's code for it."""
    if isinstance(error, InputError):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, RequestAbandoned):
        code = pb_utils.TritonError.CANCELLED
    else:
        code = pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def failed_on_stream(error: BackendError) -> Any:
    """As `failed`, of a decoupled model.

    A gRPC stream carries an error's text but not its code; the text says then whose fault it is,
    in gRPC's word for it, so that the REST API can answer 400.
    """
    marked = InputError(f"[INVALID_ARGUMENT] {error}") if isinstance(error, InputError) else error
    return failed(marked)


def answer_together(
    requests: Sequence[Any],
    read: Callable[[Any], Any],
    run: Callable[[list[Any], Callable[[int], bool]], Sequence[dict[str, Any] | BackendError]],
) -> list[Any]:
    """Responses to the requests of one execution, computed together; a bad one fails alone.

    Args:
        read: checks one request; raises InputError.
        run: computes all accepted ones: per request the output arrays by name, or a failure. It
            may ask whether the request with an index is abandoned.
    """
    responses: dict[int, Any] = {}
    accepted: dict[int, Any] = {}
    for index, request in enumerate(requests):
        try:
            accepted[index] = read(request)
        except InputError as error:
            responses[index] = failed(error)
    places = list(accepted)
    results = run(
        list(accepted.values()), lambda number: bool(requests[places[number]].is_cancelled())
    )
    for index, result in zip(places, results, strict=True):
        responses[index] = failed(result) if isinstance(result, BackendError) else answered(result)
    return [responses[index] for index in range(len(requests))]


def answered(outputs: Mapping[str, Any]) -> Any:
    """A response of these arrays, by the outputs' names."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, values) for name, values in outputs.items()]
    )


def arrays(request: Any, names: Sequence[str]) -> dict[str, Any]:
    """Those of the inputs that the request has, as numpy arrays, by name."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names}
    return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}


def send_last(sender: Any, response: Any) -> None:
    """Send a decoupled request's last response.

    Triton is told of the end of a cancelled request a moment later: an end that comes while it
    deals with the cancellation kills it, with all its models (2.51: a race in its gRPC front end;
    tests/integration/test_cancelled_streams.py).
    """
    if not sender.is_cancelled():
        _send_last(sender, response)
        return
    timer = threading.Timer(_SETTLING_SECONDS, _send_last, (sender, response))
    timer.daemon = True
    timer.start()


def _send_last(sender: Any, response: Any) -> None:
    # Never without a response: that end has a way of its own through Triton, which races with
    # cancellations at any time.
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
