"""The torch modules of a sentence embedding, written so that they export well.

Semantics are those of sentence-transformers 6.2: `sentence_transformer/modules/pooling.py`
(`_forward_padded`), `base/modules/dense.py`, `base/modules/normalize.py`, `layer_norm.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from converters.errors import ArtifactNotAccessible, ExportFailed, UnsafeWeights
from converters.specs import DenseSpec, LayerNormSpec, NormalizeSpec, PoolingSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from converters.specs import LayerSpec, TransformerSpec

Features = dict[str, Tensor]

# Below it a sum of mask values counts as zero: an empty text gives a zero vector, not NaN.
_TINY = 1e-9


class SentenceEncoder(nn.Module):
    """Token ids in, one vector per text out: transformer, pooling and what follows it."""

    def __init__(
        self,
        transformer: nn.Module,
        spec: TransformerSpec,
        layers: Sequence[nn.Module],
        *,
        transformer_inputs: Sequence[str],
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.layers = nn.ModuleList(layers)
        self._output_path = spec.output_path
        self._output_name = spec.output_name
        self._transformer_inputs = tuple(transformer_inputs)
        self._truncate_dim = truncate_dim

    @property
    def token_count(self) -> int | None:
        """Rows of the transformer's token table; None when it has none."""
        table = getattr(self.transformer, "get_input_embeddings", lambda: None)()
        return table.num_embeddings if isinstance(table, nn.Embedding) else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """INT64 [batch, sequence] each in, FP32 [batch, dimension] out."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        output: Any = self.transformer(
            **{name: given[name] for name in self._transformer_inputs}, return_dict=True
        )
        for step in self._output_path:
            output = output[step]
        features: Features = {"attention_mask": attention_mask, self._output_name: output}
        for layer in self.layers:
            features = layer(features)
        embedding: Tensor = features["sentence_embedding"]
        return embedding[:, : self._truncate_dim]


class Pooling(nn.Module):
    """Token vectors [batch, sequence, hidden] to [batch, modes x hidden], padding left out.

    Args:
        prompt_length: this many tokens from the first real one on are left out too.
    """

    def __init__(self, spec: PoolingSpec, *, pads_left: bool, prompt_length: int = 0) -> None:
        super().__init__()
        self._modes = spec.modes
        self._pads_left = pads_left
        self._prompt_length = prompt_length

    def forward(self, features: Features) -> Features:
        tokens, mask = features["token_embeddings"], features["attention_mask"]
        first = _first_true(mask) if self._pads_left else torch.zeros_like(mask[:, :1])
        positions = torch.arange(mask.shape[1]).unsqueeze(0) - first
        if self._prompt_length:
            mask = mask * (positions >= self._prompt_length)
        pooled = [self._pool(mode, tokens, mask, positions) for mode in self._modes]
        return features | {"sentence_embedding": torch.cat(pooled, dim=-1)}

    def _pool(self, mode: str, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        if mode == "cls":
            # A constant 0 keeps a gather out of the graphs of most models.
            moves = self._pads_left or self._prompt_length > 0
            return _take(tokens, _first_true(mask)) if moves else tokens[:, 0]
        if mode == "max":
            return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values
        if mode == "lasttoken":
            return _last(tokens, mask, at_end=self._pads_left)
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        if mode == "weightedmean":
            weights = weights * (positions + 1).unsqueeze(-1).to(tokens.dtype)
        total = torch.clamp(weights.sum(dim=1), min=_TINY)
        if mode == "mean_sqrt_len_tokens":
            total = torch.sqrt(total)
        return (tokens * weights).sum(dim=1) / total


class Dense(nn.Module):
    """A linear layer, an activation and, if asked for, what came in added to what goes out."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.bias)
        self._input_name, self._output_name = spec.input_name, spec.output_name
        self._activation = _activation(spec)
        self._adds_input = spec.use_residual
        if spec.use_residual and spec.in_features != spec.out_features:
            self.residual = nn.Linear(spec.in_features, spec.out_features, bias=False)

    def forward(self, features: Features) -> Features:
        given = features[self._input_name]
        out = self._activation(self.linear(given))
        if self._adds_input:
            out = out + (self.residual(given) if hasattr(self, "residual") else given)
        return features | {self._output_name: out}


