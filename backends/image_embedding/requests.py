"""One inference request: pictures or texts, and its parameters, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.errors import InputError
from backends.request_parameters import flag
from backends.request_texts import read_bytes, read_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from backends.image_embedding.artefact import ImageEmbeddingArtefact


@dataclass(frozen=True)
class EmbeddingRequest:
    """Pictures, as bytes of image files, or texts; the other is empty.

    `normalize` asks for an L2 normalisation by us.
    """

    pictures: tuple[bytes, ...]
    texts: tuple[str, ...]
    normalize: bool


def read_request(
    image_input: NDArray[Any] | None,
    text_input: NDArray[Any] | None,
    parameters: Mapping[str, Any],
    artefact: ImageEmbeddingArtefact,
) -> EmbeddingRequest:
    """Check a request's tensors and parameters. The pictures are not decoded yet.

    Args:
        image_input, text_input: object arrays of bytes, `[n, 1]` or `[n]`; n may be 0; None where
            the request has no such tensor.
        parameters: the request's; `normalize` (boolean) is read, the others belong to Triton or
            to clients.

    Raises:
        InputError: both inputs or neither, a text for a model without texts, a wrong shape, not
            UTF-8, a text above 100,000 characters, or `normalize=false` for a model that always
            normalises.
    """
    normalize = _normalize(parameters, artefact)
    if text_input is not None and artefact.text is None:
        raise InputError(f"Model {artefact.model_id} takes pictures only: send image_input.")
    if (image_input is None) == (text_input is None):
        what = "neither" if image_input is None else "both"
        known = "image_input" if artefact.text is None else "exactly one of image_input, text_input"
        raise InputError(f"A request needs {known}; this one has {what}.")
    if image_input is None:
        assert text_input is not None
        return EmbeddingRequest((), tuple(read_texts("text_input", text_input)), normalize)
    return EmbeddingRequest(tuple(read_bytes("image_input", image_input)), (), normalize)


def _normalize(parameters: Mapping[str, Any], artefact: ImageEmbeddingArtefact) -> bool:
    asked = flag(parameters, "normalize", artefact.normalized)
    if artefact.normalized and not asked:
        raise InputError(
            f"Model {artefact.model_id} always normalises its embeddings; normalize=false "
            "is not possible."
        )
    return asked and not artefact.normalized
