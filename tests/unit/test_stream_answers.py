"""Answers of a stream, read as they pass: whatever they are and wherever they are cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from controlplane.gateway import wire
from controlplane.gateway.grpc_relay.answers import Answer, AnswerReader
from tests.relay import framed

FINAL = "triton_final_response"
KEY = ("org--0", 1)


def data_answer(*, final=True, size=10, version="1", ident="7", text=""):
    """A model's answer, or, without a size, one without tensors."""
    message = pb.ModelStreamInferResponse(error_message=text)
    answer = message.infer_response
    answer.model_name, answer.model_version, answer.id = "org--0", version, ident
    if final is not None:
        answer.parameters[FINAL].bool_param = final
    answer.parameters["sequence_id"].int64_param = 300
    if size:
        answer.outputs.add(name="y", datatype="UINT8", shape=[1, size])
        answer.raw_output_contents.append(random.Random(size).randbytes(size))
    return message.SerializeToString()


def refusal(ident="7"):
    """What Triton says of a request that it does not run."""
    message = pb.ModelStreamInferResponse(error_message="unexpected input")
    message.infer_response.id = ident
    return message.SerializeToString()


EMPTY_FINAL = data_answer(size=0, version="01")
# Messages as they come; what is known of them; whether they are kept back.
KINDS = [
    (data_answer(), Answer(KEY, final=True), False),
    (data_answer(final=False, size=70_000), Answer(KEY, final=False), False),
    (data_answer(final=None), Answer(KEY), False),
    (data_answer(size=0), Answer(KEY, final=True), False),
    (data_answer(size=0, version="1", final=False), Answer(KEY, final=False), False),
    (EMPTY_FINAL, Answer(KEY, final=True), True),
    (data_answer(size=0, version="01", ident="x" * 3000), Answer(KEY, final=True), True),
    (data_answer(size=0, version="01", text="bad"), Answer(KEY, True, failed=True), False),
    (data_answer(size=0, version="01", final=False), Answer(KEY, final=False), False),
    (data_answer(size=0, text="bad", final=False), Answer(KEY, False, failed=True), False),
    (refusal(), Answer(failed=True), False),
    (refusal(""), Answer(failed=True), False),
    (b"", Answer(), False),
    (b"\x12\x05\x0a", Answer(readable=False), False),  # it ends within a field
    (b"\x12\x05\x0a\x01a", Answer(readable=False), False),  # so does what is in it
    (b"\x12\x03\x0a\x05abcde", Answer(readable=False), False),  # a field leaves what it is in
    (b"\xff" * 30, Answer(readable=False), False),
    (b"\x0b\x0c", Answer(readable=False), False),  # a group
]


def read(reader, pieces):
    passed, answers = [], []
    for piece in pieces:
        for out, answer in reader.feed(piece):
            passed.append(out)
            if answer is not None:
                answers.append(answer)
                assert reader.between
    return b"".join(passed), answers


def cuts(data, draw):
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(st.sampled_from(range(len(KINDS))), max_size=5), st.booleans(), st.data())
def test_answers_are_known_and_pass_unchanged_however_they_are_cut(numbers, silences, data):
    kinds = [KINDS[number] for number in numbers]
    reader = AnswerReader()
    reader.silences = silences
    sent = b"".join(framed(message) for message, _, _ in kinds)
    passed, answers = read(reader, cuts(sent, data.draw))
    kept_back = [message for message, _, silent in kinds if not (silent and silences)]
    assert passed == b"".join(framed(message) for message in kept_back)
    assert answers == [answer for _, answer, _ in kinds]


@given(st.permutations(range(5)), st.data())
def test_fields_may_come_in_any_order(order, data):
    """Also twice: as in every protobuf message, the last counts, and halves are merged."""
    whole = pb.ModelStreamInferResponse.FromString(data_answer(size=50)).infer_response
    parts = []
    for field in ("model_name", "model_version", "parameters", "outputs", "raw_output_contents"):
        part = pb.ModelInferResponse()
        part.CopyFrom(whole)
        for other, _ in whole.ListFields():
            if other.name != field:
                part.ClearField(other.name)
        parts.append(part.SerializeToString())
    inner = b"".join(parts[number] for number in order)
    cut = data.draw(st.integers(0, len(order)))
    first = b"".join(parts[number] for number in order[:cut])
    rest = b"".join(parts[number] for number in order[cut:])
    unknown = b"\x98\x06\x01" + b"\x9d\x06abcd" + b"\x99\x06abcdefgh" + b"\xa2\x06\x02hi"
    for message in (
        wire.bytes_field(2, unknown + inner),
        wire.bytes_field(2, first) + unknown + wire.bytes_field(2, rest),
        wire.bytes_field(2, wire.text_field(1, "other") + inner),
    ):
        assert pb.ModelStreamInferResponse.FromString(message).infer_response.model_name
        _, answers = read(AnswerReader(), cuts(framed(message), data.draw))
        assert answers == [Answer(KEY, final=True)] or b"other" in message


@given(st.lists(st.binary(max_size=60), max_size=4), st.booleans(), st.data())
def test_no_bytes_break_it(messages, silences, data):
    reader = AnswerReader()
    reader.silences = silences
    sent = b"".join(framed(message) for message in messages)
    passed, answers = read(reader, cuts(sent, data.draw))
    assert len(answers) == len(messages)
    assert passed == sent


def test_compressed_answers_pass_and_are_not_read():
    reader = AnswerReader()
    reader.silences = True
    sent = framed(EMPTY_FINAL, compressed=True)
    assert read(reader, [sent]) == (sent, [Answer(readable=False)])


def test_a_large_answer_passes_as_it_comes():
    reader = AnswerReader()
    reader.silences = True
    sent = framed(data_answer(size=1_000_000))
    held = 0
    for at in range(0, len(sent), 1000):
        out = b"".join(piece for piece, _ in reader.feed(sent[at : at + 1000]))
        held += min(1000, len(sent) - at) - len(out)
        assert held == 0  # its outputs begin in the first piece
        assert reader.between == (at + 1000 >= len(sent))


@pytest.mark.parametrize("size", [3000, 100_000])
def test_what_may_yet_be_an_empty_last_answer_is_held_to_a_limit(size):
    reader = AnswerReader()
    reader.silences = True
    sent = framed(data_answer(size=0, version="01", ident="x" * size))
    out = b"".join(piece for piece, _ in reader.feed(sent[:-40]))
    assert bool(out) == (size > 64 * 1024)
    assert reader.between == (not out)
