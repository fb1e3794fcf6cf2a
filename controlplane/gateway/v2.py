"""What a call of Triton's protocol needs besides its transport: the model, the lease, the count.

`v2_http.py` and `v2_grpc.py` carry bytes; every decision they share is here, so that a transport
can be replaced without touching it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from controlplane.errors import InferenceFailed, InvalidInput, ModelMoraError
from controlplane.events import InferenceFinished
from controlplane.gateway.errors import ClientGone, NotOffered
from controlplane.gateway.trace import name_model
from controlplane.inference import again
from controlplane.inference.tasks.limits import MAX_TIMEOUT_SECONDS
from controlplane.lifecycle.scheduler import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterator, Sequence

    from controlplane.gateway.services import Services
    from controlplane.registry.model import Servable

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Of the extensions Triton reports, those that a client of ours can use.
EXTENSIONS = frozenset(
    {
        "binary_tensor_data",
        "generate",
        "model_configuration",
        "model_repository",
        "model_repository(unload_dependents)",
        "parameters",
        "schedule_policy",
        "sequence",
        "statistics",
    }
)
SYSTEM_SHARED_MEMORY = "system_shared_memory"
# Triton turns the scores of an output into class labels on request, and dies (segmentation fault,
# 2.51) when the output holds text. No task of ours needs it.
CLASSIFICATION = "classification"
_MAX_RANK = 32
_MAX_DIMENSION = 2**31 - 1
_MAX_ELEMENTS = 2**40  # more than any request can hold, and far from 64 bits
SHARED_MEMORY_OFF = (
    "shared memory is off: with it Triton reads and writes memory that clients name. The setting "
    "allow_shared_memory turns it on where all clients are trusted."
)
LOWEST_PRIORITY = 4
# Triton's texts where a request was not run: a dead process, or a model that has just left.
_NOT_RUN = re.compile(
    r"stub process .*is not healthy|is unhealthy and it will be restarted"
    r"|request for unknown model|has no available versions|is not at ready state",
    re.IGNORECASE,
)


class AnswerLost(Exception):
    """A request ended without any of its answer because a process died: it may be sent again.

    Attributes:
        error: what the caller is told when it is not.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Terms(NamedTuple):
    """What a request says of its turn: `deadline` on the event loop's clock, `timeout` seconds."""

    deadline: float
    timeout: float
    priority: int


class Loss(NamedTuple):
    """A lease whose model died: what was leased, and when by `time.time()`."""

    leased: Servable
    began: float


@dataclass(slots=True)
class Outcome:
    """An inference under way, and how it ended: `error_code` None means well.

    Attributes:
        started, ended: on `time.perf_counter()`; None: when it is published.
    """

    services: Services
    servable: Servable
    protocol: str
    started: float = field(default_factory=time.perf_counter)
    error_code: str | None = None
    batch_size: int | None = None
    ended: float | None = None

    def end(self) -> None:
        """Note the time of a request that has ended and is counted later."""
        self.ended = time.perf_counter()

    def publish(self) -> None:
        """Tell the metrics."""
        servable, ended = self.servable, self.ended
        if ended is None:
            ended = time.perf_counter()
        self.services.bus.publish(
            InferenceFinished(
                model_id=servable.model_id,
                task_type=str(servable.task_type),
                protocol=self.protocol,
                status="error" if self.error_code else "success",
                duration_seconds=ended - self.started,
                batch_size=self.batch_size,
                error_code=self.error_code,
            )
        )


def resolve(services: Services, name: str, version: str | None) -> Servable:
    """The servable a client names, in any spelling; its id goes into the request's log lines.

    Raises:
        InvalidModelId, ModelNotFound, VersionNotFound, ModelNotReady.
    """
    servable = services.store.servable(name, version or None)
    name_model(servable.model_id)
    return servable


def extensions(services: Services) -> frozenset[str]:
    """The extensions of Triton's protocol that are served."""
    shared = {SYSTEM_SHARED_MEMORY} if services.settings.allow_shared_memory else set()
    return EXTENSIONS | shared


def check_shape(shape: Sequence[int]) -> None:
    """Check that the size of a tensor of that shape can be counted at all.

    Triton multiplies dimensions and element size without looking for an overflow: a shape like
    [1, 2**62] of FP32 is 0 bytes to it, fits a request without data, and ends the process that
    gets it (JSON over HTTP: the server itself).

    Raises:
        InvalidInput: it has too many dimensions, an impossible one, or too many elements.
    """
    # A zero counts as one: a product that overflows on its way to zero is no better.
    sizes = [dimension or 1 for dimension in shape]
    if len(sizes) > _MAX_RANK or max(sizes, default=1) > _MAX_DIMENSION:
        raise InvalidInput("An input has an impossible shape.", field="inputs.shape")
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise InvalidInput("The shape of an input has too many elements.", field="inputs.shape")


