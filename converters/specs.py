"""What a sentence embedding is made of, as plain values: no torch, no files read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class TransformerSpec:
    """The first module: a transformers model.

    Attributes:
        folder: where config.json, weights and tokenizer lie.
        output_path: attribute or index steps from the model's output to the tensor to use.
        output_name: the feature it becomes: `token_embeddings` [batch, sequence, hidden] or
            `sentence_embedding` [batch, dimension].
        max_seq_length: tokens, None where the configuration names none.
    """

    folder: Path
    output_path: tuple[str | int, ...] = ("last_hidden_state",)
    output_name: str = "token_embeddings"
    max_seq_length: int | None = None
    do_lower_case: bool = False
    config_options: dict[str, Any] = field(default_factory=dict)
    tokenizer_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolingSpec:
    """Token vectors to one vector; several modes are concatenated in the order given."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer with an activation, named as torch.nn names it, e.g. `Tanh`."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Tanh"
    use_residual: bool = False
    input_name: str = "sentence_embedding"
    output_name: str = "sentence_embedding"


@dataclass(frozen=True)
class LayerNormSpec:
    folder: Path
    dimension: int


@dataclass(frozen=True)
class NormalizeSpec:
    """Scales to unit length (L2)."""

    input_name: str = "sentence_embedding"
    output_name: str = "sentence_embedding"


LayerSpec = PoolingSpec | DenseSpec | LayerNormSpec | NormalizeSpec


@dataclass(frozen=True)
class SentenceModel:
    """A sentence embedding as its repository describes it.

    Attributes:
        described: False when there is no modules.json and defaults were taken.
        default_prompt: text put before every text, "" for none.
        truncate_dim: the vector is cut to this many components at the end.
    """

    transformer: TransformerSpec
    layers: tuple[LayerSpec, ...]
    described: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None

    @property
    def default_prompt(self) -> str:
        return self.prompts.get(self.default_prompt_name or "", "")

    @property
    def normalized(self) -> bool:
        """True when the vectors that come out have length 1."""
        return isinstance(self.layers[-1], NormalizeSpec) and self.truncate_dim is None
