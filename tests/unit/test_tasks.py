"""What REST takes and gives for each task (domain §4.6)."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from controlplane.errors import BatchSizeExceeded, NoRestInference, ValidationFailed
from controlplane.inference.tasks import TASKS, examples, generic
from controlplane.inference.tasks.blame import in_callers_words
from controlplane.inference.tasks.limits import (
    MAX_FILE_BYTES,
    check_timeout,
    priority_level,
)
from controlplane.inference.tasks.media import MediaRules, from_base64, read_media
from controlplane.inference.tasks.plan import Plan, Reference
from controlplane.inference.tasks.wording import usage, wording
from controlplane.registry.model import TaskType
from controlplane.registry.model_form import ModelForm, TensorForm

PNG = base64.b64encode(b"\x89PNG").decode()
ANY = ModelForm()


def check(task: str, input_data: dict[str, Any], **parameters: Any) -> Plan:
    return wording("org/m", task, ANY, MediaRules()).check(input_data, parameters)


def faults(task: str, input_data: dict[str, Any], **parameters: Any) -> dict[str, list[str]]:
    with pytest.raises(ValidationFailed) as caught:
        check(task, input_data, **parameters)
    found: dict[str, list[str]] = caught.value.details["fields"]
    return found


def sent(plan: Plan) -> list[dict[str, Any]]:
    """The items' tensors, without what all of them have in common."""
    return [{name: tensor.values[0] for name, tensor in item.items()} for item in plan.items]


def test_every_task_of_the_domain_is_declared() -> None:
    domain = (name for name in vars(TaskType) if name.isupper() and name != "CUSTOM")
    assert {str(getattr(TaskType, name)) for name in domain} == set(TASKS)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_documented_example_is_taken(task: Any) -> None:
    example = task.example
    plan = check(task.name, example.input_data, **example.parameters)
    assert plan.single
    assert set(plan.parameters) == set(example.parameters)


def test_the_documented_picture_is_large_enough_for_every_task() -> None:
    with Image.open(io.BytesIO(base64.b64decode(examples.PICTURE))) as picture:
        assert min(picture.size) >= 8  # docs/tasks.md: sides of 8 to 2,048 pixels


# -- what a model refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "field", "what"),
    [
        ("Parameter steps must be 1.", "input_data.steps", "must be 1."),
        ("Parameter voice must be a.", "parameters.voice", "must be a."),
        ("Image 1 is damaged.", "input_data.image[6]", "is damaged."),
        ("image_input[1] is no.", "input_data.image[6]", "is no."),
        ("image_input is no.", "input_data.image[5]", "is no."),
        ("text_input is long.", "input_data.text", "is long."),
        ("Text 0 is long.", "input_data.text", "is long."),
        ("The prompt is empty.", "input_data", "The prompt is empty."),
        ("unknown_input is odd.", "input_data", "unknown_input is odd."),
        ("No.", "input_data", "No."),
    ],
)
def test_a_refusal_names_the_callers_field(said: str, field: str, what: str) -> None:
    given = {"image": [PNG] * 9, "text": "x", "steps": 3}
    plan = check("img2img", given)
    assert in_callers_words(said, plan, first=5) == (field, what)


# -- texts ----------------------------------------------------------------------------------------


def test_one_text_and_a_list_are_told_apart() -> None:
    one = check("txt2embed", {"text": "hello"})
    assert (sent(one), one.single) == ([{"text_input": b"hello"}], True)
    many = check("txt2embed", {"text": ["a", "b"]}, normalize=True)
    assert (sent(many), many.single) == ([{"text_input": b"a"}, {"text_input": b"b"}], False)
    assert many.parameters == {"normalize": True}


def test_an_empty_list_is_an_empty_batch() -> None:
    assert check("txt2embed", {"text": []}).items == ()


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
        ({"text": "a", "normalize": 1}, {}, "input_data.normalize"),
        ({"text": "a"}, {"frob": 1}, "parameters.frob"),
    ],
)
def test_wrong_input_is_refused_by_field(
    input_data: dict[str, Any], parameters: dict[str, Any], field: str
) -> None:
    assert list(faults("txt2embed", input_data, **parameters)) == [field]


def test_all_wrong_fields_are_named_at_once() -> None:
    assert set(faults("txt2embed", {"text": ["", 1]}, normalize=1)) == {
        "input_data.text[0]",
        "input_data.text[1]",
        "parameters.normalize",
    }


def test_ten_thousand_texts_are_refused() -> None:
    with pytest.raises(BatchSizeExceeded, match="10000"):
        check("txt2embed", {"text": ["a"] * 10_000})
    with pytest.raises(BatchSizeExceeded, match="at most 64"):
        check("txt2img", {"prompt": ["a"] * 65})


def test_the_longest_text_passes() -> None:
    assert check("txt2embed", {"text": "x" * 100_000}).single


