"""How models, their tasks and their versions are called (domain §2). Rules only, no I/O."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from controlplane.errors import InvalidChecksum, InvalidModelId, InvalidTaskType, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

# The hub's rule for names, per part: no leading or trailing '-' or '.', no '--', no '..'. That is
# what makes '{org}--{repo}' collision-free as a Triton model name.
_PART = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")
_SEMVER = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
# Git's own rule for branch and tag names is wider; this keeps what a path or URL can carry.
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
SHORT = 255
MEDIUM = 1000
TEXT = 100_000
# One below SHORT: the Triton name is one longer, and a folder's name has at most 255 bytes.
_ID_LENGTH = SHORT - 1
# A plugin's task: an entry point's name, a database column, a label of metrics, part of a path.
_TASK = re.compile(r"[a-z][a-z0-9_]{0,49}")
# Words that stand for something else where tasks are written (protos/modelmora/v1/common.proto).
_NO_PLUGIN_TASKS = {"plugin", "unspecified"}


class ModelId(msgspec.Struct, frozen=True, order=True):
    """`{organization}/{repository}`, case-sensitive, at most 254 characters."""

    organization: str
    repository: str

    def __str__(self) -> str:
        return f"{self.organization}/{self.repository}"

    @property
    def triton_name(self) -> str:
        """Name of the model in Triton and of its folder in the model repository."""
        return f"{self.organization}--{self.repository}"

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Read a model id.

        Raises:
            InvalidModelId: saying which rule the text breaks.
        """
        parts = text.split("/")
        if len(parts) != 2:
            why = "it has no organization" if len(parts) == 1 else "it has more than one slash"
            raise InvalidModelId(text, why)
        if len(text) > _ID_LENGTH:
            raise InvalidModelId(text, f"it is longer than {_ID_LENGTH} characters")
        for part in parts:
            if not _PART.fullmatch(part):
                raise InvalidModelId(
                    text,
                    f"{part!r} must be letters, digits, '-', '_' and '.', "
                    "beginning and ending with a letter, digit or '_'",
                )
            if "--" in part or ".." in part:
                raise InvalidModelId(text, f"{part!r} must not contain '--' or '..'")
        return cls(*parts)

    @classmethod
    def from_any_spelling(cls, name: str) -> ModelId:
        """Read a model id, its URL-encoded form or its Triton name.

        Raises:
            InvalidModelId: as `parse`.
        """
        text = unquote(name)
        if "/" not in text and text.count("--") == 1:
            text = text.replace("--", "/")
        return cls.parse(text)


class TaskType(str, Enum):
    """What a model does: one of the domain's tasks (§2.7), `custom`, or the task of a plugin.

    A plugin's task is a member too, made when its name is first read: the same object each time,
    so `is` compares them all. It is one whether the plugin is installed or not (a model outlives
    its plugin); `parse` and `refusal` say what can be served. Iterating gives the ones below.
    """

    TXT2EMBED = "txt2embed"
    TXT2TXT = "txt2txt"
    TXT2IMG = "txt2img"
    IMG2TXT = "img2txt"
    IMG2EMBED = "img2embed"
    IMG2IMG = "img2img"
    AUDIO2TXT = "audio2txt"
    TXT2AUDIO = "txt2audio"
    CLASSIFICATION = "classification"
    OBJECT_DETECTION = "object_detection"
    QUESTION_ANSWERING = "question_answering"
    # Ours, not the domain's: a ready-made Triton model, whose tensors are its own affair.
    CUSTOM = "custom"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def _missing_(cls, value: object) -> TaskType | None:
        if not isinstance(value, str) or not _TASK.fullmatch(value) or value in _NO_PLUGIN_TASKS:
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper(), value
        found = cls._value2member_map_.setdefault(value, member)
        assert isinstance(found, TaskType)
        return found

    @property
    def of_plugin(self) -> bool:
        """True for a task that is not built in."""
        return self._name_ not in TaskType.__members__

    @property
    def refusal(self) -> str | None:
        """Why no model of this task can be installed; None when it can."""
        if not self.of_plugin:
            return None
        missing = "no plugin that serves it is installed (modelmora plugins lists those that are)"
        return _plugin_tasks.get(self.value, missing)

    @classmethod
    def named(cls, text: str) -> TaskType:
        """A task of that name, which need not be one that can be served.

        Raises:
            InvalidTaskType: it cannot be a task's name.
        """
        try:
            return cls(text)
        except ValueError:
            raise InvalidTaskType(text, servable_tasks()) from None

    @classmethod
    def parse(cls, text: str) -> TaskType:
        """Read a task type; case does not matter and '-' reads as '_'.

        Raises:
            InvalidTaskType: listing the supported values; for a task whose plugin cannot be used,
                saying why.
        """
        name = text.strip().lower().replace("-", "_")
        supported = servable_tasks()
        if name not in supported:
            raise InvalidTaskType(text, supported, _plugin_tasks.get(name))
        return cls(name)


