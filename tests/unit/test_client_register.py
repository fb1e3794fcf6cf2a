"""The client registers an archive without a task: it asks again until the server has read it."""

from __future__ import annotations

import pytest

from controlplane.client_operations import register
from controlplane.client_steps import Call, Pause
from controlplane.client_types import ModelInfo, ModelMoraApiError, Progress


def being_read(fraction: float) -> ModelMoraApiError:
    details = {"progress": "half of it", "fraction": fraction}
    return ModelMoraApiError("SOURCE_BEING_READ", "…", details, status=503)


def test_it_asks_again_and_tells_how_far_it_is() -> None:
    told: list[Progress] = []
    steps = register("a/b", source_url="https://a/m.tgz", on_progress=told.append)
    first = next(steps)
    assert isinstance(steps.throw(being_read(0.25)), Pause)
    again = next(steps)
    assert isinstance(first, Call)
    assert first == again
    steps.throw(being_read(0.5))
    next(steps)
    info = ModelInfo(model_id="a/b", task_type="txt2embed", version="main", status="registered")
    with pytest.raises(StopIteration) as ended:
        steps.send(info)
    assert ended.value.value is info
    assert [progress.fraction for progress in told] == [0.25, 0.5]
    assert told[0].message == "half of it"


def test_other_failures_are_final() -> None:
    steps = register("a/b")
    next(steps)
    with pytest.raises(ModelMoraApiError, match="no"):
        steps.throw(ModelMoraApiError("MODEL_ALREADY_EXISTS", "no", status=409))