class LayerNorm(nn.Module):
    def __init__(self, spec: LayerNormSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.dimension)

    def forward(self, features: Features) -> Features:
        return features | {"sentence_embedding": self.norm(features["sentence_embedding"])}


class Normalize(nn.Module):
    def __init__(self, spec: NormalizeSpec) -> None:
        super().__init__()
        self._spec = spec

    def forward(self, features: Features) -> Features:
        unit = nn.functional.normalize(features[self._spec.input_name], p=2, dim=-1)
        return features | {self._spec.output_name: unit}


def build_layers(
    specs: Sequence[LayerSpec], *, pads_left: bool, prompt_length: int, allow_pickle: bool
) -> list[nn.Module]:
    """The modules after the transformer, weights loaded.

    Args:
        prompt_length: tokens of the default prompt, 0 for none; left out by a pooling that says
            `include_prompt: false`.

    Raises:
        ArtifactNotAccessible, UnsafeWeights: as `load_layer_weights`.
        ExportFailed: a layer reads a feature that no layer before it writes.
    """
    layers: list[nn.Module] = []
    for spec in specs:
        if isinstance(spec, PoolingSpec):
            left_out = 0 if spec.include_prompt else prompt_length
            layers.append(Pooling(spec, pads_left=pads_left, prompt_length=left_out))
        elif isinstance(spec, NormalizeSpec):
            layers.append(Normalize(spec))
        else:
            layer = Dense(spec) if isinstance(spec, DenseSpec) else LayerNorm(spec)
            load_layer_weights(layer, spec.folder, allow_pickle=allow_pickle)
            layers.append(layer)
    return layers


def load_layer_weights(layer: nn.Module, folder: Path, *, allow_pickle: bool) -> None:
    """Fill a layer from model.safetensors, or pytorch_model.bin where pickles are allowed.

    Raises:
        ArtifactNotAccessible: no weights, or they do not fit the layer.
        UnsafeWeights: only a pickle, and it is not allowed.
    """
    from converters.weights import find_weights

    found = find_weights(folder, allow_pickle=allow_pickle)
    try:
        layer.load_state_dict(_read_tensors(found.files[0], safe=found.safe))
    except UnsafeWeights:
        raise
    except Exception as error:
        raise ArtifactNotAccessible(
            f"{folder.name}/{found.files[0].name} does not fit its config.json."
        ) from error


def _read_tensors(file: Path, *, safe: bool) -> dict[str, Tensor]:
    if safe:
        from safetensors.torch import load_file

        return load_file(file)
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def _activation(spec: DenseSpec) -> nn.Module:
    kind = getattr(nn, spec.activation, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ExportFailed(f"The activation {spec.activation!r} of {spec.folder.name} is unknown.")
    try:
        return kind()
    except TypeError:
        raise ExportFailed(
            f"The activation {spec.activation!r} of {spec.folder.name} needs arguments."
        ) from None


def _first_true(mask: Tensor) -> Tensor:
    # int32: ONNX Runtime has no ArgMax for int64 (microsoft/onnxruntime#10068).
    return mask.to(torch.int32).argmax(dim=1, keepdim=True)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    wide = index.unsqueeze(-1).expand(-1, 1, tokens.shape[-1])
    return torch.gather(tokens, 1, wide).squeeze(1)


def _last(tokens: Tensor, mask: Tensor, *, at_end: bool) -> Tensor:
    # Times the mask: a text without any token gives a zero vector.
    kept = tokens * mask.unsqueeze(-1).to(tokens.dtype)
    if at_end:
        return kept[:, -1]
    places = mask.to(torch.int32) * torch.arange(1, mask.shape[1] + 1, dtype=torch.int32)
    return _take(kept, places.argmax(dim=1, keepdim=True))
