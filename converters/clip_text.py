"""Task txt2embed of CLIP and its kin: the text tower alone, as an ordinary embedding of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from converters.conversion import fresh_output
from converters.errors import ExportFailed
from converters.image_repository import ImageRepository, read_image_repository
from converters.specs import NormalizeSpec, PoolingSpec, SentenceModel, TransformerSpec
from converters.text_embedding import Loaded, Options, require_space, write_artefact
from converters.weights import Weights, find_weights

if TYPE_CHECKING:
    from converters.conversion import Conversion
    from converters.sentence_layers import SentenceEncoder

_NOT_OF_TEXTS = ("vision_model.", "visual_projection.", "logit_")


def convert(conversion: Conversion) -> dict[str, Any]:
    """Convert the text tower of `conversion.source`; the manifest is returned.

    Its vectors are those that the task img2embed gives for texts.

    Raises:
        ConversionError: its subclass tells why; the output is gone then, unless it existed before.
    """
    repository = read_image_repository(conversion.source)
    weights = find_weights(repository.folder, allow_pickle=conversion.allow_pickle)
    require_space(conversion.output, weights)
    with fresh_output(conversion.output):
        conversion.events.progress("load", 0.0, "loading torch and transformers")
        loaded = _load(conversion, repository, weights)
        options = Options(conversion.threads, conversion.engine, conversion.precision)
        return write_artefact(
            loaded, conversion.output, conversion.identity, conversion.events, options
        )


def _load(conversion: Conversion, repository: ImageRepository, weights: Weights) -> Loaded:
    import torch

    from converters import towers
    from converters.text_tower import load_text_side

    if conversion.threads:
        torch.set_num_threads(conversion.threads)
    config = towers.load_config(repository.folder, trusted=conversion.trusted)
    found = towers.load_image_model(repository.folder, config, weights, trusted=conversion.trusted)
    if not found.takes_text:
        raise ExportFailed(
            f"The architecture {config.model_type!r} takes more than text, and has no tower for "
            "texts alone."
        )
    side = load_text_side(repository, found.model, conversion.output)
    of_texts = [
        parameter.numel()
        for name, parameter in found.model.named_parameters()
        if not name.startswith(_NOT_OF_TEXTS)
    ]
    # The tower pools, and normalises, by itself; the manifest only tells of the latter.
    last = NormalizeSpec() if repository.normalize else PoolingSpec()
    return Loaded(
        model=SentenceModel(TransformerSpec(repository.folder), (last,)),
        weights=weights,
        # What is asked of an encoder, the tower does as well.
        encoder=cast("SentenceEncoder", side.tower),
        tokenization=side.tokenization,
        parameters=sum(of_texts),
    )
