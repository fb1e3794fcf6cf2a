"""What the command infer shows: texts, tables, and files for images and recordings."""

from __future__ import annotations

import base64
import json
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.exits import one_line
from controlplane.cli.output import Block, Output, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from controlplane.client import InferEvent
    from controlplane.client_types import InferResult

_SHOWN_NUMBERS = 4
_SHOWN_CHARACTERS = 40
_SIDES = ("x_min", "y_min", "x_max", "y_max")


class Shown:
    """Where the answer of one command goes.

    Args:
        labels: what each item of the input is called.
        output: `--output`: a file's name, - for stdout, None to choose one where one is needed.
    """

    def __init__(self, out: Output, labels: Sequence[str], output: str | None) -> None:
        self._out = out
        self._labels = labels
        self._output = output
        if output == "-" and sys.stdout.isatty():
            raise click.UsageError("--output -: will not write to a terminal; name a file.")

    def result(self, result: InferResult) -> None:
        """Show an answer; what is a file is written to one."""
        answers = result.output_data.get("results", [result.output_data])
        files = [_file_of(answer) for answer in answers]
        if self._output is not None or (any(files) and not self._out.as_json):
            self._write(result, answers, files)
            if not self._out.as_json:
                return
        self._out.result(result, self._blocks)

    def events(self, events: Iterable[InferEvent]) -> None:
        """Show a stream: text as it comes, steps on stderr, at last what else there is."""
        told = False
        for event in events:
            if self._out.as_json:
                click.echo(json.dumps({"event": event.event, "data": event.data}))
            elif event.event == "delta":
                click.echo(for_terminal(event.text), nl=False)
                sys.stdout.flush()
                told = True
            elif event.event == "progress":
                click.echo(f"step {event.data['step']} of {event.data['steps']}", err=True)
            elif event.event == "response":
                click.echo(json.dumps(event.data))
                told = True
            elif event.result is not None:
                self._end(event.result, told=told)

    def _end(self, result: InferResult, *, told: bool) -> None:
        if not told:
            self.result(result)
            return
        if "text" in result.output_data:
            click.echo()
        if self._output is not None:
            self._write(result, [result.output_data], [None])

    def _write(
        self, result: InferResult, answers: Sequence[dict[str, Any]], files: Sequence[Any]
    ) -> None:
        for index, (answer, file) in enumerate(zip(answers, files, strict=True)):
            ending, content = file or _as_text(answer)
            if self._output == "-":
                sys.stdout.buffer.write(content)
                continue
            path = self._path(result.model_id, ending, index, len(answers))
            try:
                path.write_bytes(content)
            except OSError as error:
                raise click.UsageError(f"--output {path}: {error.strerror}.") from error
            self._out.note(f"{path} ({len(content):,} bytes)")

    def _path(self, model_id: str, ending: str, index: int, count: int) -> Path:
        if self._output is not None:
            path = Path(self._output)
            return path if count == 1 else path.with_stem(f"{path.stem}-{index + 1}")
        name = model_id.rpartition("/")[2]
        path, number = Path(f"{name}{ending}"), 1
        while path.exists():  # a name that was not asked for overwrites nothing
            path, number = Path(f"{name}-{number}{ending}"), number + 1
        return path

    def _blocks(self, result: InferResult) -> Iterator[Block]:
        output = result.output_data
        if "embedding" in output or "embeddings" in output:
            yield from _embeddings(self._labels, result)
        elif "results" in output:
            yield from self._results(output["results"])
        else:
            yield from _answer(output)
        took = _took(result)
        if took and "dimension" in output:
            yield took
        elif took:  # the answer itself goes into pipes
            self._out.note(took)

    def _results(self, answers: Sequence[dict[str, Any]]) -> Iterator[Block]:
        missing = map(str, range(len(self._labels) + 1, len(answers) + 1))
        labelled = list(zip(chain(map(_shortened, self._labels), missing), answers, strict=False))
        if answers and all(len(answer.get("classes", ())) == 1 for answer in answers):
            rows = [(label, *_class(answer["classes"][0])) for label, answer in labelled]
            yield Table(("input", "label", "score"), rows)
            return
        for label, answer in labelled:
            yield f"{label}:"
            yield from _answer(answer)


def _took(result: InferResult) -> str:
    known = result.metadata
    if known.total_time_ms is None:
        return ""
    tokens = f", {known.usage['total_tokens']} tokens" if known.usage else ""
    return f"{result.model_id}@{result.version}, {known.total_time_ms:.1f} ms{tokens}"


def for_terminal(text: str) -> str:
    """A model's text; on a terminal without what would control it."""
    if not sys.stdout.isatty():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def _answer(answer: dict[str, Any]) -> Iterator[Block]:
    if "classes" in answer:
        yield Table(("label", "score"), [_class(one) for one in answer["classes"]])
    elif "objects" in answer:
        yield Table(("label", "score", "box"), [_object(one) for one in answer["objects"]])
    elif "answer" in answer:
        place = f"{answer['start']} to {answer['end']}"
        yield f"{for_terminal(answer['answer'])}  (score {answer['score']:.4f}, {place})"
    elif "segments" in answer:
        for one in answer["segments"]:
            yield f"[{one['start']:.2f} - {one['end']:.2f}] {for_terminal(one['text'])}"
    elif "text" in answer:
        yield for_terminal(answer["text"])
    else:
        yield json.dumps(answer, indent=2, ensure_ascii=True)


def _class(one: dict[str, Any]) -> tuple[str, str]:
    return one["label"], f"{one['score']:.4f}"


def _object(one: dict[str, Any]) -> tuple[str, str, str]:
    box = ", ".join(f"{one['box'][side]:.0f}" for side in _SIDES)
    return one["label"], f"{one['score']:.4f}", box


def _file_of(answer: dict[str, Any]) -> tuple[str, bytes] | None:
    """Ending and content of an answer's file."""
    for key in ("image", "audio"):
        if isinstance(answer.get(key), str) and isinstance(answer.get("format"), str):
            return f".{answer['format']}", base64.b64decode(answer[key])
    return None


def _as_text(answer: dict[str, Any]) -> tuple[str, bytes]:
    if isinstance(answer.get("text"), str):
        return ".txt", (answer["text"] + "\n").encode()
    return ".json", (json.dumps(answer, indent=2) + "\n").encode()


def _embeddings(labels: Sequence[str], result: InferResult) -> Iterator[Block]:
    from controlplane.client_operations import vectors

    rows = [
        (_shortened(label), str(len(vector)), _first_numbers(vector))
        for label, vector in zip(labels, vectors(result), strict=True)
    ]
    yield Table(("input", "dimension", "embedding"), rows)


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def _first_numbers(vector: Sequence[float]) -> str:
    numbers = ", ".join(f"{number:+.4f}" for number in vector[:_SHOWN_NUMBERS])
    return f"[{numbers}, …]" if len(vector) > _SHOWN_NUMBERS else f"[{numbers}]"
