"""Runs all generations of a model, step by step, in one thread of its own.

Each turn: what was cancelled leaves; a part of one new request's prompt is computed, or the prompts
of several new ones that are short; then every running generation gets its next token. So new
requests delay others' tokens by one such part, those that come together begin together, and no
request waits for the end of another unless all places are taken.

Places are limited twice: by number, and by the memory that keys and values of all requests would
take at their full length.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from backends.errors import BackendError, EngineError, RequestAbandoned

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Several

    from backends.text_generation.decoding import Decoder
    from backends.text_generation.requests import GenerationRequest
    from backends.text_generation.sequence import Receiver, Sequence

    Open = Callable[[GenerationRequest, Receiver], Sequence]

_log = logging.getLogger(__name__)

MAX_RUNNING = 32
# Tokens of new prompts that a turn computes, at most (`decoding.CHUNK` of a longer one).
PROMPT_TOKENS = 512
# How often a loop that computes nothing looks for cancelled requests, in seconds. It only waits
# when there is nothing at all to do, so this is the longest that a stop may take.
_PAUSE = 1.0


def may_join(tokens: int, running: Several[int], budget: int) -> bool:
    """Whether a request finds a place beside those that run.

    Args:
        tokens: prompt and longest answer.
        running: the same of those that run. In a batch all rows are as long as the longest.
        budget: tokens that may be kept in memory. One request alone always has a place.
    """
    if not running:
        return True
    rows = len(running) + 1
    return rows <= MAX_RUNNING and rows * max(tokens, *running) <= budget


def begun_together(prompts: Several[int]) -> int:
    """How many of the requests that wait to begin are advanced in one turn: the first always, and
    those after it whose whole prompts fit as well.

    Args:
        prompts: their tokens, the longest waiting first.
    """
    tokens = 0
    for number, prompt in enumerate(prompts):
        tokens += prompt
        if tokens > PROMPT_TOKENS:
            return max(1, number)
    return len(prompts)


class Scheduler:
    """The thread, and the requests that wait for it.

    `submit` may be called from any thread and returns at once; receivers are called in the
    scheduler's thread.
    """

    def __init__(self, decoder: Decoder, open_sequence: Open, *, token_budget: int) -> None:
        """
        Args:
            open_sequence: makes a request into a sequence; what it raises fails the request.
            token_budget: see `may_join`.
        """
        self._decoder, self._open, self._budget = decoder, open_sequence, token_budget
        self._waiting: deque[tuple[GenerationRequest, Receiver]] = deque()
        self._starting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, receiver: Receiver) -> None:
        """Have a request answered; its receiver hears of it from now on."""
        with self._changed:
            if not self._stopping:
                self._waiting.append((request, receiver))
                self._changed.notify()
                return
        _tell(receiver, RequestAbandoned("The model is being unloaded."))

    def stop(self) -> None:
        """End the thread; requests that are not answered fail. Returns when it is over."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._drop_cancelled()
                self._admit()
                self._prefill()
                self._step()
            except Exception as error:  # noqa: BLE001 - those who wait are told, the next are served
                _log.exception("the generation loop failed")
                self._fail_all(EngineError(f"The generation failed: {_reason(error)}."))
        self._fail_all(RequestAbandoned("The model is being unloaded."))

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._stopping or self._waiting or self._starting or self._running):
                self._changed.wait(_PAUSE)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        for group in (self._starting, self._running):
            for sequence in [s for s in group if _is_gone(s.receiver)]:
                group.remove(sequence)
                self._guarded(sequence, sequence.cancel)
        with self._changed:
            waiting = list(self._waiting)
        for entry in [entry for entry in waiting if _is_gone(entry[1])]:
            with self._changed:
                self._waiting.remove(entry)
            _tell(entry[1], RequestAbandoned("The request was cancelled."))

    def _admit(self) -> None:
        while True:
            active = [_longest(s.request) for s in [*self._starting, *self._running]]
            with self._changed:
                if not self._waiting or not may_join(
                    _longest(self._waiting[0][0]), active, self._budget
                ):
                    return
                request, receiver = self._waiting.popleft()
            try:
                self._starting.append(self._open(request, receiver))
            except Exception as error:  # noqa: BLE001 - fails this request alone
                _tell(receiver, _as_backend_error(error))

    def _prefill(self) -> None:
        together = begun_together([len(s.request.prompt) for s in self._starting])
        for sequence in self._starting[:together]:
            self._advance(sequence)

    def _advance(self, sequence: Sequence) -> None:
        try:
            scores = next(sequence.prefill)
        except Exception as error:  # noqa: BLE001 - fails this request alone
            self._starting.remove(sequence)
            _tell(sequence.receiver, _as_backend_error(error))
            return
        if scores is None:
            return
        self._starting.remove(sequence)
        self._running.append(sequence)
        self._guarded(sequence, lambda: self._take(sequence, scores))

    def _step(self) -> None:
        running = list(self._running)
        if not running:
            return
        results = self._decoder.step([s.state for s in running], [s.token for s in running])
        for sequence, scores in zip(running, results, strict=True):
            if isinstance(scores, Exception):
                self._leave(sequence)
                _tell(sequence.receiver, _as_backend_error(scores))
            else:
                self._guarded(sequence, lambda s=sequence, r=scores: self._take(s, r))  # type: ignore[misc]

    def _take(self, sequence: Sequence, scores: object) -> None:
        if sequence.take(scores):  # type: ignore[arg-type]
            self._leave(sequence)

    def _guarded(self, sequence: Sequence, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - fails this request alone
            self._leave(sequence)
            _tell(sequence.receiver, _as_backend_error(error))

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)

    def _fail_all(self, error: BackendError) -> None:
        with self._changed:
            receivers = [receiver for _, receiver in self._waiting]
            self._waiting.clear()
        receivers += [sequence.receiver for sequence in [*self._starting, *self._running]]
        self._starting.clear()
        self._running.clear()
        for receiver in receivers:
            _tell(receiver, error)


def _tell(receiver: Receiver, error: BackendError) -> None:
    """Fail a request; when even that does not reach anybody, the others still go on."""
    try:
        receiver.fail(error)
    except Exception:  # noqa: BLE001 - the others still go on
        _log.warning("an error reached nobody: %s", error, exc_info=True)


def _is_gone(receiver: Receiver) -> bool:
    try:
        return receiver.is_gone()
    except Exception:  # noqa: BLE001 - the others still go on
        _log.warning("a request's state cannot be told", exc_info=True)
        return True


def _longest(request: GenerationRequest) -> int:
    return len(request.prompt) + request.generation.max_tokens


def _as_backend_error(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    _log.warning("a generation failed", exc_info=error)
    return EngineError(f"The generation failed: {_reason(error)}.")


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