def test_text_is_an_alias_of_prompt() -> None:
    for name in ("prompt", "text"):
        assert sent(check("txt2txt", {name: "Hi"})) == [{"text_input": b"Hi"}]
    both = faults("txt2txt", {"prompt": "a", "text": "b"})
    assert both == {"input_data.text": ["means the same as input_data.prompt: give one of them"]}
    assert list(faults("txt2txt", {"text": ""})) == ["input_data.text"]


def test_one_query_goes_with_each_passage() -> None:
    plan = check("classification", {"query": "q", "passage": ["a", "b"]})
    assert not plan.single
    assert sent(plan) == [
        {"text_input": b"q", "text_pair_input": b"a"},
        {"text_input": b"q", "text_pair_input": b"b"},
    ]
    (pair,) = sent(check("classification", {"text": "q", "text_pair": "a"}))
    assert pair == {"text_input": b"q", "text_pair_input": b"a"}
    assert list(faults("classification", {"text": ["a"], "text_pair": ["a", "b"]}))
    assert list(faults("classification", {"text_pair": "a"})) == ["input_data.text"]


def test_candidate_labels_travel_as_json() -> None:
    plan = check("classification", {"text": "q"}, candidate_labels=["a, b", "c"], multi_label=True)
    assert plan.parameters == {"candidate_labels": '["a, b", "c"]', "multi_label": True}
    assert check("classification", {"text": "q"}, candidate_labels="a, b").parameters == {
        "candidate_labels": '["a", "b"]'
    }
    for wrong in ([], [""], ["a", "a"], ["x"] * 101, ["x" * 1001], [1], 7, ["\ud800"], None):
        found = {"parameters.candidate_labels"} if wrong is not None else set()
        assert set(faults("classification", {"text": ""}, candidate_labels=wrong)) == {
            "input_data.text",
            *found,
        }


def test_options_may_stand_in_either_mapping_and_parameters_win() -> None:
    plan = check("txt2txt", {"prompt": "a", "max_tokens": 5, "top_k": None}, max_tokens=7)
    assert plan.parameters == {"max_tokens": 7}


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("max_tokens", 5.0, 5),
        ("max_length", 5, None),
        ("temperature", 1, 1.0),
        ("stop", "x", '["x"]'),
        ("stop", ["x", "[y"], '["x", "[y"]'),
        ("seed", 2**63 - 1, 2**63 - 1),
    ],
)
def test_options_of_generation(name: str, value: Any, becomes: Any) -> None:
    found = check("txt2txt", {"prompt": "a"}, **{name: value}).parameters
    assert found == ({name: becomes} if becomes is not None else {"max_tokens": 5})


def test_a_voice_may_be_a_number() -> None:
    assert check("txt2audio", {"text": "a"}, voice=3).parameters == {"voice": "3"}
    assert list(faults("txt2audio", {"text": "a"}, voice=True)) == ["parameters.voice"]


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ("txt2txt", "max_tokens", 0),
        ("txt2txt", "max_tokens", 2.5),
        ("txt2txt", "max_tokens", True),
        ("txt2txt", "temperature", -0.1),
        ("txt2txt", "temperature", float("nan")),
        ("txt2txt", "temperature", float("inf")),
        ("txt2txt", "temperature", 10**400),
        ("txt2txt", "temperature", "hot"),
        ("txt2txt", "top_p", 0),
        ("txt2txt", "top_p", 1.1),
        ("txt2txt", "stop", [""]),
        ("txt2txt", "stop", [1]),
        ("txt2txt", "stop", ["x"] * 17),
        ("txt2txt", "seed", 2**63),
        ("txt2img", "width", 100),
        ("txt2img", "width", -8),
        ("txt2img", "height", 10**9),
        ("txt2img", "negative_prompt", "\udc00"),
        ("img2img", "strength", 1.5),
        ("txt2audio", "sample_rate", 0),
        ("audio2txt", "timestamps", "yes"),
        ("object_detection", "threshold", 2),
    ],
)
def test_wrong_options_are_refused(task: str, name: str, value: Any) -> None:
    found = faults(task, TASKS[task].example.input_data, **{name: value})
    assert list(found) == [f"parameters.{name}"]


# -- several inputs -------------------------------------------------------------------------------


def test_one_context_goes_with_every_question() -> None:
    plan = check("question_answering", {"question": ["a", "b"], "context": "c"})
    assert [item["context_input"] for item in sent(plan)] == [b"c", b"c"]
    found = faults("question_answering", {"question": ["a", "b"], "context": ["c"]})
    assert "equally long" in next(iter(found.values()))[0]
    assert list(faults("question_answering", {"text": "a"})) == ["input_data.context"]