def refuse_classification(parameters: Container[str]) -> None:
    """Check the names of the parameters that a request sets on an output.

    Raises:
        NotOffered: it asks for classification.
    """
    if CLASSIFICATION in parameters:
        raise NotOffered("The 'classification' parameter of outputs is not offered by ModelMora.")


def server_is_ready(services: Services) -> bool:
    """True while Triton takes requests."""
    return services.server.state == "ready"


def model_is_ready(services: Services, name: str, version: str | None) -> bool:
    """True when a request for the model would be served, which may load it first."""
    try:
        resolve(services, name, version)
    except ModelMoraError:
        return False
    return server_is_ready(services)


def terms(default_timeout: float, *, priority: int = 0, timeout_us: int = 0) -> Terms:
    """Triton's request parameters `priority` and `timeout` as terms of a lease.

    Args:
        default_timeout: seconds for a request that sets none.
        priority: 0 is the default, 1 the highest (Triton's `schedule_policy` extension); ours end
            at 4.
        timeout_us: microseconds, 0 for none; at most 600 seconds count.
    """
    timeout = min(timeout_us / 1e6, MAX_TIMEOUT_SECONDS) if timeout_us else default_timeout
    level = min(priority, LOWEST_PRIORITY) if priority else DEFAULT_PRIORITY
    return Terms(asyncio.get_running_loop().time() + timeout, timeout, level)


def was_not_run(text: str) -> bool:
    """True when Triton's error text says that the model's process was dead or gone."""
    return _NOT_RUN.search(text) is not None


async def served(
    services: Services,
    servable: Servable,
    send: Callable[[Servable], Awaitable[T]],
    terms: Terms,
    *,
    twice: bool = True,
) -> T:
    """Lease the model and send the request; once more when its process died before answering.

    The second lease waits until the model is healthy again, within the same deadline.

    Args:
        send: sends the request to the servable that was leased; raises AnswerLost.
        twice: False where the request must not run again (a sequence has lost its state).

    Raises:
        the `error` of AnswerLost, what `send` raises, and what `Scheduler.lease` raises.
    """
    lease = services.scheduler.lease(servable, deadline=terms.deadline, priority=terms.priority)
    async with lease as leased:
        began = time.time()
        try:
            return await send(leased)
        except AnswerLost as lost:
            note_loss(services, leased, lost, twice=twice)
    return await served_again(services, servable, send, terms, Loss(leased, began))


async def served_again(
    services: Services,
    servable: Servable,
    send: Callable[[Servable], Awaitable[T]],
    terms: Terms,
    loss: Loss,
) -> T:
    """The second try of `served`, when the death that ended the first has been seen."""
    await until_noticed(services, loss.leased, loss.began, terms.deadline)
    lease = services.scheduler.lease(servable, deadline=terms.deadline, priority=terms.priority)
    async with lease as leased:
        try:
            return await send(leased)
        except AnswerLost as lost:
            services.suspect(leased)
            raise lost.error from None


def note_loss(services: Services, leased: Servable, lost: AnswerLost, *, twice: bool) -> None:
    """Note that a process died under a request, which goes on where it may be sent `twice`.

    Raises:
        the `error` of AnswerLost, where it may not.
    """
    services.suspect(leased)
    if not twice:
        raise lost.error from None
    log.warning("request is sent once more", model_id=leased.model_id, reason=str(lost))


async def until_noticed(
    services: Services, servable: Servable, began: float, deadline: float
) -> None:
    """As `again.until_noticed`; also until the server is seen to be gone, if that was it."""
    up = functools.partial(server_is_ready, services)
    await again.until_noticed(services.scheduler, servable, began, deadline, server_is_up=up)


def note_refusal(
    services: Services, servable: Servable, outcome: Outcome, *, clients_fault: bool
) -> None:
    """Note that Triton refused a request; a failure of the model has its health looked at."""
    outcome.error_code = InvalidInput.code if clients_fault else InferenceFailed.code
    if not clients_fault:
        services.suspect(servable)


@contextlib.contextmanager
def counted(
    services: Services, servable: Servable, protocol: str, started: float | None = None
) -> Iterator[Outcome]:
    """Publish InferenceFinished when the block ends, however it ends.

    An error that is passed on from Triton rather than raised is noted in the outcome.

    Args:
        started: `time.perf_counter()` of a request that began before.
    """
    started = time.perf_counter() if started is None else started
    outcome = Outcome(services, servable, protocol, started)
    try:
        yield outcome
    except ModelMoraError as error:
        outcome.error_code = error.code
        raise
    except asyncio.CancelledError:
        outcome.error_code = ClientGone.code
        raise
    except Exception:
        outcome.error_code = outcome.error_code or ModelMoraError.code
        raise
    finally:
        outcome.publish()
