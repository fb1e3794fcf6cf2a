"""One inference request: its texts and parameters, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.request_texts import decoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backends.text_embedding.artefact import TextEmbeddingArtefact


@dataclass(frozen=True)
class EmbeddingRequest:
    """Texts to embed, prompt included; `normalize` asks for an L2 normalisation by us."""

    texts: tuple[str, ...]
    normalize: bool


def read_request(
    texts: NDArray[Any], parameters: Mapping[str, Any], artefact: TextEmbeddingArtefact
) -> EmbeddingRequest:
    """Check a request's tensor and parameters.

    Args:
        texts: object array of UTF-8 bytes, `[n, 1]` or `[n]`; n may be 0.
        parameters: the request's; `normalize` (boolean) and `prompt_name` (text) are read, the
            others belong to Triton or to clients.

    Raises:
        InputError: wrong shape, not UTF-8, a text above 100,000 characters, an unknown prompt,
            or `normalize=false` for a model that always normalises.
    """
    normalize = _normalize(parameters.get("normalize"), artefact)
    prompt = _prompt(parameters.get("prompt_name"), artefact)
    return EmbeddingRequest(tuple(prompt + text for text in _decode(texts)), normalize)


def _decode(texts: NDArray[Any]) -> Sequence[str]:
    if texts.ndim not in (1, 2) or (texts.ndim == 2 and texts.shape[1] != 1):
        shape = list(texts.shape)
        raise InputError(f"text_input must have the shape [n, 1], one text per row, got {shape}.")
    return [_text(index, raw) for index, raw in enumerate(texts.reshape(-1))]


def _text(index: int, raw: Any) -> str:
    if not isinstance(raw, bytes):
        raise InputError(f"text_input must hold BYTES, got {type(raw).__name__}.")
    return decoded(f"Text {index}", raw)


def _normalize(asked: Any, artefact: TextEmbeddingArtefact) -> bool:
    if asked is None:
        return False
    if not isinstance(asked, bool):
        raise InputError(f"Parameter normalize must be true or false, got {asked!r}.")
    if artefact.normalized and not asked:
        raise InputError(
            f"Model {artefact.model_id} always normalises its embeddings; normalize=false "
            "is not possible."
        )
    return asked and not artefact.normalized


def _prompt(asked: Any, artefact: TextEmbeddingArtefact) -> str:
    name = artefact.default_prompt_name if asked is None else asked
    if name is None:
        return ""
    if isinstance(name, str) and name in artefact.prompts:
        return artefact.prompts[name]
    known = ", ".join(sorted(artefact.prompts))
    has = f"its prompts are: {known}" if known else "it has none"
    raise InputError(f"Model {artefact.model_id} has no prompt {name!r}; {has}.")
