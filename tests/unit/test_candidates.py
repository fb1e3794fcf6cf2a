"""Which engine is chosen: the rules, on figures made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.candidates import (
    DEFAULT,
    GATES,
    PRECISIONS,
    TRACED,
    Candidate,
    Measured,
    best,
    candidates,
    nothing_to_gain,
    relative_time,
    table,
)
from converters.likeness import cosines, min_cosine

BF16 = Candidate("openvino", "bf16")
OPENVINO = Candidate("openvino", "fp32")
SIZES = (1, 8, 32)


def measured(
    candidate: Candidate, *seconds: float, cosine: float = 1.0, reason: str = ""
) -> Measured:
    """One that took so long per batch size, without any spread."""
    if reason:
        return Measured(candidate, reason=reason)
    times = {size: [value] * 5 for size, value in zip(SIZES, seconds, strict=True)}
    return Measured(candidate, times, cosine, memory_mb=100.0, device="cpu")


def test_the_fastest_that_passes_wins() -> None:
    default = measured(DEFAULT, 0.010, 0.080, 0.300)
    bf16 = measured(BF16, 0.006, 0.020, 0.060, cosine=0.99996)
    assert best([default, measured(OPENVINO, 0.010, 0.079, 0.290), bf16]) is bf16


def test_all_batch_sizes_count_alike() -> None:
    """Twice as fast at one size and half as fast at another is as fast."""
    default = measured(DEFAULT, 0.010, 0.080, 0.300)
    assert relative_time(measured(BF16, 0.005, 0.160, 0.300), default) == pytest.approx(1.0)


@pytest.mark.parametrize("cosine", [0.99, 0.9989, math.nan, -1.0])
def test_who_misses_its_gate_never_serves(cosine: float) -> None:
    default = measured(DEFAULT, 0.010, 0.080, 0.300)
    assert best([default, measured(BF16, 0.001, 0.001, 0.001, cosine=cosine)]) is default
    assert best([measured(BF16, 0.001, 0.001, 0.001, cosine=cosine)]) is None


def test_a_tie_goes_to_the_default() -> None:
    default = measured(DEFAULT, 0.010, 0.080, 0.300)
    assert best([default, measured(OPENVINO, 0.0095, 0.075, 0.280)]) is default


def test_what_differs_from_run_to_run_decides_nothing() -> None:
    """A third faster, but its own runs differ by as much; twice as fast is believed."""

    def shaky(candidate: Candidate, scale: float) -> Measured:
        times = {size: [scale * x * size for x in (0.6, 0.6, 1.0, 1.6, 1.6)] for size in SIZES}
        return Measured(candidate, times, 1.0)

    default = shaky(DEFAULT, 0.010)
    assert best([default, shaky(BF16, 0.0067)]) is default
    assert best([default, found := shaky(BF16, 0.0045)]) is found


def test_who_is_absent_is_in_the_table_with_its_reason() -> None:
    default = measured(DEFAULT, 0.010, 0.080, 0.300)
    absent = measured(BF16, reason="This processor has no bf16.")
    assert best([absent, default]) is default
    first, second = table([default, absent], default)
    assert first == {
        "engine": "onnxruntime",
        "precision": "fp32",
        "chosen": True,
        "milliseconds": {"1": 10.0, "8": 80.0, "32": 300.0},
        "memory_mb": 100,
        "min_cosine": 1.0,
    }
    assert second["chosen"] is False
    assert second["reason"] == "This processor has no bf16."


def test_the_table_is_json_and_says_what_was_too_far() -> None:
    far = measured(BF16, 0.001, 0.001, 0.001, cosine=math.nan)
    (entry,) = table([far], measured(DEFAULT, 1.0, 1.0, 1.0))
    assert entry["min_cosine"] is None
    assert "bf16 needs 0.999" in entry["reason"]


def test_nothing_to_gain_where_nobody_could_tell() -> None:
    assert nothing_to_gain(measured(DEFAULT, 0.0001, 0.0004, 0.0049))
    assert not nothing_to_gain(measured(DEFAULT, 0.0001, 0.0004, 0.0051))
    assert not nothing_to_gain(measured(DEFAULT, 0.0001, 0.0004, 0.001, cosine=0.5))
    assert not nothing_to_gain(measured(DEFAULT, reason="no"))


def test_a_busy_machine_does_not_make_a_small_model_large() -> None:
    times = {size: [0.002, 0.5, 0.5] for size in SIZES}
    assert nothing_to_gain(Measured(DEFAULT, times, 1.0))


def test_what_is_measured() -> None:
    assert candidates(["onnx"]) == [DEFAULT, OPENVINO, BF16]
    assert candidates(["onnx"], "openvino") == [OPENVINO, BF16]
    assert candidates(["onnx"], None, "bf16") == [BF16]
    int8 = [Candidate("onnxruntime", "int8"), Candidate("openvino", "int8")]
    assert candidates(["onnx"], None, "int8") == int8
    assert candidates(["onnx"], "openvino", "fp16") == [Candidate("openvino", "fp16")]
    assert candidates(["onnx"], "onnxruntime", "bf16") == []
    assert candidates(["torchscript"]) == [TRACED]
    assert candidates(["onnx", "torchscript"])[0] == DEFAULT
    assert TRACED not in candidates(["onnx", "torchscript"])
    assert candidates(["onnx", "torchscript"], "torchscript") == [TRACED]


def test_int8_and_fp16_only_when_asked_for() -> None:
    for engine in (None, "onnxruntime", "openvino"):
        assert {c.precision for c in candidates(["onnx"], engine)} <= {"fp32", "bf16"}


times = st.lists(st.floats(1e-4, 10), min_size=3, max_size=15)
results = st.builds(
    Measured,
    st.builds(Candidate, st.sampled_from(["openvino", "other"]), st.sampled_from(PRECISIONS)),
    st.fixed_dictionaries(dict.fromkeys(SIZES, times)),
    st.one_of(st.floats(0.98, 1.0), st.just(math.nan)),
    reason=st.sampled_from(["", "", "", "absent"]),
)


@given(st.lists(results, max_size=6), st.fixed_dictionaries(dict.fromkeys(SIZES, times)))
def test_the_choice_is_never_wrong(others: list[Measured], seconds: dict[int, list[float]]) -> None:
    """Whatever was measured: it passes its gate, and is the default or faster than it."""
    default = Measured(DEFAULT, seconds, 1.0)
    chosen = best([default, *others])
    assert chosen is not None
    assert chosen.passes
    assert chosen.min_cosine >= GATES[chosen.candidate.precision]
    if chosen is not default:
        assert relative_time(chosen, default) < 0.9
        rivals = [one for one in others if one.passes]
        assert all(relative_time(chosen, default) <= relative_time(r, default) for r in rivals)


@given(st.lists(results, max_size=6))
def test_none_only_where_none_passes(others: list[Measured]) -> None:
    assert (best(others) is None) == (not any(one.passes for one in others))


def test_cosines_of_rows() -> None:
    a = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosines(a, a), 1.0)
    np.testing.assert_allclose(cosines(a, -a), [-1.0, 1.0, -1.0])
    assert cosines(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]])).tolist() != [1.0]


def test_the_worst_row_of_all_outputs_counts() -> None:
    good = np.eye(3, dtype=np.float32)
    bad = good.copy()
    bad[2] = [1.0, 0.0, 0.0]
    expected = {"a": good, "b": good}
    assert min_cosine(expected, expected) == pytest.approx(1.0)
    assert min_cosine(expected, {"a": good, "b": bad}) == pytest.approx(0.0)
    assert math.isnan(min_cosine(expected, {"a": good}))
    assert math.isnan(min_cosine(expected, {"a": good, "b": good[:2]}))
    bad[0, 0] = np.nan
    assert math.isnan(min_cosine(expected, {"a": bad, "b": good}))