def test_exactly_one_of_text_and_image() -> None:
    assert faults("classification", {}) == {"input_data.text": ["is required: give text or image"]}
    both = faults("classification", {"text": "a", "image": PNG})
    assert both == {"input_data.image": ["give one of text or image, not both"]}


def test_a_model_that_lacks_a_tensor_says_so() -> None:
    form = ModelForm(inputs=(TensorForm(name="text_input", datatype="BYTES", shape=(1,)),))
    with pytest.raises(ValidationFailed, match="takes no image"):
        wording("org/m", "img2embed", form, MediaRules()).check({"image": PNG}, {})


# -- conversations --------------------------------------------------------------------------------


def test_messages_become_json() -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    (item,) = sent(check("txt2txt", {"messages": talk}))
    assert json.loads(item["messages"]) == [talk[0], {"role": "user", "content": "ab"}]
    assert len(check("txt2txt", {"messages": [talk, talk]}).items) == 2


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "input_data.messages"),
        ("Hi", "input_data.messages"),
        (["Hi"], "input_data.messages[0]"),
        ([{"role": "king", "content": "a"}], "input_data.messages[0].role"),
        ([{"role": "user"}], "input_data.messages[0].content"),
        ([{"role": "user", "content": "a", "name": "x"}], "input_data.messages[0].name"),
        ([{"role": "user", "content": [{"type": "image"}]}], "input_data.messages[0].content[0]"),
        ([{"role": "user", "content": "x" * 100_001}], "input_data.messages"),
    ],
)
def test_wrong_messages_are_refused(messages: Any, field: str) -> None:
    assert list(faults("txt2txt", {"messages": messages})) == [field]


def test_the_image_of_a_conversation_is_taken_out() -> None:
    image = {"type": "image", "image": PNG}
    talk = [{"role": "user", "content": [image, {"type": "text", "text": "?"}]}]
    (item,) = sent(check("img2txt", {"messages": talk}))
    assert item["image_input"] == b"\x89PNG"
    assert json.loads(item["messages"]) == [{"role": "user", "content": "?"}]
    late = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [image]}]
    assert "input_data.messages[1].content[0]" in faults("img2txt", {"messages": late})
    assert faults("img2txt", {"messages": talk, "image": PNG}) == {
        "input_data.image": ["is given twice"]
    }
    plain = [{"role": "user", "content": "What is it?"}]
    assert faults("img2txt", {"messages": plain}) == {"input_data.image": ["is required"]}
    assert len(check("img2txt", {"messages": plain, "image": PNG}).items) == 1


# -- files ----------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans())
def test_base64_in_all_its_forms(content: bytes, urlsafe: bool, padded: bool) -> None:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    text = encode(content).decode()
    text = text if padded else text.rstrip("=")
    assert from_base64(text) == content
    assert from_base64(text[:3] + "\r\n " + text[3:]) == content
    for prefix in ("data:image/png;base64,", "DATA:;BASE64,"):
        assert read_media(prefix + text, "f", "image", MediaRules(), {}) == content


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=300)
def test_no_text_breaks_the_reading_of_files(text: str) -> None:
    found: dict[str, list[str]] = {}
    content = read_media(text, "f", "image", MediaRules(), found)
    assert isinstance(content, bytes)
    assert bool(content) or found


@pytest.mark.parametrize(
    "text",
    ["", " ", "a", "ab=c", "====", "é", "data:image/png", "data:,", "ab!c", "a\x00bc", 5, None],
)
def test_what_is_no_file_is_refused(text: Any) -> None:
    found: dict[str, list[str]] = {}
    read_media(text, "field", "image", MediaRules(), found)
    assert list(found) == ["field"]


