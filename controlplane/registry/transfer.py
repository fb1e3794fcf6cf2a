"""Receiving files over a network: resumed where they broke off, several at a time."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from controlplane.registry.patience import Transient
from controlplane.registry.stopping import FetchCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from controlplane.registry.file_intake import FileIntake
    from controlplane.registry.stopping import Stop

_AT_ONCE = 4
_T = TypeVar("_T")


class Answer(NamedTuple):
    """What a source sends of a file.

    Attributes:
        start: offset of the first byte that it sends.
        chunks: the bytes.
        size: of the whole file, where the source says so.
        validator: names the content, where the source does (ETag).
    """

    start: int
    chunks: Iterator[bytes]
    size: int | None = None
    validator: str | None = None


class NothingThere(Exception):
    """The source has no bytes beyond what was received: its file is another one than it was."""


def receive_once(
    target: FileIntake,
    ask: Callable[[FileIntake], AbstractContextManager[Answer]],
    size: int | None,
) -> None:
    """One attempt to append what is missing of a file.

    Args:
        size: of the whole file, where the source has announced it; its answer's otherwise.

    Raises:
        Transient: it broke off, or is longer or shorter than it should be.
    """
    if size is not None and target.received == size:
        return
    if size is not None and target.received > size:
        target.restart()
    try:
        with ask(target) as answer:
            _begin(target, answer)
            size = answer.size if size is None else size
            for chunk in answer.chunks:
                target.write(chunk)
                if size is not None and target.received > size:
                    break
    except NothingThere as error:
        target.restart()
        raise Transient("the file changed meanwhile") from error
    _check_length(target, size)


def _begin(target: FileIntake, answer: Answer) -> None:
    """Go on behind what was received, or begin again where the answer does."""
    other = None not in (answer.validator, target.validator) and (
        answer.validator != target.validator
    )
    if answer.start and (other or answer.start != target.received):
        target.restart()
        raise Transient("the source sent another part than it was asked for")
    if target.received and not answer.start:
        target.restart()
    if answer.validator is not None:
        target.name_content(answer.validator)


def _check_length(target: FileIntake, size: int | None) -> None:
    received = target.received
    if size is None or received == size:
        return
    if received > size or target.validator is None:
        target.restart()
    raise Transient(f"{received} of {size} bytes came")


def all_at_once(tasks: Iterable[Callable[[], _T]], stop: Stop) -> list[_T]:
    """Run the tasks, some at a time, begun in their order; their results in that order.

    The first failure stops the others and is raised; FetchCancelled only if there is no other.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="file") as threads:
        futures = [threads.submit(task) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures):
                stop.set()
                for future in futures:
                    future.cancel()
    failures = [e for f in futures if not f.cancelled() and (e := f.exception()) is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, FetchCancelled)):
        raise error
    return [future.result() for future in futures]
