"""Rules of models and versions: ids, names in Triton, version order, status, requirements."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controlplane.errors import (
    InvalidChecksum,
    InvalidModelId,
    InvalidTaskType,
    ValidationFailed,
)
from controlplane.registry.model import (
    INSTALLING,
    STATUS_MOVES,
    ModelChange,
    ModelId,
    NewModel,
    ResourceCapacity,
    ResourceRequirements,
    TaskType,
    VersionStatus,
    check_change,
    check_checksum,
    check_new_model,
    check_version_name,
    version_sort_key,
)
from controlplane.registry.source_url import SourceUrl, parse_source_url

_PART = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,30}[A-Za-z0-9_])?", fullmatch=True)
PARTS = _PART.filter(lambda part: "--" not in part and ".." not in part)
IDS = st.builds(ModelId, PARTS, PARTS)


@given(IDS)
def test_a_model_id_survives_every_spelling(model_id: ModelId) -> None:
    text = str(model_id)
    assert ModelId.parse(text) == model_id
    assert ModelId.from_any_spelling(quote(text, safe="")) == model_id
    assert ModelId.from_any_spelling(model_id.triton_name) == model_id


@given(IDS, IDS)
def test_different_models_never_share_a_triton_name(one: ModelId, other: ModelId) -> None:
    assume(one != other)
    assert one.triton_name != other.triton_name


@given(IDS)
def test_a_triton_name_is_a_plain_folder_name(model_id: ModelId) -> None:
    name = model_id.triton_name
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert not name.startswith((".", "-"))
    assert ".." not in name


@given(st.text(max_size=40))
def test_whatever_is_accepted_as_an_id_is_written_back_the_same(text: str) -> None:
    try:
        model_id = ModelId.parse(text)
    except InvalidModelId:
        return
    assert str(model_id) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "gpt2", "/", "a/", "/b", "a/b/c", "a b/c", "-a/b", "a/b-", "a/.b", "a/b.", "a--b/c"),
        *("a/b..c", "../etc/passwd", "a/..", "ä/b", "a/b\n", "a/b\0", "a%2Fb", "a" * 300 + "/b"),
    ],
)
def test_what_is_no_model_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidModelId):
        ModelId.parse(text)


def test_the_longest_id_still_makes_a_folder_name() -> None:
    longest = "a" * 127 + "/" + "b" * 126
    assert len(ModelId.parse(longest).triton_name) == 255
    with pytest.raises(InvalidModelId, match="254"):
        ModelId.parse(longest + "b")


@pytest.mark.parametrize("text", ["txt2embed", "TXT2EMBED", " Txt2Embed "])
def test_task_types_are_read_in_any_case(text: str) -> None:
    assert TaskType.parse(text) is TaskType.TXT2EMBED


def test_a_hyphen_in_a_task_type_reads_as_an_underscore() -> None:
    assert TaskType.parse("object-detection") is TaskType.OBJECT_DETECTION


@pytest.mark.parametrize("text", ["", "embedding", "txt2", "txt2embed2"])
def test_an_unknown_task_type_is_refused_with_the_supported_ones(text: str) -> None:
    with pytest.raises(InvalidTaskType, match="txt2embed"):
        TaskType.parse(text)


# -- versions ----------------------------------------------------------------------------------


def test_versions_are_ordered_as_semantic_versions_are() -> None:
    ordered = [
        *("dev", "main", "v0.9.9", "1.0.0-1", "1.0.0-alpha", "1.0.0-alpha.2", "1.0.0-alpha.10"),
        *("1.0.0-beta", "v1.0.0", "1.2.0", "1.10.0", "v2.0.0"),
    ]
    for turn in range(len(ordered)):
        assert sorted(ordered[turn:] + ordered[:turn], key=version_sort_key) == ordered


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * 3), min_size=2, max_size=2, unique=True))
def test_the_order_of_releases_is_that_of_their_numbers(pair: list[tuple[int, int, int]]) -> None:
    one, other = ("v{}.{}.{}".format(*numbers) for numbers in pair)
    assert (version_sort_key(one) < version_sort_key(other)) == (pair[0] < pair[1])


@pytest.mark.parametrize(
    "text", ["main", "v1.2.3", "1.2.3-rc.1+build", "feature/x", "fp16", "a" * 100]
)
def test_branches_tags_and_semantic_versions_are_accepted(text: str) -> None:
    assert check_version_name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "a" * 101, "../x", "a..b", "-x", "/x", "x/", "a//b", "x.", "a b", "a\n", "ä", "a:b"],
)
def test_what_git_or_a_path_would_not_bear_is_refused(text: str) -> None:
    with pytest.raises(ValidationFailed) as raised:
        check_version_name(text)
    assert list(raised.value.details["fields"]) == ["version"]


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "G" * 64, "0" * 64]
)
def test_a_checksum_has_64_digits(text: str) -> None:
    assert check_checksum("sha256:" + "0a" * 32)
    with pytest.raises(InvalidChecksum):
        check_checksum(text)


def test_every_status_can_end_well_or_badly_and_be_tried_again() -> None:
    assert set(STATUS_MOVES) == set(VersionStatus)
    for status in INSTALLING:
        assert VersionStatus.FAILED in STATUS_MOVES[status]
    # ready again: an artefact that was missing at one start and is there at the next
    assert STATUS_MOVES[VersionStatus.FAILED] == {
        VersionStatus.DOWNLOADING,
        VersionStatus.READY,
    }
    into_ready = {start for start, ends in STATUS_MOVES.items() if VersionStatus.READY in ends}
    assert into_ready == {VersionStatus.EXPORTING, VersionStatus.FAILED}


# -- requirements --------------------------------------------------------------------------------

SIZES = st.integers(-2, 200_000)


@given(SIZES, SIZES, SIZES, st.none() | SIZES, st.none() | SIZES, st.none() | SIZES)
def test_requirements_are_valid_exactly_within_their_limits(
    memory: int, vram: int, threads: int, gpus: int | None, least: int | None, disk: int | None
) -> None:
    given_ = ResourceRequirements(
        memory_mb=memory,
        gpu_vram_mb=vram,
        cpu_threads=threads,
        gpu_count=gpus,
        min_memory_mb=least,
        disk_space_mb=disk,
    )
    valid = (
        memory > 0
        and vram >= 0
        and threads > 0
        and (gpus is None or gpus >= 0)
        and (least is None or 0 < least <= memory)
        and (disk is None or disk > 0)
    )
    assert (not given_.errors()) == valid
    assert all(path.startswith("resource_requirements.") for path in given_.errors())


@given(st.integers(0, 10**12), st.booleans())
def test_an_estimate_is_one_and_a_half_times_the_size_and_valid(size: int, uses_gpu: bool) -> None:
    estimate = ResourceRequirements.estimate(size, uses_gpu=uses_gpu)
    assert not estimate.errors()
    assert estimate.memory_mb * 2**20 >= size * 1.5
    assert estimate.memory_mb <= size * 1.5 / 2**20 + 1
    assert (estimate.gpu_vram_mb == estimate.memory_mb) == uses_gpu
    assert estimate.gpu_count == int(uses_gpu)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9), st.integers(0, 9))
def test_requirements_fit_when_nothing_exceeds(
    memory: int, vram: int, threads: int, gpus: int
) -> None:
    need = ResourceRequirements(
        memory_mb=memory, gpu_vram_mb=vram, cpu_threads=threads, gpu_count=gpus
    )
    exact = ResourceCapacity(
        memory_mb=memory, gpu_vram_mb=vram, cpu_threads=threads, gpu_count=gpus
    )
    assert need.fits_in(exact)
    assert not need.fits_in(msgspec.structs.replace(exact, memory_mb=memory - 1))
    assert not need.fits_in(msgspec.structs.replace(exact, cpu_threads=threads - 1))


def test_unlikely_requirements_are_allowed_with_warnings() -> None:
    huge = ResourceRequirements(memory_mb=100_001, gpu_vram_mb=80_001, cpu_threads=65, gpu_count=0)
    assert not huge.errors()
    assert len(huge.warnings()) == 4
    assert "CPU-only" in str(ResourceRequirements(memory_mb=1))


def test_requirements_are_compared_over_all_fields() -> None:
    assert ResourceRequirements(memory_mb=5) == ResourceRequirements(memory_mb=5)
    assert ResourceRequirements(memory_mb=5) != ResourceRequirements(memory_mb=5, disk_space_mb=1)


# -- registration ----------------------------------------------------------------------------------


def _refused(**fields: object) -> list[str]:
    with pytest.raises(ValidationFailed) as raised:
        check_new_model(NewModel(model_id="a/b", task_type="txt2embed", **fields))  # type: ignore[arg-type]
    return sorted(raised.value.details["fields"])


def test_a_registration_names_every_broken_rule_at_once() -> None:
    broken = _refused(
        version="a b",
        display_name=" ",
        description="x" * 1001,
        created_by="",
        framework_version="1" * 51,
        framework="mxnet",
        source_url="relative/folder",
        resource_requirements=ResourceRequirements(memory_mb=0),
    )
    assert broken == [
        "created_by",
        "description",
        "display_name",
        "framework",
        "framework_version",
        "resource_requirements.memory_mb",
        "source_url",
        "version",
    ]


@pytest.mark.parametrize("framework", ["tensorflow", "jax", "onnx"])
def test_only_pytorch_sources_are_accepted_so_far(framework: str) -> None:
    assert _refused(framework=framework) == ["framework"]


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\ud800b"])
def test_text_that_a_database_would_not_keep_is_refused(text: str) -> None:
    assert _refused(display_name=text) == ["display_name"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/m", "must name an archive"),
        ("https://example.com/model.safetensors", "single file of weights"),
        ("https://example.com/model.onnx?download=1", "single file of weights"),
        ("https://example.com/m.tar.zst", "zstd"),
        ("https://user:secret@example.com/m.zip", "a password"),
        ("https://example.com:port/m.zip", "must be an absolute path"),
        ("https://example.com/m.zip#sha256=12", "64 lowercase"),
        ("https://huggingface.co/org/name", "left out"),
        ("https:///m.zip", "must be an absolute path"),
        ("ftp://example.com/m.zip", "must be an absolute path"),
        ("s3://B/m", "name of a bucket"),
        ("s3://bucket/m?versionId=1", r"without \? and #"),
        ("s3://bucket/model.safetensors", "single file of weights"),
        ("file://host/m", "must be an absolute path"),
        ("m", "must be an absolute path"),
        ("/\0", "control character"),
        ("https://example.com/a b.zip", "%20"),
    ],
)
def test_a_source_that_cannot_be_one_is_explained(url: str, words: str) -> None:
    assert _refused(source_url=url) == ["source_url"]
    with pytest.raises(ValidationFailed, match=words):
        check_new_model(NewModel(model_id="a/b", task_type="txt2embed", source_url=url))


@pytest.mark.parametrize(
    "url",
    [
        "/m",
        "file:///m%20n",
        "http://intranet/m.zip",
        "https://example.com/m.tar.gz?signature=1#sha256=" + "0" * 64,
        "s3://bucket/models/minilm",
        "s3://bucket",
        "s3://my.bucket/m.tgz",
    ],
)
def test_sources_of_every_kind_are_taken(url: str) -> None:
    check_new_model(NewModel(model_id="a/b", task_type="txt2embed", source_url=url))


@given(st.text(max_size=50))
def test_no_text_breaks_the_rule_on_sources(text: str) -> None:
    for url in (text, "https://" + text, "s3://" + text, "file://" + text):
        assert isinstance(parse_source_url(url), str | SourceUrl)


def test_a_change_is_checked_and_may_clear_a_field() -> None:
    check_change(ModelChange(display_name=None, description="x\ny"))
    with pytest.raises(ValidationFailed):
        check_change(ModelChange(resource_requirements=ResourceRequirements(memory_mb=-1)))
    with pytest.raises(ValidationFailed):
        check_change(ModelChange(description=""))
