"""What config.json says of models that turn pictures into vectors. Rules only.

Architectures and fields are those of transformers' configurations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Two towers of one space: CLIP's kin project both sides to `projection_dim`, SigLIP does not.
_PROJECTED = {"clip", "chinese_clip", "metaclip_2", "altclip"}
_PROJECTED_ALONE = {"clip_vision_model"}
_TWO_TOWERS = {*_PROJECTED, "siglip", "siglip2"}
# Of one tower, whose bare `…Model` gives a pooled output or a CLS token.
_ONE_TOWER = {
    *("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "vit_msn", "data2vec-vision"),
    *("swin", "swinv2", "convnext", "convnextv2", "resnet", "regnet", "bit"),
    *("clip_vision_model", "siglip_vision_model"),
}


def is_image_encoder(config: Mapping[str, Any]) -> bool:
    """True for a model that gives vectors of pictures, by its own description."""
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    ending = architecture.endswith(("Model", "VisionModelWithProjection"))
    return ending and config.get("model_type") in _TWO_TOWERS | _ONE_TOWER


def image_vector_size(config: Mapping[str, Any]) -> Any:
    """Components of its vectors, as config.json has them (any JSON value); None when it does not
    say."""
    kind, architectures = config.get("model_type"), str(config.get("architectures"))
    if kind in _PROJECTED or (kind in _PROJECTED_ALONE and "WithProjection" in architectures):
        return config.get("projection_dim")
    vision = config.get("vision_config")
    if kind in _TWO_TOWERS:
        return vision.get("hidden_size") if isinstance(vision, dict) else None
    stages = config.get("hidden_sizes")
    if isinstance(stages, list) and stages:
        return stages[-1]
    return config.get("hidden_size")