def test_large_files_are_decoded_in_slices_and_limited() -> None:
    content = bytes(range(256)) * (3 << 13)
    assert from_base64(base64.b64encode(content).decode()) == content
    found: dict[str, list[str]] = {}
    too_large = "A" * (MAX_FILE_BYTES // 3 * 4 + 8)
    read_media(too_large, "field", "image", MediaRules(), found)
    assert found["field"][0].startswith("must be at most 50 MB")


def test_addresses_are_for_servers_that_allow_them() -> None:
    message = faults("object_detection", {"image": "https://example.org/cat.png"})
    assert "MODELMORA_ALLOW_URL_INPUTS" in message["input_data.image"][0]
    words = wording("org/m", "object_detection", ANY, MediaRules(allow_urls=True))
    plan = words.check({"image": ["https://a/1", PNG]}, {})
    reference = Reference(url="https://a/1", field="input_data.image[0]")
    assert plan.references == (reference,)
    filled = plan.with_fetched({reference: b"1"})
    assert [item["image_input"] for item in sent(filled)] == [b"1", b"\x89PNG"]


# -- answers --------------------------------------------------------------------------------------


def test_pieces_of_text_are_one_answer() -> None:
    words = wording("org/m", "txt2txt", ModelForm(decoupled=True), MediaRules())
    last = {
        "text_output": [b""],
        "finish_reason": [b"stop"],
        "prompt_tokens": [2],
        "completion_tokens": [2],
    }
    # a character may be cut in two
    responses = [{"text_output": [b"caf\xc3"]}, {"text_output": [b"\xa9"]}, last]
    assert words.shape([responses], single=True) == {
        "text": "café",
        "finish_reason": "stop",
        "tokens_used": 4,
    }
    assert usage([responses, responses]) == {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
    }
    assert words.event(last) is None
    with pytest.raises(ValueError, match="without an answer"):
        words.shape([[]], single=True)


# -- models with tensors of their own -------------------------------------------------------------

OWN = ModelForm(
    inputs=(
        TensorForm(name="text", datatype="BYTES", shape=(1,)),
        TensorForm(name="matrix", datatype="INT8", shape=(2, -1), optional=True),
        TensorForm(name="flag", datatype="BOOL", shape=(1,), optional=True),
        TensorForm(name="real", datatype="FP16", shape=(-1,), optional=True),
    ),
    outputs=(TensorForm(name="out", datatype="BYTES", shape=(1,)),),
)


def own(input_data: dict[str, Any], **parameters: Any) -> Plan:
    return generic.check(input_data, parameters, OWN)


def test_values_are_shaped_as_their_tensor_or_plain() -> None:
    for text in ("a", ["a"], {"base64": "YQ=="}, [{"base64": "YQ=="}]):
        plan = own({"text": text})
        assert plan.single
        assert plan.items[0]["text"].values == (b"a",)
    plan = own({"text": "a", "matrix": [[1, 2, 3], [4, 5, 6]], "flag": True, "real": 1.5})
    (item,) = plan.items
    assert (item["matrix"].shape, item["matrix"].values) == ((2, 3), (1, 2, 3, 4, 5, 6))
    assert (item["flag"].values, item["real"].values) == ((True,), (1.5,))


def test_lists_of_values_are_items() -> None:
    plan = own({"text": ["a", "b"], "matrix": [[1], [2]]})
    assert [item["text"].values for item in plan.items] == [(b"a",), (b"b",)]
    assert [item["matrix"].values for item in plan.items] == [(1, 2), (1, 2)]
    assert not plan.single


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 5),
        ("text", {"base64": "!"}),
        ("text", {"other": 1}),
        ("text", "\ud800"),
        ("matrix", [[1, 2], [3]]),
        ("matrix", [[1]]),
        ("matrix", [[128], [0]]),
        ("matrix", [[0.5], [0]]),
        ("matrix", "a"),
        ("flag", 1),
        ("real", [float("nan")]),
        ("real", [70_000.0]),
        ("real", [[1.0], "x"]),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationFailed) as caught:
        own({"text": "a"} | {name: value})
    assert next(iter(caught.value.details["fields"])).startswith(f"input_data.{name}")


@pytest.mark.parametrize(
    ("name", "value"), [("priority", 1), ("triton_x", 1), ("a", [1]), ("a", 2**63), ("a", None)]
)
def test_parameters_that_triton_cannot_carry_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationFailed):
        own({"text": "a"}, **{name: value})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)


@given(st.sampled_from([*TASKS, "custom"]), _JSON, _JSON)
@settings(max_examples=300)
def test_nothing_but_a_refusal_comes_of_any_input(task: str, first: Any, second: Any) -> None:
    names = [f.name for f in TASKS[task].inputs] if task in TASKS else ["text", "matrix"]
    data = dict(zip(names, (first, second), strict=False))
    words = wording("org/m", task, OWN if task == "custom" else ANY, MediaRules())
    try:
        plan = words.check(data, {})
    except (ValidationFailed, BatchSizeExceeded):
        return
    assert all(
        isinstance(value, bytes)
        for item in sent(plan)
        for value in item.values()
        if task != "custom"
    )


def test_models_that_cannot_be_asked_say_so() -> None:
    for form in (ModelForm(), ModelForm(inputs=OWN.inputs, outputs=OWN.outputs, stateful=True)):
        with pytest.raises(NoRestInference):
            wording("org/m", "custom", form, MediaRules())


def test_own_outputs_come_back_by_name() -> None:
    assert generic.answer({"out": [b"a"], "more": [[1], [b"\xff"]]}, OWN) == {
        "out": "a",
        "more": [[1], [{"base64": "/w=="}]],
    }
    decoupled = ModelForm(inputs=OWN.inputs, outputs=OWN.outputs, decoupled=True)
    assert generic.shape([[{"out": [b"a"]}, {"out": [b"b"]}]], decoupled, single=True) == {
        "responses": [{"out": "a"}, {"out": "b"}]
    }


# -- terms of a call ------------------------------------------------------------------------------


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
