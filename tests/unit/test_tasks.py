"""What REST takes for each task (domain §4.6)."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.errors import BatchSizeExceeded, ValidationFailed
from controlplane.inference.tasks import check_timeout, parse_txt2embed, priority_level


def test_one_text_and_a_list_are_told_apart() -> None:
    one = parse_txt2embed({"text": "hello"}, {})
    assert (one.texts, one.single) == (("hello",), True)
    many = parse_txt2embed({"text": ["a", "b"]}, {"normalize": True})
    assert (many.texts, many.single) == (("a", "b"), False)
    assert many.parameters == {"normalize": True}


def test_an_empty_list_is_an_empty_batch() -> None:
    assert parse_txt2embed({"text": []}, {}).texts == ()


@pytest.mark.parametrize(
    ("input_data", "parameters", "field"),
    [
        ({}, {}, "input_data.text"),
        ({"text": 5}, {}, "input_data.text"),
        ({"text": None}, {}, "input_data.text"),
        ({"text": ""}, {}, "input_data.text"),
        ({"text": "   "}, {}, "input_data.text"),
        ({"text": ["ok", 7]}, {}, "input_data.text[1]"),
        ({"text": ["ok", ""]}, {}, "input_data.text[1]"),
        ({"text": "x" * 100_001}, {}, "input_data.text"),
        ({"text": "\ud800"}, {}, "input_data.text"),
        ({"text": "a", "prompt": "b"}, {}, "input_data.prompt"),
        ({"text": "a", "task_type": "txt2img"}, {}, "input_data.task_type"),
        ({"text": "a"}, {"normalize": "yes"}, "parameters.normalize"),
        ({"text": "a"}, {"prompt_name": 1}, "parameters.prompt_name"),
    ],
)
def test_wrong_input_is_refused_by_field(
    input_data: dict[str, Any], parameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_txt2embed(input_data, parameters)
    assert list(caught.value.details["fields"]) == [field]


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ValidationFailed) as caught:
        parse_txt2embed({"text": ["", 1]}, {"normalize": 1})
    assert set(caught.value.details["fields"]) == {
        "input_data.text[0]",
        "input_data.text[1]",
        "parameters.normalize",
    }


def test_ten_thousand_texts_are_refused() -> None:
    with pytest.raises(BatchSizeExceeded, match="10000"):
        parse_txt2embed({"text": ["a"] * 10_000}, {})


def test_the_longest_text_passes() -> None:
    assert parse_txt2embed({"text": "x" * 100_000}, {}).single


@pytest.mark.parametrize(
    ("name", "level"), [("critical", 1), ("HIGH", 2), ("medium", 3), ("normal", 3), ("low", 4)]
)
def test_priorities_are_tritons_levels(name: str, level: int) -> None:
    assert priority_level(name) == level


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(ValidationFailed):
        priority_level("urgent")


@pytest.mark.parametrize("seconds", [0, -1, 600.1, float("nan")])
def test_timeouts_beyond_the_limit_are_refused(seconds: float) -> None:
    with pytest.raises(ValidationFailed):
        check_timeout(seconds, 60)


def test_the_default_timeout_is_the_services() -> None:
    assert check_timeout(None, 60) == 60
    assert check_timeout(600, 60) == 600
