"""What cannot be converted is refused: one error line that names the fact, and nothing left."""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests import models

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dense = {"in_features": models.HIDDEN, "out_features": 8}
    return models.tiny_bert(tmp_path_factory.mktemp("models") / "bert", dense=dense)


@pytest.fixture
def source(bert: Path, tmp_path: Path) -> Path:
    """A good model's folder, for the test to spoil."""
    return shutil.copytree(bert, tmp_path / "model")


def refusal(source: Path, *arguments: str) -> tuple[str, str]:
    """Code and message of the last line; checks that no output is left."""
    from converters.__main__ import main

    output, out = source.parent / "out", io.StringIO()
    base = ["convert", "--task", "txt2embed", "--source", str(source), "--output", str(output)]
    base += ["--threads", "1"]
    assert main([*base, *arguments], out) == 1
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last["event"] == "error"
    assert "\n" not in last["message"]
    assert "Traceback" not in last["message"]
    assert not output.exists()
    return last["code"], last["message"]


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(value))


def pickle_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def assert_converts(source: Path, output: Path, *arguments: str) -> None:
    from converters.__main__ import main

    base = ["convert", "--task", "txt2embed", "--source", str(source), "--output", str(output)]
    base += ["--threads", "1"]
    assert main([*base, *arguments], io.StringIO()) == 0


def test_source_is_no_folder(tmp_path: Path) -> None:
    code, message = refusal(tmp_path / "nothing")
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "nothing is not a folder" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_file_missing(name: str, source: Path) -> None:
    (source / name).unlink()
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert name in message


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty")[0] == "ARTIFACT_NOT_ACCESSIBLE"


@pytest.mark.parametrize("name", ["config.json", "modules.json", "1_Pooling/config.json"])
def test_json_damaged(name: str, source: Path) -> None:
    (source / name).write_text('{"model_type": ')
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert name.rpartition("/")[2] in message


@pytest.mark.parametrize("keep", [0, 7, 1000, -4], ids=["empty", "stub", "header", "end-missing"])
def test_safetensors_cut_off(keep: int, source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "model.safetensors is damaged" in message


def test_weights_lack_a_layer(source: Path) -> None:
    """transformers would fill it with random numbers."""
    edit(source / "config.json", num_hidden_layers=3)
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "model.safetensors lacks 16 weights" in message
    assert "encoder.layer.2" in message


def test_weights_of_other_sizes(source: Path) -> None:
    edit(source / "config.json", intermediate_size=48)
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "model.safetensors and config.json do not give a model" in message


def test_weights_with_nan(source: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    code, message = refusal(source)
    assert code == "EXPORT_FAILED"
    assert "no numbers" in message


@pytest.mark.parametrize("folder", ["", "2_Dense"])
def test_pickles_need_permission(folder: str, source: Path) -> None:
    pickle_weights(source / folder)
    code, message = refusal(source)
    assert code == "UNSAFE_WEIGHTS"
    assert "pytorch_model.bin is a pickle" in message


def test_pickles_with_permission(source: Path, tmp_path: Path) -> None:
    texts, outputs = list(models.TEXTS), [tmp_path / "safe", tmp_path / "pickled"]
    assert_converts(source, outputs[0])
    pickle_weights(source)
    pickle_weights(source / "2_Dense")
    assert_converts(source, outputs[1], "--allow-pickle")
    safe, pickled = (models.artefact_vectors(output, texts) for output in outputs)
    assert (safe == pickled).all()


def test_pickle_that_would_run_code_is_not_run_even_with_permission(source: Path) -> None:
    import pickle

    ran = source.parent / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (type(ran).touch, (ran,))

    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    code, message = refusal(source, "--allow-pickle")
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "pytorch_model.bin" in message
    assert not ran.exists()


def test_no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "has no tokenizer" in message


def test_tokenizer_damaged(source: Path) -> None:
    (source / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "tokenizer" in message


def test_tokenizer_of_another_model(source: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:100].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    edit(source / "config.json", vocab_size=100)
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "tokenizer does not fit the model" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "brandnew"}, "'brandnew' of config.json is unknown to transformers"),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "modeling.Own"}},
            "'own' of config.json brings its own code",
        ),
        ({"model_type": "bart"}, "encoder-decoder 'bart'"),
        ({"vision_config": {}}, "takes more than text"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    ],
    ids=["unknown", "own-code", "encoder-decoder", "vision", "quantized"],
)
def test_architecture_not_supported(change: dict[str, Any], words: str, source: Path) -> None:
    edit(source / "config.json", **change)
    code, message = refusal(source)
    assert code == "EXPORT_FAILED"
    assert words in message


