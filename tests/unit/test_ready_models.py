"""The rules of ready-made Triton models: which files, which version folder, what is refused."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import ArtifactNotAccessible, SourceRefused, TritonModelInvalid
from controlplane.lifecycle.ready_probe import made_up_inputs
from controlplane.registry import ready_source, root_files
from controlplane.registry.files import SourceRules, is_plain_path
from controlplane.registry.ready_models import (
    ServerFacts,
    choose,
    is_ready_made,
    server_faults,
)
from tests import ready_folders

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.ready_models import Choice

PYTHON = ready_folders.ECHO_CONFIG
FILES = ("config.pbtxt", "1/model.py")
EMBEDDED = ServerFacts(embedded=True, gpu=False)


def chosen(config: str = PYTHON, files: tuple[str, ...] = FILES, version: str = "main") -> Choice:
    return choose(files, config.encode(), version, "the folder")


def faults(config: str, files: tuple[str, ...] = FILES, version: str = "main") -> dict[str, Any]:
    with pytest.raises(TritonModelInvalid) as caught:
        chosen(config, files, version)
    fields: dict[str, Any] = caught.value.details["fields"]
    assert all(place in caught.value.message for place in list(fields)[:10])
    return fields


# -- what is one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ready"),
    [
        (["config.pbtxt", "1"], True),
        (["config.pbtxt", "1/model.py", "config.json"], True),
        (["config.pbtxt"], True),  # it means to be one, and is told what is missing
        (["config.pbtxt", "config.json", "onnx"], False),
        (["config.json", "model.safetensors"], False),
        (["1/config.pbtxt"], False),
        ([], False),
    ],
)
def test_a_ready_made_model_is_known_by_its_configuration(names: list[str], ready: bool) -> None:
    assert is_ready_made(names) is ready


# -- the version folder ---------------------------------------------------------------------------

SEVERAL = ("config.pbtxt", "1/model.py", "2/model.py", "10/model.py", "labels.txt")


@pytest.mark.parametrize(
    ("policy", "version", "number"),
    [
        ("", "main", 10),
        ("", "2", 2),
        ("", "v2", 10),
        ("", "02", 10),
        ("version_policy { latest { num_versions: 1 } }", "main", 10),
        ("version_policy { all { } }", "main", 10),
        ("version_policy { specific { versions: [1, 2] } }", "main", 2),
        ("version_policy { specific { versions: [1, 7] } }", "main", 1),
        ("version_policy { specific { versions: [1] } }", "10", 10),
    ],
)
def test_the_version_folder_is_the_named_or_the_served_one(
    policy: str, version: str, number: int
) -> None:
    found = chosen(PYTHON + policy, SEVERAL, version)
    assert found.number == number
    assert found.files == tuple(sorted(("config.pbtxt", "labels.txt", f"{number}/model.py")))
    assert found.root_files == ("labels.txt",)


@pytest.mark.parametrize(
    ("config", "files", "version", "place"),
    [
        (PYTHON, ("config.pbtxt",), "main", "version folders"),
        (PYTHON, ("config.pbtxt", "v1/model.py", "0/model.py"), "main", "version folders"),
        (PYTHON, ("config.pbtxt", "99999999999/model.py"), "main", "version folders"),
        (PYTHON, FILES, "7", "version"),
        (
            PYTHON + "version_policy { specific { versions: [4] } }",
            FILES,
            "main",
            "config.pbtxt: version_policy.specific",
        ),
    ],
)
def test_a_version_folder_that_is_not_there_is_told(
    config: str, files: tuple[str, ...], version: str, place: str
) -> None:
    assert list(faults(config, files, version)) == [place]


# -- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("backend 7", "config.pbtxt"),
        ("no_such_field: 7", "config.pbtxt"),
        ("\x00", "config.pbtxt"),
        ("max_batch_size: 99999999999", "config.pbtxt"),
        ("input [ { data_type: TYPE_FP128 } ]", "config.pbtxt"),
        ("#" * (2**20 + 1), "config.pbtxt"),
        (PYTHON.replace("8", "-1"), "config.pbtxt: max_batch_size"),
        (PYTHON + 'input [ { name: "x" dims: [1] } ]', "config.pbtxt: input[1].data_type"),
        (PYTHON + "input [ { data_type: TYPE_BOOL } ]", "config.pbtxt: input[1].name"),
        (
            PYTHON + 'output [ { name: "x" data_type: TYPE_BOOL dims: [0] } ]',
            "config.pbtxt: output[1].dims",
        ),
        (
            PYTHON + 'input [ { name: "x" data_type: TYPE_BOOL dims: [1, -2] } ]',
            "config.pbtxt: input[1].dims",
        ),
        (
            PYTHON + 'input [ { name: "text" data_type: TYPE_BOOL dims: [1] } ]',
            "config.pbtxt: input",
        ),
        (PYTHON + "instance_group [ { count: -1 } ]", "config.pbtxt: instance_group[0].count"),
        (
            PYTHON + 'model_repository_agents { agents [ { name: "checksum" } ] }',
            "config.pbtxt: model_repository_agents",
        ),
        (
            PYTHON + 'parameters { key: "modelmora_probe" value { string_value: "perhaps" } }',
            "config.pbtxt: parameters.modelmora_probe",
        ),
    ],
)
def test_a_faulty_configuration_is_refused_by_its_field(config: str, place: str) -> None:
    assert list(faults(config)) == [place]


@pytest.mark.parametrize(
    ("config", "files", "place"),
    [
        ("max_batch_size: 1", ("config.pbtxt", "1/weights"), "config.pbtxt: backend"),
        (PYTHON, ("config.pbtxt", "1/other.py"), "1/model.py"),
        ('platform: "onnxruntime_onnx"', ("config.pbtxt", "1/model.py"), "1/model.onnx"),
        (PYTHON + 'default_model_filename: "a.py"', FILES, "1/a.py"),
        (PYTHON, (*FILES, "1/manifest.json"), "1/manifest.json"),
        (PYTHON, (*FILES, "1/config.pbtxt"), "1/config.pbtxt"),
        (PYTHON, (*FILES, "2"), "2"),
        (PYTHON, (*FILES, "1/a\nb"), r"'1/a\nb'"),
        (PYTHON, (*FILES, "1/a\\b"), r"'1/a\\b'"),
        (PYTHON, (*FILES, "../up"), None),
        (PYTHON, (*FILES, "1/\udcff"), r"'1/\udcff'"),
        (PYTHON, (*FILES, *(f"1/{number}.bin" for number in range(10_000))), "files"),
    ],
)
def test_faulty_files_are_refused_by_their_path(
    config: str, files: tuple[str, ...], place: str | None
) -> None:
    if place is None:  # a hidden name, as far as we are concerned: left out
        assert "../up" not in chosen(config, files).files
    else:
        assert list(faults(config, files)) == [place]


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret", "a/../../b", "", "a\\b"])
@pytest.mark.parametrize(
    ("config", "field"),
    [
        ("default_model_filename: {}", "default_model_filename"),
        ('cc_model_filenames {{ key: "7.5" value: {} }}', "cc_model_filenames.7.5"),
        (
            'output [ {{ name: "l" data_type: TYPE_FP32 dims: [1] label_filename: {} }} ]',
            "output[1].label_filename",
        ),
        (
            "model_operations {{ op_library_filename: [ {} ] }}",
            "model_operations.op_library_filename[0]",
        ),
        (
            'model_warmup [ {{ name: "w" inputs {{ key: "text" value {{ input_data_file: {} }} }}'
            " }} ]",
            "model_warmup[0].inputs.text",
        ),
    ],
)
def test_files_that_a_configuration_names_cannot_be_elsewhere(
    config: str, field: str, path: str
) -> None:
    text = PYTHON + config.format('"' + path.replace("\\", "\\\\") + '"')
    if path or "cc_model" in field or "op_library" in field:
        assert f"config.pbtxt: {field}" in faults(text)
    else:  # as good as not named
        assert chosen(text).number == 1


def test_labels_and_samples_must_be_there() -> None:
    config = PYTHON.replace('"echo" data', '"echo" label_filename: "labels.txt" data')
    assert list(faults(config)) == ["config.pbtxt: output[0].label_filename"]
    assert chosen(config, (*FILES, "labels.txt")).root_files == ("labels.txt",)
    config = (
        PYTHON + 'model_warmup [ { name: "w" inputs { key: "text" value '
        '{ data_type: TYPE_STRING dims: [1] input_data_file: "text.bin" } } } ]'
    )
    assert list(faults(config, (*FILES, "text.bin"))) == [
        "config.pbtxt: model_warmup[0].inputs.text"
    ]
    assert chosen(config, (*FILES, "warmup/text.bin")).number == 1


@pytest.mark.parametrize(
    ("config", "file", "backend"),
    [
        ("", "model.py", "python"),
        ("", "model.onnx", "onnxruntime"),
        ('platform: "tensorrt_plan"', "model.plan", "tensorrt"),
        ('platform: "pytorch_libtorch"', "model.pt", "pytorch"),
        ('backend: "openvino"', "model.xml", "openvino"),
        ('backend: "dali"', "anything", "dali"),
        ("", "model.savedmodel/saved_model.pb", "tensorflow"),
    ],
)
def test_the_backend_is_named_or_concluded_from_the_files(
    config: str, file: str, backend: str
) -> None:
    assert chosen(config, ("config.pbtxt", f"1/{file}")).config.backend == backend


# -- the server -----------------------------------------------------------------------------------

IO = (
    'input [ { name: "a" data_type: TYPE_FP32 dims: [1] } ]'
    'output [ { name: "b" data_type: TYPE_FP32 dims: [1] } ]'
)


@pytest.mark.parametrize(
    ("config", "place", "text"),
    [
        (f'backend: "onnxruntime" {IO}', "backend", "MODELMORA_TRITON_GRPC_URL"),
        (
            f'backend: "python" {IO} instance_group [ {{ kind: KIND_GPU }} ]',
            "instance_group[0].kind",
            "GPU",
        ),
        (
            f'backend: "python" {IO} instance_group [ {{ gpus: [0] }} ]',
            "instance_group[0].gpus",
            "GPU",
        ),
        ('backend: "python"', "input", "completes no"),
        (
            f'platform: "ensemble" {IO} ensemble_scheduling {{ step [ {{ model_name: "a--b" }},'
            ' { model_name: "c--d" } ] }',
            "ensemble_scheduling",
            "not installed: c--d",
        ),
    ],
)
def test_what_a_server_cannot_run_is_told(config: str, place: str, text: str) -> None:
    known = chosen(config, ("config.pbtxt", "1/model.py", "1/model.onnx")).config
    server = ServerFacts(embedded=True, gpu=False, installed=frozenset({"a--b"}))
    assert text in server_faults(known, server)[f"config.pbtxt: {place}"]


def test_an_external_server_is_believed_to_have_it_all_but_ensembles() -> None:
    external = ServerFacts(embedded=False, gpu=False, installed=frozenset({"a--b"}))
    config = 'backend: "onnxruntime" instance_group [ { kind: KIND_GPU } ]'
    known = chosen(config, ("config.pbtxt", "1/model.onnx")).config
    assert server_faults(known, external) == {}
    config = 'platform: "ensemble" ensemble_scheduling { step [ { model_name: "a--b" } ] }'
    known = chosen(config, ("config.pbtxt", "1/x")).config
    assert "behind the back" in str(server_faults(known, external))


# -- any names ------------------------------------------------------------------------------------

_PARTS = st.sampled_from(
    [
        "1",
        "2",
        "03",
        "model.py",
        "..",
        ".",
        "",
        "a",
        ".git",
        "__pycache__",
        "\\",
        "é",
        "x\x00",
        "weights",
    ]
)
_PATHS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)


@given(st.lists(_PATHS | st.text(max_size=8), max_size=12), st.sampled_from(["main", "1", "2"]))
def test_whatever_is_taken_stays_in_its_folder(paths: list[str], version: str) -> None:
    names = tuple(dict.fromkeys(["config.pbtxt", *paths]))
    try:
        found = chosen(PYTHON, names, version)
    except TritonModelInvalid:
        return
    assert f"{found.number}/model.py" in found.files
    for path in found.files:
        assert is_plain_path(path)
        assert path.isprintable()
        assert not any(part.startswith(".") for part in path.split("/"))
    assert set(found.files) <= set(names)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with contextlib.suppress(TritonModelInvalid, UnicodeEncodeError):
        assert chosen(text).config.backend


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_refused(content: bytes) -> None:
    with contextlib.suppress(TritonModelInvalid):
        choose(FILES, content, "main", "it")


# -- folders of this machine ----------------------------------------------------------------------


def test_a_folder_is_taken_without_what_tools_left(tmp_path: Path) -> None:
    home = ready_folders.labelled(tmp_path / "model")
    (home / ".git").mkdir()
    (home / ".git" / "config").write_text("")
    (home / "1" / "__pycache__").mkdir()
    (home / "1" / "__pycache__" / "model.pyc").write_text("")
    found = ready_source.examine(home.resolve(), "main")
    assert found.files == ("1/helper.py", "1/model.py", "config.pbtxt", "labels/names.txt")


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    home = ready_folders.echo(tmp_path / "model")
    (home / "2").symlink_to(home / "1")
    with pytest.raises(ArtifactNotAccessible, match=r"2 in .* is a link to a folder"):
        ready_source.examine(home.resolve(), "main")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_folder_of_another_user_is_taken_only_where_it_is_named(tmp_path: Path) -> None:
    home = ready_folders.echo(tmp_path / "model").resolve()
    os.chown(home, 12345, 12345)
    with pytest.raises(SourceRefused, match=r"user 12345.*MODELMORA_READY_MODEL_DIRS"):
        ready_source.check_trust(home, SourceRules())
    ready_source.check_trust(home, SourceRules(ready_dirs=(str(tmp_path),)))
    with pytest.raises(SourceRefused):
        ready_source.check_trust(home, SourceRules(ready_dirs=(str(tmp_path / "mod"),)))


def test_a_folder_that_all_may_write_to_is_refused(tmp_path: Path) -> None:
    home = ready_folders.echo(tmp_path / "model").resolve()
    home.chmod(0o777)
    with pytest.raises(SourceRefused, match="everybody may write"):
        ready_source.check_trust(home, SourceRules())


# -- root files -----------------------------------------------------------------------------------


def manifest(version: str, **files: str) -> dict[str, Any]:
    listed = [
        {"path": path.replace("__", "/"), "size": 1, "sha256": x} for path, x in files.items()
    ]
    return {"version": version, "files": listed}


def rooted(version: str, **files: str) -> dict[str, Any]:
    return manifest(version, **{f".root__{path}": digest for path, digest in files.items()})


def test_root_files_of_versions_agree_or_the_second_is_refused() -> None:
    one = rooted("v1", labels="aa", words="bb")
    root_files.check_agreement("it", rooted("v2", labels="aa"), [one])
    root_files.check_agreement("it", rooted("v2", more="cc"), [one])
    with pytest.raises(TritonModelInvalid, match="words: differs from that of version v1"):
        root_files.check_agreement("it", rooted("v2", words="xx"), [one])
    root_files.check_agreement("it", manifest("v2", words="xx"), [one])


def test_root_files_that_go_take_their_empty_folders_along(tmp_path: Path) -> None:
    (tmp_path / "version" / ".root" / "a" / "b").mkdir(parents=True)
    for path in ("a/b/one", "a/two"):
        (tmp_path / "version" / ".root" / path).write_text(path)
    home = tmp_path / "home"
    root_files.place(home, tmp_path / "version", ["a/b/one", "a/two"])
    assert (home / "a" / "b" / "one").read_text() == "a/b/one"
    root_files.take_away(home, ["a/b/one"])
    assert not (home / "a" / "b").exists()
    root_files.take_away(home, ["a/two", "never/there"])
    assert list(home.iterdir()) == []


# -- made-up inputs -------------------------------------------------------------------------------


def probed(batch: int, *tensors: dict[str, Any]) -> dict[str, Any] | None:
    return made_up_inputs({"max_batch_size": batch, "inputs": list(tensors)})


def test_made_up_inputs_are_zeros_and_empty_texts() -> None:
    inputs = probed(
        8,
        {"name": "a", "datatype": "FP16", "shape": [-1, 3]},
        {"name": "b", "datatype": "BYTES", "shape": [2]},
        {"name": "c", "datatype": "BOOL", "shape": [1], "optional": True},
    )
    assert inputs is not None
    assert list(inputs) == ["a", "b"]
    assert inputs["a"].shape == (1, 1, 3)
    assert inputs["a"].dtype == np.float16
    assert inputs["b"].tolist() == [[b"", b""]]
    unbatched = probed(0, {"name": "a", "datatype": "INT8", "shape": [4]})
    assert unbatched is not None
    assert unbatched["a"].shape == (4,)


def test_what_cannot_be_made_up_is_not_asked() -> None:
    assert probed(0) is None
    assert probed(1, {"name": "a", "datatype": "BF16", "shape": [1]}) is None
