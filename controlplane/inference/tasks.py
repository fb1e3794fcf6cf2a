"""What each task takes and gives over REST (domain §4.6). Rules only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import BatchSizeExceeded, NoRestInference, ValidationFailed
from controlplane.registry.model import TEXT, TaskType

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ITEMS = 1024

# Triton's levels: lower is more urgent (domain §4.4).
PRIORITIES = {"critical": 1, "high": 2, "medium": 3, "normal": 3, "low": 4}
MAX_TIMEOUT_SECONDS = 600.0


class TextBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A checked txt2embed input.

    Attributes:
        texts: 1 to `MAX_ITEMS` texts of 1 to 100,000 characters.
        single: the caller sent one string, not a list; the answer has the same form.
        parameters: request parameters for the backend.
    """

    texts: tuple[str, ...]
    single: bool
    parameters: dict[str, Any]


def check_served_over_rest(model_id: str, task: TaskType) -> None:
    """Whether a task has a form of input and output of ours.

    Raises:
        NoRestInference: it has none.
    """
    if task is TaskType.CUSTOM:
        raise NoRestInference(model_id, task.value)


def priority_level(text: str) -> int:
    """Triton's level of a priority's name.

    Raises:
        ValidationFailed: on field `priority`.
    """
    level = PRIORITIES.get(text.lower())
    if level is None:
        raise ValidationFailed.field("priority", f"must be one of {', '.join(PRIORITIES)}")
    return level


def check_timeout(seconds: float | None, default: float) -> float:
    """The timeout in force, in seconds.

    Raises:
        ValidationFailed: on field `timeout_seconds`, when it is not within (0, 600].
    """
    if seconds is None:
        return default
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ValidationFailed.field("timeout_seconds", "must be above 0 and at most 600 seconds")
    return seconds


def parse_txt2embed(input_data: Mapping[str, Any], parameters: Mapping[str, Any]) -> TextBatch:
    """Check a txt2embed input: `text` (string or list of strings), `normalize`, `prompt_name`.

    Options may stand in either mapping (domain C-19); `parameters` wins.

    Raises:
        ValidationFailed: naming every field that breaks a rule.
        BatchSizeExceeded: more than `MAX_ITEMS` texts.
    """
    merged = {**input_data, **parameters}
    errors = {
        f"input_data.{name}": ["is not a field of txt2embed (text, normalize, prompt_name)"]
        for name in merged
        if name not in {"text", "normalize", "prompt_name", "task_type"}
    }
    if merged.get("task_type", TaskType.TXT2EMBED.value) != TaskType.TXT2EMBED.value:
        errors["input_data.task_type"] = ["must be txt2embed, the task of this model"]
    errors |= _option_error(merged, "normalize", bool, "true or false")
    errors |= _option_error(merged, "prompt_name", str, "a string")
    texts = merged.get("text")
    single = isinstance(texts, str)
    listed: Any = [texts] if single else texts
    if not isinstance(listed, list):
        errors["input_data.text"] = ["must be a string or a list of strings"]
    elif len(listed) > MAX_ITEMS:
        raise BatchSizeExceeded("input_data.text", len(listed), MAX_ITEMS)
    else:
        errors |= _text_errors(listed, single=single)
    if errors:
        raise ValidationFailed(errors)
    options: dict[str, Any] = {
        name: merged[name] for name in ("normalize", "prompt_name") if name in merged
    }
    return TextBatch(texts=tuple(listed), single=single, parameters=options)


def _option_error(
    merged: Mapping[str, Any], name: str, kind: type, meaning: str
) -> dict[str, list[str]]:
    if name in merged and not isinstance(merged[name], kind):
        return {f"parameters.{name}": [f"must be {meaning}"]}
    return {}


def _text_errors(texts: list[Any], *, single: bool) -> dict[str, list[str]]:
    errors = {}
    for index, text in enumerate(texts):
        path = "input_data.text" if single else f"input_data.text[{index}]"
        if not isinstance(text, str):
            errors[path] = ["must be a string"]
        elif not text.strip():
            errors[path] = ["must not be empty or blank"]
        elif len(text) > TEXT:
            errors[path] = [f"must be at most {TEXT} characters (it has {len(text)})"]
        elif not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            errors[path] = ["holds half of a surrogate pair, which is not valid Unicode"]
    return errors
