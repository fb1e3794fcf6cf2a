"""modelmora.lock: the same lock gives the same bytes, and what is wrong is named with its line."""

from __future__ import annotations

import string
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import InvalidLock
from controlplane.registry.files import SourceFile, source_checksum
from controlplane.registry.lock import Converter, LockDocument
from controlplane.registry.lock_file import dump, parse
from controlplane.registry.model import ResourceRequirements
from tests.locks import COMMIT, MOMENT, document, entry, source

TEXT = dump(document(entry("org/one"), entry("org/two", "1.0", files=source("e"))))

# Everything that YAML could take for something else: numbers, dates, booleans, punctuation.
_WORDS = st.sampled_from(["1.0", "1e5", "0x1f", "true", "no", "null", "2026-01-02", "main", "1_0"])
_PATHS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1)
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), max_size=40)
_PART = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=9)


@st.composite
def _entries(draw: st.DrawFn, model_id: str) -> object:
    paths = draw(
        st.sets(_PATHS.filter(lambda p: not set(p) & set("/\\") and p.strip(".")), max_size=3)
    )
    digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
    files = tuple(
        SourceFile(path, draw(st.integers(0, 2**40)), draw(digests)) for path in sorted(paths)
    )
    numbers = st.integers(1, 2**31)
    return entry(
        model_id,
        draw(_WORDS),
        files=files,
        checksum=source_checksum(files) if files else "sha256:" + draw(digests),
        revision=draw(st.sampled_from([None, COMMIT, "1" * 40])),
        source_url=draw(st.none() | _TEXTS.filter(lambda text: text and text.isprintable())),
        resource_requirements=ResourceRequirements(
            memory_mb=draw(numbers),
            gpu_vram_mb=draw(numbers),
            disk_space_mb=draw(st.none() | numbers),
        ),
        converter=draw(st.none() | st.builds(Converter, torch=_WORDS, opset=st.none() | numbers)),
        artefact_checksum=draw(st.none() | st.just("sha256:" + "0" * 64)),
    )


@st.composite
def _documents(draw: st.DrawFn) -> LockDocument:
    ids = sorted(draw(st.sets(st.builds("{}/{}".format, _PART, _PART), max_size=3)))
    return document(
        *(draw(_entries(model_id)) for model_id in ids),
        name=draw(_PART.filter(lambda name: name not in ("import", "compare", "verify"))),
        environment=draw(_WORDS),
        description=draw(st.none() | _TEXTS),
        generated_at=draw(st.datetimes(timezones=st.just(MOMENT.tzinfo))),
    )


@settings(max_examples=50)
@given(_documents())
def test_reading_what_was_written_gives_the_lock_again(lock: LockDocument) -> None:
    text = dump(lock)
    assert parse(text) == lock
    assert dump(parse(text.encode())) == text


def test_the_order_of_models_and_files_does_not_matter() -> None:
    lock = parse(TEXT)
    mixed = msgspec.structs.replace(
        lock,
        locked_models=tuple(
            msgspec.structs.replace(one, files=one.files[::-1]) for one in lock.locked_models[::-1]
        ),
    )
    assert dump(mixed) == TEXT


def test_a_changed_file_is_a_changed_line() -> None:
    other = dump(document(entry("org/one"), entry("org/two", "1.0", files=source("f"))))
    lines = zip(TEXT.splitlines(), other.splitlines(), strict=True)
    changed = [old.strip().partition(":")[0] for old, new in lines if old != new]
    assert changed == ["checksum", "- {path"]


