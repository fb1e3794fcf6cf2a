"""Megabytes within a JSON body: what callers see is the same as without taking them out."""

from __future__ import annotations

import base64
import json
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import ModelMoraError
from controlplane.gateway.rest import long_texts
from controlplane.gateway.rest.long_texts import LONG, put_back, without_long_texts
from controlplane.inference.tasks.long_text import LongText, plain
from controlplane.inference.tasks.media import MediaRules, read_media
from controlplane.inference.tasks.wording import wording
from controlplane.registry.model_form import ModelForm

_VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=30) | st.text("abc=+/", min_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=8,
)


@given(_VALUES, st.booleans(), st.integers(1, 7))
def test_what_was_taken_out_comes_back(value: Any, escaped: bool, size: int) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode()
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    with mock.patch.object(long_texts, "LONG", 8):
        short, found = without_long_texts(chunks)
    used: set[str] = set()
    decoded = plain(put_back(msgspec.json.decode(short), found, used))
    if used == set(found):  # none was a key
        assert decoded == value


@given(st.binary(max_size=60))
def test_no_body_breaks_it(body: bytes) -> None:
    with mock.patch.object(long_texts, "LONG", 4):
        short, found = without_long_texts([body])
    assert bool(found) == (short != body)


@pytest.mark.parametrize("text", ["a\nb", "a\\b", "\u00e9", "\x7f"])
def test_what_json_writes_otherwise_stays(text: str) -> None:
    body = json.dumps({"a": text * LONG}, ensure_ascii=False).encode()
    assert without_long_texts([body]) == (body, {})


def test_raw_control_characters_stay_for_the_decoder_to_refuse() -> None:
    body = b'{"a": "' + b"x" * LONG + b'\n"}'
    assert without_long_texts([body]) == (body, {})


CONTENT = bytes(range(256)) * 5000
PLAIN = base64.b64encode(CONTENT).decode()
FORMS = {
    "plain": PLAIN,
    "unpadded": PLAIN.rstrip("="),
    "data URI": f"data:image/png;base64,{PLAIN}",
    "capital data URI": f"DATA:image/png;BASE64,{PLAIN}",
    "data URI in clear": "data:," + "A" * LONG,
    "spaces": " " + PLAIN[:1000] + " " + PLAIN[1000:],
    "URL alphabet": PLAIN.replace("+", "-").replace("/", "_"),
    "in the middle": PLAIN[: LONG - 1] + "=" + PLAIN[LONG:],
    "foreign": PLAIN + "!",
    "cut off": PLAIN + "A",
    "address": "http://" + "a" * LONG,
    "blank": " " * LONG,
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_files_are_read_as_from_strings(text: str) -> None:
    for rules in (MediaRules(), MediaRules(allow_urls=True)):
        expected_faults: dict[str, list[str]] = {}
        expected = read_media(text, "input_data.image", "image", rules, expected_faults)
        faults: dict[str, list[str]] = {}
        long = LongText(memoryview(text.encode()))
        assert read_media(long, "input_data.image", "image", rules, faults) == expected
        assert faults == expected_faults


@pytest.mark.parametrize("task", ["txt2embed", "img2embed", "img2txt", "classification"])
@pytest.mark.parametrize("field", ["text", "image", "messages", "nobody"])
def test_whoever_reads_strings_is_given_strings(task: str, field: str) -> None:
    text = "A" * LONG
    words = wording("org/m", task, ModelForm(), MediaRules())
    outcomes: list[Any] = []
    for value in (text, LongText(memoryview(text.encode()))):
        nested: Any = [{"role": "user", "content": value}] if field == "messages" else value
        try:
            outcomes.append(words.check({field: nested}, {}))
        except ModelMoraError as error:
            outcomes.append((error.message, error.details))
    assert outcomes[0] == outcomes[1]