def test_config_with_nonsense(source: Path) -> None:
    edit(source / "config.json", hidden_size="wide")
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "config.json" in message


def test_config_names_no_architecture(source: Path) -> None:
    (source / "config.json").write_text("{}")
    code, message = refusal(source)
    assert (code, message) == ("ARTIFACT_NOT_ACCESSIBLE", "config.json names no model_type.")


def test_adapter(source: Path) -> None:
    (source / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refusal(source)[1]


def test_chat_model_without_modules_json(tmp_path: Path) -> None:
    source = models.tiny_llama(tmp_path / "model")
    (source / "modules.json").unlink()
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    code, message = refusal(source)
    assert code == "EXPORT_FAILED"
    assert "chat template" in message


def test_dense_weights_do_not_fit(source: Path) -> None:
    edit(source / "2_Dense/config.json", out_features=9)
    code, message = refusal(source)
    assert code == "ARTIFACT_NOT_ACCESSIBLE"
    assert "2_Dense/model.safetensors does not fit" in message


@pytest.mark.parametrize("name", ["torch.nn.Nonsense", "torch.nn.Threshold"])
def test_dense_activation_unknown(name: str, source: Path) -> None:
    edit(source / "2_Dense/config.json", activation_function=name)
    code, message = refusal(source)
    assert code == "EXPORT_FAILED"
    assert name.rpartition(".")[2] in message


def test_output_exists_and_is_left_alone(source: Path, tmp_path: Path) -> None:
    from converters.__main__ import main

    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("keep")
    out = io.StringIO()
    arguments = ["--source", str(source), "--output", str(tmp_path / "out")]
    assert main(["convert", "--task", "txt2embed", *arguments], out) == 1
    assert "exists already" in json.loads(out.getvalue())["message"]
    assert (tmp_path / "out/mine").read_text() == "keep"


def test_no_room_for_the_artefact(source: Path) -> None:
    """A sparse file holds more weights than the disk: refused before anything is written."""
    free = shutil.disk_usage(source).free
    header = {"big": {"dtype": "F32", "shape": [free // 4], "data_offsets": [0, free // 4 * 4]}}
    text = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + free // 4 * 4)
    code, message = refusal(source)
    assert code == "INSUFFICIENT_DISK"
    assert f"Not enough disk space in {source.parent}" in message
    assert "MB needed" in message


def test_graph_of_another_model_fails_the_comparison(source: Path, tmp_path: Path) -> None:
    from converters import text_embedding, verify
    from converters.sentence_model import read_sentence_model
    from converters.tokenization import TOKENIZER_FILE
    from converters.weights import find_weights

    assert_converts(source, tmp_path / "graph")
    (tmp_path / "out").mkdir()
    loaded = text_embedding.load(
        read_sentence_model(source),
        find_weights(source, allow_pickle=False),
        tmp_path / "out",
        allow_pickle=False,
        threads=1,
    )
    loaded.encoder.transformer.embeddings.LayerNorm.bias.data += 0.01
    check = verify.Check(loaded.encoder, tmp_path / "out" / TOKENIZER_FILE, loaded.tokenization)
    parity = check.compare(tmp_path / "graph/model.onnx", threads=1, progress=lambda _share: None)
    assert parity.texts == 39
    assert not parity.holds
    assert parity.max_abs_diff > verify.MAX_ABS_DIFF
