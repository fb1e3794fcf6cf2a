"""Health rules of domain §3.7 and the test inference's input."""

from __future__ import annotations

import base64
from datetime import timedelta

import msgspec
import numpy as np
import pytest

from controlplane.events import utc_now
from controlplane.lifecycle.health import (
    after_busy,
    after_failure,
    after_success,
    probe_fault,
    probe_inputs,
)


def test_failures_in_a_row_add_up_and_a_success_ends_them() -> None:
    status = None
    for count in (1, 2, 3):
        status = after_failure(status, utc_now(), "no answer")
        assert status.consecutive_failures == count
        assert status.must_leave is (count >= 3)
    assert after_success(utc_now(), 5.0).consecutive_failures == 0


def test_slow_answers_count_as_degraded_not_as_failed() -> None:
    slow = after_success(utc_now(), 3001.0)
    assert slow.degraded
    assert not slow.must_leave
    assert not after_success(utc_now(), 2999.0).degraded


def test_thresholds_of_attention() -> None:
    now = utc_now()
    status = None
    for count in range(1, 7):
        status = after_failure(status, now, "no answer")
        assert status.failing_often is (count > 3)
        assert status.requires_restart is (count >= 5)
    assert after_success(now, 5000.1).slow
    assert not after_success(now, 5000.0).slow
    assert not after_success(now, 1.0).stale(now + timedelta(seconds=60))
    assert after_success(now, 1.0).stale(now + timedelta(seconds=60.1))
    assert after_success(now, 1.0).stale(now + timedelta(seconds=2), max_age=1)


def test_a_busy_model_keeps_its_health() -> None:
    first, later = utc_now(), utc_now() + timedelta(seconds=30)
    failing = after_failure(None, first, "no answer")
    assert after_busy(failing, later) == msgspec.structs.replace(failing, last_check=later)
    assert after_busy(None, later).healthy


def test_long_messages_are_cut() -> None:
    status = after_failure(None, utc_now(), "x" * 5000)
    assert len(status.error_message or "") == 1000


def test_probe_inputs_fit_the_manifest() -> None:
    inputs = probe_inputs(
        {
            "max_batch_size": 8,
            "inputs": [
                {"name": "text_input", "datatype": "BYTES", "shape": [1]},
                {"name": "scale", "datatype": "FP32", "shape": [-1, 3]},
            ],
        }
    )
    assert inputs["text_input"].shape == (1, 1)
    assert isinstance(inputs["text_input"][0, 0], bytes)
    assert inputs["scale"].shape == (1, 1, 3)
    assert inputs["scale"].dtype == np.float32


def test_probe_inputs_of_a_model_that_does_not_batch() -> None:
    manifest = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1]}]}
    assert probe_inputs(manifest)["x"].shape == (1,)


def test_probe_bytes_keep_the_zeros_at_their_end() -> None:
    content = base64.b64encode(b"RIFF\0\0").decode()
    manifest = {
        "inputs": [{"name": "audio_input", "datatype": "BYTES", "shape": [1]}],
        "probe": {"inputs": {"audio_input": {"base64": content}}},
    }
    assert probe_inputs(manifest)["audio_input"].tolist() == [b"RIFF\0\0"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_a_fault(bad: float) -> None:
    fault = probe_fault({"embedding": np.array([1.0, bad], np.float32)}, ["embedding"])
    assert "not finite" in (fault or "")


def test_a_missing_output_is_a_fault_and_a_sound_answer_is_none() -> None:
    assert "embedding" in (probe_fault({}, ["embedding"]) or "")
    assert probe_fault({"embedding": np.zeros(3, np.float32)}, ["embedding"]) is None
