"""Task img2txt: a captioning or image-and-text chat repository becomes an artefact of its files."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from converters.errors import ExportFailed, one_line
from converters.packaging import MODEL_FOLDER, packaged

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.weights import Weights

_UNLIMITED_CONTEXT = 8192
_SMOKE_TOKENS = 2
_PROBE_SIDE = 64  # pixels; smaller ones are refused by some processors
_QUESTION = "Describe the image."


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task img2txt: checks that all parts fit together, then packages them.

    The manifest's section `image_to_text` tells the backend what `kind` the model is: `caption`
    (BLIP and the like: image and, perhaps, the beginning of the text), `encoder_decoder` (ViT-GPT2
    and the like: the image alone), or `chat` (image and conversation, by the chat template).

    Raises:
        ConversionError: its subclass tells why; the output is gone then.
    """
    return packaged(conversion, _checked)


def _checked(conversion: Conversion, weights: Weights) -> dict[str, Any]:
    import transformers

    from converters import generation
    from converters.precision import Candidates, settle
    from converters.sayings import Sayings

    config = generation.read_config(conversion, _classes())
    alone = config.model_type == "vision-encoder-decoder"
    parts = _processors(conversion, alone=alone)
    auto = transformers.AutoModelForImageTextToText
    chats = not alone and generation.has_chat_template(parts[0])
    kind = "encoder_decoder" if alone else "chat" if chats else "caption"
    settled = settle(
        conversion,
        Candidates(
            config,
            weights,
            load=lambda precision: generation.load_model(auto, conversion, weights, precision),
            scores=Sayings(lambda model: [_inputs(model, parts, kind, p) for p in _pictures()]),
        ),
    )
    model = settled.model
    conversion.events.progress("load", 1.0, f"loaded, to be served in {settled.precision}")
    conversion.events.progress("verify", 0.0, "describing an image")
    try:
        _try_out(model, parts, kind)
    except Exception as error:
        raise ExportFailed(f"The model describes no image: {one_line(error)}.") from error
    conversion.events.progress("verify", 1.0, "it generates")
    base = generation.base_manifest(
        conversion.identity,
        task=conversion.task,
        backend="image_to_text",
        settled=settled,
        weights=weights,
    )
    tokenizer = getattr(parts[-1], "tokenizer", parts[-1])
    image = base64.b64encode(_probe_image()[1]).decode()
    return base | {
        "load_bytes": generation.load_bytes(model),
        "inputs": [
            generation.tensor("image_input"),
            generation.tensor("text_input", optional=True),
            generation.tensor("messages", optional=True),
        ],
        "outputs": generation.OUTPUTS,
        "probe": {
            "inputs": {"image_input": {"base64": image}},
            "parameters": {"max_tokens": 1},
        },
        "image_to_text": {
            "model_folder": MODEL_FOLDER,
            "kind": kind,
            "context_length": generation.context_length(config, tokenizer, _UNLIMITED_CONTEXT),
            "safetensors": weights.safe,
            "defaults": generation.defaults(model),
        },
    }


def _classes() -> dict[str, set[str]]:
    """transformers' classes that make text of an image, by model type."""
    from transformers.models.auto import modeling_auto as auto

    return {kind: {name} for kind, name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()}


def _processors(conversion: Conversion, *, alone: bool) -> tuple[Any, ...]:
    """One processor for both, or those of the image and of the text where there is no such."""
    import transformers

    from converters import generation

    source = conversion.source
    if not alone:
        return (generation.load_processor(transformers.AutoProcessor, source, "processor"),)
    image = generation.load_processor(transformers.AutoImageProcessor, source, "image processor")
    return (image, generation.load_processor(transformers.AutoTokenizer, source, "tokenizer"))


def _probe_image() -> tuple[Any, bytes]:
    """A picture and its PNG file."""
    from PIL import Image

    picture = Image.linear_gradient("L").resize((_PROBE_SIDE, _PROBE_SIDE)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return picture, file.getvalue()


def _pictures() -> list[Any]:
    """What precisions are compared with: the probe's, and two that are unlike it."""
    from PIL import Image

    side = (_PROBE_SIDE, _PROBE_SIDE)
    across = Image.linear_gradient("L").resize(side)
    centred = Image.radial_gradient("L").resize(side)
    coloured = Image.merge("RGB", [centred, across, across.rotate(90)])
    return [_probe_image()[0], centred.convert("RGB"), coloured]


def _inputs(model: Any, parts: tuple[Any, ...], kind: str, picture: Any) -> Any:
    """A question about a picture, as the model takes it."""
    asked: dict[str, Any] = {"images": picture, "return_tensors": "pt"}
    if kind == "chat":
        content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
        conversation = [{"role": "user", "content": content}]
        asked["text"] = parts[0].apply_chat_template(conversation, add_generation_prompt=True)
    return parts[0](**asked).to(dtype=model.dtype)


def _try_out(model: Any, parts: tuple[Any, ...], kind: str) -> None:
    import torch

    inputs = _inputs(model, parts, kind, _probe_image()[0])
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=_SMOKE_TOKENS, do_sample=False, num_beams=1)
