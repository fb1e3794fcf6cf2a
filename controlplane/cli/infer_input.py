"""What the command infer sends: input_data of texts, files and conversations."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


class Given(NamedTuple):
    """The command's arguments that make up the input."""

    texts: tuple[str, ...]
    file: str | None
    images: tuple[str, ...]
    recordings: tuple[str, ...]
    context: str | None
    messages: str | None
    tensors: tuple[str, ...]
    pairs: tuple[str, ...] = ()


def input_data(asked: Given) -> dict[str, Any]:
    """The request's `input_data`; which task it is for is the server's to say.

    Raises:
        click.UsageError: there is no input, or a file cannot be read.
    """
    found: dict[str, Any] = {}
    if asked.messages is not None:
        found["messages"] = _json_file(asked.messages)
    texts = _texts(asked, alone=not (found or asked.images or asked.recordings or asked.tensors))
    if texts is not None:
        found["question" if asked.context is not None else "text"] = texts
    if asked.context is not None:
        found["context"] = asked.context
    if asked.pairs:
        found["text_pair"] = _one_or_all(list(asked.pairs))
    if asked.images:
        found["image"] = _one_or_all([_encoded("--image", path) for path in asked.images])
    if asked.recordings:
        found["audio"] = _one_or_all([_encoded("--audio", path) for path in asked.recordings])
    found |= dict(_tensor(text) for text in asked.tensors)
    if not found:
        raise click.UsageError("Nothing to do: give a TEXT, --file, --image, --audio or --input.")
    return found


def parameters(listed: Sequence[str], normalize: bool | None) -> dict[str, Any]:
    """`NAME=VALUE` each; a value that is JSON is taken as such, anything else as text.

    Raises:
        click.UsageError: one has no name.
    """
    found = dict(_pair("--param", text) for text in listed)
    return {name: _typed(value) for name, value in found.items()} | (
        {} if normalize is None else {"normalize": normalize}
    )


def labels(asked: Given, data: dict[str, Any]) -> list[str]:
    """What each item of the input is called, for people."""
    texts = data.get("question", data.get("text", []))
    listed = [texts] if isinstance(texts, str) else list(texts)
    if len(asked.pairs) > 1:
        return list(asked.pairs)
    return listed or [*asked.images, *asked.recordings]


def _texts(asked: Given, *, alone: bool) -> str | list[str] | None:
    """One text as it is, several as a list; without any, what stdin holds."""
    listed = [_stdin_text() if text == "-" else text for text in asked.texts]
    if asked.file is not None:
        return [*listed, *_lines(asked.file)] or None
    if not listed and alone and not sys.stdin.isatty():
        listed = [text] if (text := _stdin_text()).strip() else []
    return _one_or_all(listed) if listed else None


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _stdin_text() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except OSError:  # there is none
        return ""
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin: not UTF-8 text ({error.reason}).") from error


def _lines(file: str) -> list[str]:
    """The file's lines, blank ones left out."""
    lines = _text_file("--file", file).split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


def _text_file(option: str, file: str) -> str:
    try:
        return _read(option, file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{option} {file}: not UTF-8 text ({error.reason}).") from error


def _read(option: str, file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{option} {file}: {error.strerror or error}.") from error


def _encoded(option: str, path: str) -> str:
    """A file as base64; an address as it is, for servers that fetch these."""
    if path.startswith(("http://", "https://")):
        return path
    return base64.b64encode(_read(option, path)).decode()


def _json_file(file: str) -> Any:
    try:
        return json.loads(_text_file("--messages", file))
    except ValueError as error:
        raise click.UsageError(f"--messages {file}: not JSON ({error}).") from error


def _tensor(text: str) -> tuple[str, Any]:
    name, value = _pair("--input", text)
    if value.startswith("@"):
        return name, {"base64": _encoded("--input", value[1:])}
    return name, _typed(value)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text}: write NAME=VALUE.")
    return name, value


def _typed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
