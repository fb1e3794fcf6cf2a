"""Entities in three forms: what goes in comes out, all forms say the same, bad input is named."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.errors import ValidationFailed
from controlplane.registry.documents import to_document
from controlplane.registry.model import (
    Model,
    ModelVersion,
    ResourceRequirements,
    TaskType,
    VersionStatus,
)
from controlplane.registry.serialization import (
    from_json,
    from_protobuf,
    from_yaml,
    to_json,
    to_protobuf,
    to_yaml,
)
from protos.modelmora.v1 import common_pb2, registry_pb2

ROOT = Path(__file__).parents[2]
FORMS = {
    "json": (to_json, from_json),
    "yaml": (to_yaml, from_yaml),
    "protobuf": (to_protobuf, from_protobuf),
}

# -- any entity -------------------------------------------------------------------------

text = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
maps = st.dictionaries(text, values, max_size=4)
moments = st.datetimes(  # naive bounds: hypothesis adds the zone
    datetime(1970, 1, 2),  # noqa: DTZ001
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(timezone.utc),
)
small = st.integers(1, 2**31 - 1)
optional_text = st.none() | text
checksums = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
MODEL_ID = "org/name-1.5"


@st.composite
def requirements(draw: Any) -> ResourceRequirements:
    memory = draw(small)
    return ResourceRequirements(
        memory_mb=memory,
        gpu_vram_mb=draw(st.integers(0, 2**31 - 1)),
        cpu_threads=draw(small),
        gpu_count=draw(st.none() | st.integers(0, 16)),
        min_memory_mb=draw(st.none() | st.integers(1, memory)),
        disk_space_mb=draw(st.none() | small),
    )


@st.composite
def versions(draw: Any, name: str = "main", number: int = 1) -> ModelVersion:
    return ModelVersion(
        id=draw(st.uuids().map(str)),
        model_id=MODEL_ID,
        version=name,
        status=draw(st.sampled_from(VersionStatus)),
        triton_version=number,
        created_at=draw(moments),
        updated_at=draw(moments),
        version_number=draw(small),
        revision=draw(optional_text),
        checksum=draw(st.none() | checksums),
        artifact_uri=draw(optional_text),
        framework=draw(st.sampled_from(["pytorch", "onnx"])),
        framework_version=draw(optional_text),
        backend=draw(optional_text),
        engine=draw(optional_text),
        resource_requirements=draw(st.none() | requirements()),
        requirements_declared=draw(st.booleans()),
        measured_memory_mb=draw(st.none() | st.floats(0, 1e9)),
        artefact_bytes=draw(st.none() | st.integers(0, 2**53)),
        artefact_checksum=draw(st.none() | checksums),
        artefact=draw(st.none() | maps),
        error_message=draw(optional_text),
        metadata=draw(maps),
        created_by=draw(optional_text),
    )


@st.composite
def models(draw: Any) -> Model:
    names = draw(st.lists(st.sampled_from(["main", "v1.0.0", "fp16"]), min_size=1, unique=True))
    return Model(
        id=draw(st.uuids().map(str)),
        catalog_id=draw(st.uuids().map(str)),
        model_id=MODEL_ID,
        task_type=draw(st.sampled_from([*TaskType, TaskType("echo_2")])),
        current_version=draw(st.sampled_from(names)),
        versions=tuple(draw(versions(name, n)) for n, name in enumerate(names, 1)),
        created_at=draw(moments),
        updated_at=draw(moments),
        version=draw(small),
        display_name=draw(optional_text),
        description=draw(optional_text),
        source_url=draw(optional_text),
        config=draw(maps),
        custom_params=draw(maps),
    )


entities = models() | versions() | requirements()
generous = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@generous
@given(entities)
def test_every_form_gives_back_what_it_was_given_and_all_say_the_same(entity: Any) -> None:
    document = to_document(entity)
    assert None not in document.values()
    assert json.loads(to_json(entity)) == document
    for write, read in FORMS.values():
        found = read(write(entity), type(entity))
        assert found == entity
        assert to_document(found) == document


@pytest.mark.parametrize(
    "hard", ["\x85", " \n a", "\u2028", "yes", "1e3", "~", "2025-01-01", "a: b"]
)
def test_texts_that_yaml_takes_for_something_else_stay(hard: str) -> None:
    entity = version(error_message=hard, metadata={hard: [hard]})
    for write, read in FORMS.values():
        assert read(write(entity), ModelVersion) == entity


# -- the forms themselves ----------------------------------------------------------------

NOW = datetime(2025, 12, 4, 10, 30, 15, 123000, tzinfo=timezone.utc)


def version(**changes: Any) -> ModelVersion:
    plain = {
        "id": "0b6fbe6e-3a3d-4a57-9d1c-6a2f3c1d2e4f",
        "model_id": "a/b",
        "version": "main",
        "status": VersionStatus.READY,
        "triton_version": 1,
        "created_at": NOW,
        "updated_at": NOW,
        "resource_requirements": ResourceRequirements(memory_mb=300),
    }
    return ModelVersion(**(plain | changes))


def model(**changes: Any) -> Model:
    plain = {
        "id": "1b6fbe6e-3a3d-4a57-9d1c-6a2f3c1d2e4f",
        "catalog_id": "c",
        "model_id": "a/b",
        "task_type": TaskType.IMG2EMBED,
        "current_version": "main",
        "versions": (version(),),
        "created_at": NOW,
        "updated_at": NOW,
        "version": 7,
    }
    return Model(**(plain | changes))


def test_json_has_the_seed_s_names_words_and_times() -> None:
    document = json.loads(to_json(model()))
    assert document["version"] == "main"
    assert document["version_number"] == 7
    assert document["task_type"] == "img2embed"
    assert document["status"] == "ready"
    assert document["created_at"] == "2025-12-04T10:30:15.123000Z"
    assert document["resource_requirements"]["memory_mb"] == 300
    assert "display_name" not in document


def test_a_time_of_another_zone_is_written_in_utc() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert json.loads(to_json(version(created_at=there)))["created_at"].startswith("2025-12-04T10")


def test_protobuf_has_the_fixed_numbers_and_names() -> None:
    message = registry_pb2.Model.FromString(to_protobuf(model()))
    assert message.task_type == common_pb2.TASK_TYPE_IMG2EMBED == 11
    assert message.status == registry_pb2.VERSION_STATUS_READY
    numbers = {field.name: field.number for field in registry_pb2.Model.DESCRIPTOR.fields}
    assert [numbers[n] for n in ("model_id", "version", "task_type", "resource_requirements")] == [
        *(1, 2, 3, 4)
    ]
    assert [numbers[n] for n in ("created_at", "updated_at", "display_name", "id")] == [5, 6, 7, 11]
    needs = {f.name: f.number for f in common_pb2.ResourceRequirements.DESCRIPTOR.fields}
    assert needs == {
        "memory_mb": 1, "gpu_vram_mb": 2, "cpu_threads": 3,
        "gpu_count": 4, "min_memory_mb": 5, "disk_space_mb": 6,
    }  # fmt: skip


def test_every_enum_has_all_words_of_the_domain() -> None:
    tasks = {name.removeprefix("TASK_TYPE_").lower() for name in common_pb2.TaskType.keys()}  # noqa: SIM118
    assert tasks == {task.value for task in TaskType} | {"unspecified", "plugin"}
    prefix = "VERSION_STATUS_"
    statuses = {n.removeprefix(prefix).lower() for n in registry_pb2.VersionStatus.keys()}  # noqa: SIM118
    assert statuses == {status.value for status in VersionStatus} | {"unspecified"}


def test_field_numbers_are_sequential() -> None:
    for message in (registry_pb2.Model, registry_pb2.ModelVersion):
        found = [field.number for field in message.DESCRIPTOR.fields]
        assert found == list(range(1, len(found) + 1))


def test_yaml_takes_comments_and_leaves_dates_in_maps_alone() -> None:
    written = "# by hand\n" + to_yaml(version()).replace(
        "metadata: {}", "metadata:\n  released: 2025-01-01  # a date\n"
    )
    assert from_yaml(written, ModelVersion).metadata == {"released": "2025-01-01"}


# -- bad input -----------------------------------------------------------------------------


def refused(read: Any, data: Any, kind: Any) -> dict[str, list[str]]:
    with pytest.raises(ValidationFailed) as caught:
        read(data, kind)
    return caught.value.details["fields"]


def changed(entity: Any, **changes: Any) -> str:
    return json.dumps({k: v for k, v in (to_document(entity) | changes).items() if v != "gone"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"memory_mb": 0}, "memory_mb"),
        ({"memory_mb": "many"}, "memory_mb"),
        ({"memory_mb": "gone"}, "document"),
        ({"min_memory_mb": 10**6}, "min_memory_mb"),
    ],
)
def test_wrong_requirements_are_named(changes: dict[str, Any], field: str) -> None:
    data = changed(ResourceRequirements(memory_mb=5), **changes)
    assert field in refused(from_json, data, ResourceRequirements)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_id": "b"}, "model_id"),
        ({"version": "a..b"}, "version"),
        ({"checksum": "sha256:12"}, "checksum"),
        ({"triton_version": 0}, "triton_version"),
        ({"created_at": "2025-12-04T10:30:00"}, "created_at"),
        ({"status": "done"}, "status"),
        ({"resource_requirements": {"memory_mb": 1, "ram": 2}}, "resource_requirements.ram"),
        ({"metadata": {"n": 2**53 + 1}}, "metadata.n"),
    ],
)
def test_a_wrong_version_is_named(changes: dict[str, Any], field: str) -> None:
    assert field in refused(from_json, changed(version(), **changes), ModelVersion)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": "v9"}, "version"),
        ({"version_number": 0}, "version_number"),
        ({"task_type": "plugin"}, "task_type"),
        ({"status": "failed"}, "status"),
        ({"resource_requirements": {"memory_mb": 1}}, "resource_requirements"),
        ({"resource_requirements": {"memory_mb": "x"}}, "resource_requirements"),
        ({"versions": [to_document(version()), to_document(version())]}, "versions"),
        ({"versions": [to_document(version(model_id="c/d"))]}, "versions.0.model_id"),
        ({"versions": [to_document(version()) | {"x": 1}]}, "versions.0.x"),
    ],
)
def test_a_wrong_model_is_named(changes: dict[str, Any], field: str) -> None:
    assert field in refused(from_json, changed(model(), **changes), Model)


@pytest.mark.parametrize(
    ("read", "data", "field"),
    [
        (from_json, "{", "json"),
        (from_json, "[]", "document"),
        (from_json, "[" * 100_000, "json"),
        (from_yaml, "a: [", "yaml"),
        (from_yaml, "memory_mb: 1\nmemory_mb: 2", "yaml"),
        (from_yaml, "memory_mb: &a 1\ncpu_threads: *a", "yaml"),
        (from_yaml, "memory_mb: !!python/object:os.system x", "yaml"),
        (from_protobuf, b"\xff\xff", "protobuf"),
    ],
)
def test_what_cannot_be_read_is_named(read: Any, data: Any, field: str) -> None:
    assert field in refused(read, data, ResourceRequirements)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 2**60, object()])
def test_what_no_form_can_hold_is_refused_by_all(number: Any) -> None:
    for write, _ in FORMS.values():
        with pytest.raises(ValidationFailed, match=r"metadata\.n"):
            write(version(metadata={"n": number}))


def test_a_number_that_is_too_large_for_its_field_is_named() -> None:
    with pytest.raises(ValidationFailed, match=r"versions\.0\.resource_requirements\.memory_mb"):
        to_protobuf(
            model(versions=(version(resource_requirements=ResourceRequirements(memory_mb=2**40)),))
        )


def test_protobuf_of_a_newer_version_is_read_without_what_is_new() -> None:
    data = to_protobuf(ResourceRequirements(memory_mb=5)) + bytes([(100 << 3 & 0x7F) | 0x80, 6, 1])
    assert from_protobuf(data, ResourceRequirements) == ResourceRequirements(memory_mb=5)


def test_a_status_that_is_not_known_is_named() -> None:
    message = registry_pb2.ModelVersion.FromString(to_protobuf(version()))
    message.status = 99
    assert "status" in refused(from_protobuf, message.SerializeToString(), ModelVersion)


# -- the generated modules -----------------------------------------------------------------


def test_generated_modules_are_those_of_the_proto_files(tmp_path: Path) -> None:
    sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("protos/modelmora/v1/*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", "."),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"),
            *map(str, sources),
        ],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2.py*")}
    kept = {path.relative_to(ROOT): path.read_text() for path in ROOT.glob("protos/**/*_pb2.py*")}
    assert len(made) == 2 * len(sources)
    assert made == kept, "run `make protos`"