# Each plugin's task and why it cannot be served, None for one that can.
_plugin_tasks: dict[str, str | None] = {}


def know_plugin_tasks(tasks: Mapping[str, str | None]) -> None:
    """Tell which tasks the installed plugins serve; what was told before is forgotten.

    They are facts of the Python environment, read when the service starts and whenever somebody
    asks for its plugins (`plugins.py`).

    Args:
        tasks: why each cannot be served after all, None for one that can.
    """
    global _plugin_tasks  # one swap: others read it meanwhile
    _plugin_tasks = dict(tasks)


def servable_tasks() -> list[str]:
    """Tasks that have a converter and a backend, or need none; others are refused at registration
    rather than at the first request (domain C-02)."""
    plugins = sorted(name for name, refusal in _plugin_tasks.items() if refusal is None)
    return [task.value for task in TaskType] + plugins


def plugin_task_fault(name: str) -> str | None:
    """What is wrong with a name for a plugin's task; None when nothing is."""
    if not _TASK.fullmatch(name):
        return "a task is 1 to 50 lower-case letters, digits and '_', beginning with a letter"
    if name in _NO_PLUGIN_TASKS or name in TaskType.__members__.values():
        return f"{name!r} is taken: it means something else where tasks are written"
    return None


# As a version's name it stands for the newest ready one.
LATEST = "latest"


def check_version_name(text: str) -> str:
    """The version string itself when it keeps the rules (domain §2.3).

    Raises:
        ValidationFailed: on field `version`.
    """
    errors = version_errors(text)
    if errors:
        raise ValidationFailed(errors)
    return text


def check_checksum(text: str) -> str:
    """The checksum itself when it is `sha256:` and 64 hexadecimal digits.

    Raises:
        InvalidChecksum: otherwise.
    """
    if not _CHECKSUM.fullmatch(text):
        raise InvalidChecksum(text)
    return text


def version_sort_key(text: str) -> tuple[Any, ...]:
    """Order of versions: names below semantic versions, those as semver.org §11 orders them."""
    match = _SEMVER.fullmatch(text)
    if match is None:
        return (0, text)
    major, minor, patch, pre = match.groups()
    # Identifiers of a pre-release: numbers by value and below words.
    parts = [(0, int(x), "") if x.isdecimal() else (1, 0, x) for x in (pre or "").split(".")]
    return (1, int(major), int(minor), int(patch), pre is None, parts)


def is_semantic(text: str) -> bool:
    """True for a semantic version, with or without a `v` in front."""
    return _SEMVER.fullmatch(text) is not None


def version_errors(text: str) -> dict[str, list[str]]:
    if not 1 <= len(text) <= 100:
        return {"version": ["must be 1 to 100 characters long"]}
    if text == LATEST:
        return {"version": ["'latest' stands for the newest ready version; name a version"]}
    if not _VERSION.fullmatch(text) or ".." in text or text.endswith(("/", ".")) or "//" in text:
        return {
            "version": [
                "must be a semantic version, branch, tag or commit: letters, digits and . _ / + -"
            ]
        }
    return {}
