"""Chat messages: checked, and written as the backends read them. Rules only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlplane.inference.tasks.inputs import Contents, Input
from controlplane.inference.tasks.media import MediaRules, read_media
from controlplane.inference.tasks.options import is_unicode
from controlplane.registry.model import TEXT

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Faults, Reference

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 1000
_PART_FORMS = '{"type": "text", "text": "…"}'
_IMAGE_FORMS = '{"type": "image", "image": "…"} or {"type": "image_url", "image_url": {"url": "…"}}'


class Messages(Input, frozen=True, kw_only=True):
    """A conversation: a list of {role, content}; of these lists, a list for several items.

    `content` is a text or a list of parts, as in OpenAI's chat API; the model is given texts. An
    image among the parts of the first question goes to the tensor `image_tensor`: there the model
    puts it.
    """

    image_tensor: str | None = None

    def is_batch(self, value: Any) -> bool:
        return isinstance(value, list) and bool(value) and isinstance(value[0], list)

    def read(self, value: Any, path: str, rules: MediaRules, faults: Faults) -> Contents:
        if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
            faults[path] = [f"must be a list of 1 to {MAX_MESSAGES} messages {{role, content}}"]
            return {self.tensor: b""}
        reader = _Reader(rules, faults, with_images=self.image_tensor is not None)
        messages = [reader.message(item, f"{path}[{i}]") for i, item in enumerate(value)]
        text = json.dumps(messages, ensure_ascii=False)
        if len(text) > TEXT:
            faults[path] = [f"must have at most {TEXT} characters, as JSON (it has {len(text)})"]
        # what has no UTF-8 form is among the faults already
        contents: Contents = {self.tensor: text.encode(errors="replace")}
        if self.image_tensor is not None and reader.images:
            contents[self.image_tensor] = reader.images[0]
        if len(reader.images) > 1:
            faults[path] = [f"must have one image (it has {len(reader.images)})"]
        return contents

    def one(self) -> dict[str, Any]:
        text = {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
        image = {
            "type": "object",
            "properties": {
                "type": {"enum": ["image", "image_url"]},
                "image": {"type": "string", "contentEncoding": "base64"},
                "image_url": {"type": "object", "properties": {"url": {"type": "string"}}},
            },
            "required": ["type"],
        }
        part = {"oneOf": [text, image]} if self.image_tensor else text
        content = {"oneOf": [{"type": "string"}, {"type": "array", "items": part}]}
        message = {
            "type": "object",
            "properties": {"role": {"enum": list(ROLES)}, "content": content},
            "required": ["role", "content"],
        }
        return {"type": "array", "items": message, "minItems": 1, "maxItems": MAX_MESSAGES}

    def schema(self, _: int) -> dict[str, Any]:
        # several conversations are rarely wanted; the documents speak of one
        return {**self.one(), "description": self.about}


class _Reader:
    """Reads the messages of one conversation; keeps what it has found."""

    def __init__(self, rules: MediaRules, faults: Faults, *, with_images: bool) -> None:
        self.images: list[bytes | Reference] = []
        self._questions = 0
        self._rules = rules
        self._faults = faults
        self._with_images = with_images

    def message(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._faults[path] = ["must be an object {role, content}"]
            return {}
        for name in value:
            if name not in ("role", "content"):
                self._faults[f"{path}.{name}"] = ["is not a field of a message (role, content)"]
        if value.get("role") not in ROLES:
            self._faults[f"{path}.role"] = [f"must be one of {', '.join(ROLES)}"]
        self._questions += value.get("role") == "user"
        asks = self._with_images and self._questions == 1 and value.get("role") == "user"
        content = self._content(value.get("content"), f"{path}.content", with_images=asks)
        return {"role": value.get("role"), "content": content}

    def _content(self, value: Any, path: str, *, with_images: bool) -> str:
        if not isinstance(value, list):
            return self._text(value, path)
        read = self._part_of_question if with_images else self._part
        return "".join(read(part, f"{path}[{i}]") for i, part in enumerate(value))

    def _part(self, value: Any, path: str) -> str:
        if isinstance(value, dict) and value.get("type") == "text":
            return self._text(value.get("text"), f"{path}.text")
        self._faults[path] = [f"must be {_PART_FORMS}{self._where_images()}"]
        return ""

    def _where_images(self) -> str:
        return "; an image belongs to the first message of the user" if self._with_images else ""

    def _part_of_question(self, value: Any, path: str) -> str:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind in ("image", "image_url"):
            source = value.get(kind)
            source = source.get("url") if isinstance(source, dict) else source
            image = read_media(source, f"{path}.{kind}", "image", self._rules, self._faults)
            self.images.append(image)
            return ""
        if kind == "text":
            return self._part(value, path)
        self._faults[path] = [f"must be {_PART_FORMS}, {_IMAGE_FORMS}"]
        return ""

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            self._faults[path] = ["must be a string or a list of parts"]
            return ""
        if not is_unicode(value):
            self._faults[path] = ["holds half of a surrogate pair, which is not valid Unicode"]
        return value
