"""Tasks that run in a transformers pipeline: tried once, packaged with the model's own files."""

from __future__ import annotations

import base64
import io
import struct
from typing import TYPE_CHECKING, Any

from converters import exporting
from converters.conversion import fresh_output
from converters.errors import ArtifactNotAccessible, ExportFailed, one_line
from converters.exporting import tensor
from converters.manifest import write_manifest
from converters.packaging import MODEL_FOLDER, package
from converters.sentence_model import read_json
from converters.weights import find_weights

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.weights import Weights

_PIPELINES = {
    "object_detection": "object-detection",
    "audio2txt": "automatic-speech-recognition",
    "txt2audio": "text-to-audio",
}
_PRECISIONS = ("fp32", "bf16")
# They give spectrograms; what makes sound of these lies in another repository.
_SPECTROGRAMS = ("speecht5", "fastspeech2_conformer")
_RATE = 16_000


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the tasks object_detection, audio2txt and txt2audio.

    Raises:
        ConversionError: its subclass tells why; `output` is gone then, unless it existed before.
    """
    precision = conversion.precision or "fp32"
    if conversion.engine not in (None, "transformers") or precision not in _PRECISIONS:
        raise ExportFailed(
            f"The task {conversion.task} runs on transformers in {' or '.join(_PRECISIONS)}."
        )
    _require_known(conversion)
    weights = find_weights(conversion.source, allow_pickle=conversion.allow_pickle)
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        pipe = _load(conversion, weights)
        conversion.events.progress("verify", 0.0, "answering a small request")
        _try(pipe, conversion.task)
        package(conversion)
        manifest = _manifest(conversion, pipe, weights, precision)
        return write_manifest(conversion.output, manifest)


def _require_known(conversion: Conversion) -> None:
    """An architecture that transformers has itself: the stub runs no code of the repository."""
    config = read_json(conversion.source / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ArtifactNotAccessible("config.json names no model_type.")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        raise ExportFailed(f"The architecture {config['model_type']!r} is unknown to transformers.")
    if conversion.task == "txt2audio" and config["model_type"] in _SPECTROGRAMS:
        voice = (
            ", nor has the repository the vectors of its speakers"
            if config["model_type"] == "speecht5"
            else ""
        )
        raise ExportFailed(
            f"The architecture {config['model_type']!r} gives spectrograms, and the vocoder that "
            f"makes sound of them is in another repository{voice}. Models that speak by themselves "
            "are served: VITS and MMS (facebook/mms-tts-eng), Bark (suno/bark-small)."
        )


def _load(conversion: Conversion, weights: Weights) -> Any:
    import torch
    import transformers

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.pipeline(
            _PIPELINES[conversion.task],
            model=str(conversion.source),
            dtype=torch.float32,
            device="cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": weights.safe},
        )
    except Exception as error:
        raise ArtifactNotAccessible(
            f"The files do not give a pipeline for {conversion.task}: {one_line(error)}."
        ) from error


def _try(pipe: Any, task: str) -> None:
    """Raises ExportFailed unless the pipeline answers a small request."""
    import numpy as np
    import torch
    from PIL import Image

    requests = {
        "object_detection": lambda: pipe(Image.new("RGB", (64, 64), (120, 120, 120))),
        "audio2txt": lambda: pipe(np.zeros(pipe.feature_extractor.sampling_rate, np.float32)),
        "txt2audio": lambda: pipe("a"),
    }
    try:
        with torch.inference_mode():
            requests[task]()
    except Exception as error:
        raise ExportFailed(f"The pipeline answers nothing: {one_line(error)}.") from error


def _manifest(
    conversion: Conversion, pipe: Any, weights: Weights, precision: str
) -> dict[str, Any]:
    return exporting.base_manifest(
        conversion,
        backend="pipeline",
        engine="transformers",
        precision=precision,
        libraries=("torch", "transformers"),
        **_tensors(conversion.task),
        max_batch_size=0,
        pipeline={
            "model_folder": MODEL_FOLDER,
            "pipeline": _PIPELINES[conversion.task],
            "safetensors": weights.safe,
        },
        parameters=sum(parameter.numel() for parameter in pipe.model.parameters()),
        dtype=weights.dtype or "unknown",
    )


def _tensors(task: str) -> dict[str, Any]:
    """The manifest's inputs and outputs, and a smallest request."""
    if task == "object_detection":
        return {
            "inputs": [tensor("image_input", "BYTES")],
            "outputs": [
                tensor("label", "BYTES", (-1,)),
                tensor("score", "FP32", (-1,)),
                tensor("box", "FP32", (-1, 4)),
            ],
            "probe": {"inputs": {"image_input": _base64(_png())}},
        }
    if task == "audio2txt":
        return {
            "inputs": [tensor("audio_input", "BYTES")],
            "outputs": [
                tensor("text_output", "BYTES"),
                tensor("segment_text", "BYTES", (-1,)),
                tensor("segment_start", "FP32", (-1,)),
                tensor("segment_end", "FP32", (-1,)),
            ],
            "probe": {"inputs": {"audio_input": _base64(_wav())}},
        }
    return {
        "inputs": [tensor("text_input", "BYTES")],
        "outputs": [tensor("audio_output", "BYTES"), tensor("sample_rate", "INT32")],
        "probe": {"inputs": {"text_input": "a"}},
    }


def _base64(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


def _png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), (120, 120, 120)).save(file, "PNG")
    return file.getvalue()


def _wav() -> bytes:
    """A tenth of a second of silence: RIFF/WAVE, one channel, 16 bits."""
    samples = bytes(2 * (_RATE // 10))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _RATE, 2 * _RATE, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data
