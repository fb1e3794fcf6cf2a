"""Who has a say in a version's engine, and what becomes of it on other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from controlplane.db import open_db
from controlplane.errors import ValidationFailed
from controlplane.events import EventBus
from controlplane.registry.engine_choice import EngineChoice, locked_choice, parse_choice
from controlplane.registry.installation import _engine_options
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore
from controlplane.registry.sync import bring
from tests import locks

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_said_or_auto_is_left_to_measurement() -> None:
    for engine in (None, "auto"):
        for precision in (None, "auto"):
            assert parse_choice(engine, precision) is None
    assert parse_choice("auto", "bf16") == EngineChoice(precision="bf16")


def test_both_mistakes_are_named_at_once() -> None:
    with pytest.raises(ValidationFailed) as raised:
        parse_choice("abacus", "fp8")
    assert set(raised.value.details["fields"]) == {"engine", "precision"}
    assert "openvino" in str(raised.value.details)


def test_what_is_made_as_chosen() -> None:
    manifest = {"engine": "openvino", "precision": "bf16"}
    assert EngineChoice(engine="openvino").made(manifest)
    assert EngineChoice(precision="bf16").made(manifest)
    assert not EngineChoice(engine="openvino", precision="fp32").made(manifest)


def test_a_lock_asks_where_a_person_demands() -> None:
    asked = locked_choice("openvino", "bf16")
    assert _engine_options(asked) == ["--or-best", "--engine", "openvino", "--precision", "bf16"]
    assert _engine_options(parse_choice("openvino", None)) == ["--engine", "openvino"]
    assert _engine_options(None) == []


def test_engines_that_are_no_choice_are_not_asked_for() -> None:
    for engine in (None, "transformers", "python"):
        assert locked_choice(engine, "fp32") is None


def test_a_sync_asks_for_the_engine_of_the_lock(tmp_path: Path) -> None:
    store = ModelStore(open_db(tmp_path / "db"), EventBus())
    entry = locks.entry()
    bring(store, entry, entry.version)
    known = store.version(entry.model_id, entry.version)
    assert known.engine_choice == EngineChoice(engine="onnxruntime", required=False)


def test_a_choice_is_kept_and_taken_back(tmp_path: Path) -> None:
    store = ModelStore(open_db(tmp_path / "db"), EventBus())
    choice = EngineChoice(engine="openvino", precision="bf16")
    store.register(NewModel(model_id="org/a", task_type="txt2embed", engine_choice=choice))
    store.add_version("org/a", "v2", engine_choice=choice)
    assert store.version("org/a", "main").engine_choice == choice
    assert store.version("org/a", "v2").engine_choice == choice
    assert store.choose_engine("org/a", "v2", None).engine_choice is None
