"""The parts of an image model that are exported: pictures to vectors, texts to vectors.

CLIP and its kin have two towers that end in one space; other image models have one. What counts as
a model's vector: `get_image_features` and `get_text_features` where it has them, else its pooled
output, else the vector of its CLS token.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from converters.errors import ArtifactNotAccessible, ExportFailed, one_line
from converters.loading import read_model
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from converters.tokenization import Tokenization
    from converters.weights import Weights

PIXELS = "pixel_values"
FEATURES, POOLED, CLS = "image_features", "pooler_output", "cls"
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_WITH_PROJECTION = "WithProjection"


@dataclass(frozen=True)
class ImageModel:
    """A model read from a folder.

    Attributes:
        output: what its vectors are, one of FEATURES, POOLED and CLS.
    """

    model: Any
    output: str

    @property
    def takes_text(self) -> bool:
        """Texts and pictures end in one space."""
        return is_two_towers(self.model)


class ImageTower(nn.Module):
    """`pixel_values` FP32 [n, 3, height, width] to vectors FP32 [n, dimension]."""

    def __init__(self, image_model: ImageModel, *, normalize: bool = False) -> None:
        super().__init__()
        self._model, self._output = image_model.model, image_model.output
        self._normalize = normalize

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """One vector per picture."""
        if self._output == FEATURES:
            vectors = _pooled(self._model.get_image_features(pixel_values=pixel_values))
        else:
            found = self._model(pixel_values=pixel_values)
            cls = self._output == CLS
            vectors = found.last_hidden_state[:, 0] if cls else _own(found)
        return _finished(vectors, normalize=self._normalize)


class TextTower(nn.Module):
    """Token ids (and mask, and types) INT64 [n, length] to vectors FP32 [n, dimension].

    Where the model was trained on texts of one length, the graph itself pads to it: whoever calls
    it may pad to the longest of a batch, as for any other model.
    """

    def __init__(
        self, model: Any, tokenization: Tokenization, *, fixed_length: bool, normalize: bool = False
    ) -> None:
        super().__init__()
        self._model, self._tokenization = model, tokenization
        self._fixed_length, self._normalize = fixed_length, normalize

    @property
    def token_count(self) -> int | None:
        """Rows of the token table."""
        return int(self._model.config.text_config.vocab_size)

    def forward(
        self,
        first: torch.Tensor,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One vector per text; the inputs in the order of the tokenization's names."""
        padding = {"input_ids": self._tokenization.pad_token_id, "attention_mask": 0}
        padding["token_type_ids"] = self._tokenization.pad_token_type_id
        named = zip(self._tokenization.input_names, (first, second, third), strict=False)
        given = {name: ids for name, ids in named if ids is not None}
        if self._fixed_length:
            given = {name: self._padded(ids, padding[name]) for name, ids in given.items()}
        return _finished(_pooled(self._model.get_text_features(**given)), normalize=self._normalize)

    def _padded(self, ids: torch.Tensor, value: int) -> torch.Tensor:
        limit = self._tokenization.max_seq_length
        fill = ids.new_full((1, limit), value).expand(ids.shape[0], limit)
        if self._tokenization.padding_side == "left":
            return torch.cat([fill, ids], dim=1)[:, -limit:]
        return torch.cat([ids, fill], dim=1)[:, :limit]


def _pooled(found: Any) -> torch.Tensor:
    return _tensor(found if isinstance(found, torch.Tensor) else found.pooler_output)


def _own(found: Any) -> torch.Tensor:
    if hasattr(found, "image_embeds"):
        return _tensor(found.image_embeds)
    # Convolutional networks pool to [n, dimension, 1, 1].
    return _tensor(found.pooler_output).flatten(1)


def _tensor(value: Any) -> torch.Tensor:
    tensor: torch.Tensor = value
    return tensor


def _finished(vectors: torch.Tensor, *, normalize: bool) -> torch.Tensor:
    return nn.functional.normalize(vectors, dim=-1) if normalize else vectors


def is_two_towers(model: Any) -> bool:
    """CLIP-like: both features, and the scale of their similarity. Models that generate text from
    pictures have features of their own kinds, but no such scale."""
    features = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    return features and hasattr(model, "logit_scale")


def text_inputs(model: Any, tokenizer: Any) -> tuple[str, ...]:
    """Those of input_ids, attention_mask and token_type_ids that model and tokenizer know."""
    accepted = inspect.signature(model.get_text_features).parameters
    given = tokenizer.model_input_names
    return tuple(name for name in _TEXT_INPUTS if name in accepted and name in given)


def load_config(folder: Path, *, trusted: bool = False) -> Any:
    """transformers' configuration.

    Raises:
        ArtifactNotAccessible: config.json missing or damaged.
        ExportFailed: an architecture that transformers lacks, or quantized weights.
    """
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ArtifactNotAccessible("config.json names no model_type.")
    if raw["model_type"] not in CONFIG_MAPPING and not (trusted and "auto_map" in raw):
        raise ExportFailed(
            f"The architecture {raw['model_type']!r} of config.json is unknown to transformers "
            f"{transformers.__version__}."
        )
    if "quantization_config" in raw:
        raise ExportFailed("The model's weights are quantized; use the repository of the original.")
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted
        )
    except Exception as error:
        raise ArtifactNotAccessible(f"config.json is not valid: {one_line(error)}.") from error


def load_image_model(
    folder: Path, config: Any, weights: Weights, *, trusted: bool = False
) -> ImageModel:
    """The model in float32 with plain attention.

    Raises:
        ArtifactNotAccessible: the weights cannot be read, or lack parts of the architecture.
        ExportFailed: it takes no pictures, or gives no vector for one.
    """
    model, missing = read_model(_class(config), folder, config, weights, trusted=trusted)
    model.eval()
    return ImageModel(model, _output(model, config.model_type, missing, weights.names))


def _class(config: Any) -> Any:
    """AutoModel leaves the projection out of towers that were saved alone."""
    named = (config.architectures or [""])[0]
    return getattr(transformers, named) if _projects(named) else transformers.AutoModel


def _projects(architecture: str) -> bool:
    return architecture.endswith(_WITH_PROJECTION) and hasattr(transformers, architecture)


def _output(model: Any, kind: str, missing: set[str], names: str) -> str:
    # transformers fills what is missing with random numbers. A pooler that was never trained is
    # left out of many repositories: their users take the CLS token.
    pooler = {key for key in missing if "pooler." in key}
    if lacking := sorted(missing - pooler):
        raise ArtifactNotAccessible(
            f"{names} lacks {len(lacking)} weights that config.json asks for, such as {lacking[0]}."
        )
    if is_two_towers(model):
        return FEATURES
    if PIXELS not in inspect.signature(model.forward).parameters:
        raise ExportFailed(f"The architecture {kind!r} takes no pictures.")
    if hasattr(model, "get_image_features") or hasattr(model, "decoder"):
        raise ExportFailed(f"The architecture {kind!r} gives more than a vector per picture.")
    if not pooler and getattr(model, "pooler", model) is not None:
        return POOLED
    if not any("cls_token" in name for name, _ in model.named_parameters()):
        raise ExportFailed(f"The architecture {kind!r} gives neither a pooled nor a CLS output.")
    return CLS