def line_of(part: str) -> int:
    return next(n for n, line in enumerate(TEXT.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("lock_version: '1.0'", "lock_version: '2.0'", 3, "newer ModelMora.*Update"),
        ("lock_version: '1.0'", "lock_version: '0.9'", 3, "'0.9', not '1.0'"),
        ("lock_version: '1.0'\n", "", None, "lock_version is missing"),
        ("name: default", "name: default\nnam: x", 6, "nam is not a known key"),
        ("name: default", "name: default\nname: x", 6, "name is there twice"),
        ("environment: production\n", "", 0, "environment is missing"),
        ("version: main", "version: 1.5", line_of("version: main"), "write it in quotes"),
        (
            "version: main",
            "version: a..b",
            line_of("version: main"),
            r"locked_models\[0\]\.version",
        ),
        ("checksum: sha256", "checksum: sha1", line_of("checksum: sha256"), "64 lowercase"),
        ("checksum: sha256:", "checksum: sha256:0", line_of("checksum: sha256"), "64 lowercase"),
        ("config.json", "confog.json", line_of("checksum: sha256"), "one of them was edited"),
        ("size: 3", "size: three", line_of("config.json"), r"files\[0\]\.size must be int"),
        ("size: 3", "sized: 3", line_of("config.json"), "sized is not a known key"),
        ("memory_mb: 100", "memory_mb: -1", line_of("memory_mb"), "must be above 0"),
        ("model_id: org/two", "model_id: org/one", line_of("org/two"), "there twice"),
        ("task_type: txt2embed\n", "task_type: [\n", line_of("task_type") + 2, "not YAML"),
        ("    torch:", "    torsch:", line_of("torch:"), "torsch is not a known key"),
        ("generated_at: '2026", "generated_at: '20x6", 4, "generated_at"),
        ("Z'", "'", 4, "generated_at"),
        ("locked_models:\n", "locked_models: 3\nx:\n", None, "x is not a known key"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    old: str, new: str, line: int | None, words: str
) -> None:
    assert old in TEXT
    place = "" if not line else rf".*line {line}: "
    with pytest.raises(InvalidLock, match=rf"(?s)^some\.lock: {place}.*{words}"):
        parse(TEXT.replace(old, new, 1), "some.lock")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not a lock"),
        ("- 1\n", "is not a lock"),
        ("just text", "is not a lock"),
        (b"\xff\xfe\x00", "UTF-8|not YAML"),
        ("a: &x [1]\nb: *x\n", r"line 2: aliases \(\*x\)"),
        ("[" * 100_000, "nested too deeply|not YAML"),
        ("lock_version: '1.0'\nlocked_models: {}\n...\n", "must be a list"),
        ("lock_version: '1.0'\nlocked_models: []\n", "is cut off"),
        ("lock_version: '1.0'\nlocked_models: [3]\n...\n", r"locked_models\[0\] must be a model"),
        ("lock_version: !!python/object:os.system x\n", "lock_version is|not YAML"),
        ("? [1]\n: 2\n", "lock_version is missing|not YAML"),
    ],
)
def test_what_is_no_lock_at_all_is_refused(content: str | bytes, words: str) -> None:
    with pytest.raises(InvalidLock, match=words):
        parse(content)


@given(st.integers(0, len(TEXT) - 2))
def test_a_file_that_was_cut_off_is_refused_wherever_that_is(length: int) -> None:
    with pytest.raises(InvalidLock, match=r"^modelmora\.lock"):
        parse(TEXT[:length])


def test_cut_off_between_two_models_it_would_be_a_lock_of_one() -> None:
    cut = TEXT[: TEXT.index("- model_id: org/two")]
    with pytest.raises(InvalidLock, match=r"is cut off: its last line is not '\.\.\.'"):
        parse(cut)
    assert len(parse(cut + "...\n").locked_models) == 1


def test_all_wrong_places_are_named_at_once() -> None:
    broken = TEXT.replace("memory_mb: 100", "memory_mb: 0").replace("version: main", "version: ''")
    with pytest.raises(InvalidLock) as caught:
        parse(broken)
    assert set(caught.value.details["fields"]) == {
        "locked_models[0].version",
        "locked_models[0].resource_requirements.memory_mb",
        "locked_models[1].resource_requirements.memory_mb",
    }


def test_a_lock_of_a_hundred_models_is_read_in_no_time() -> None:
    files = tuple(SourceFile(f"file-{n:02}.json", n, "a" * 64) for n in range(15))
    text = dump(document(*(entry(f"org/m{n:03}", files=files) for n in range(100))))
    seconds = []
    for _ in range(5):  # the least: on a busy machine a single one may take several times as long
        began = time.process_time()
        assert len(parse(text).locked_models) == 100
        seconds.append(time.process_time() - began)
    assert min(seconds) < 1.0
