"""Finds the image model in a repository: at its root, or in the module that modules.json names.

sentence-transformers keeps CLIP in a module `CLIPModel`, or, since 5.4, in a `Transformer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from converters.errors import ArtifactNotAccessible, ExportFailed
from converters.sentence_model import read_json

if TYPE_CHECKING:
    from pathlib import Path

_MODELS = ("CLIPModel", "Transformer")
_NORMALIZE = "Normalize"
_ANY_SHAPE = ("siglip2", "siglip2_vision_model")


@dataclass(frozen=True)
class ImageRepository:
    """Where the model lies.

    Attributes:
        folder: with config.json, weights and processor.
        normalize: the repository itself scales its vectors to length 1.
    """

    folder: Path
    normalize: bool = False


def read_image_repository(source: Path) -> ImageRepository:
    """Read modules.json where there is one.

    Raises:
        ArtifactNotAccessible: no folder, or a damaged modules.json.
        ExportFailed: modules.json lists something behind the model that is not Normalize.
    """
    if not source.is_dir():
        raise ArtifactNotAccessible(f"{source} is not a folder.")
    if not (source / "modules.json").exists():
        return ImageRepository(source)
    modules = [_module(entry) for entry in _list(read_json(source / "modules.json"))]
    (kind, path), rest = modules[0], [kind for kind, _ in modules[1:]]
    if kind not in _MODELS or rest not in ([], [_NORMALIZE]):
        names = ", ".join(kind for kind, _ in modules)
        raise ExportFailed(
            f"modules.json lists {names}; of an image model only CLIPModel, or Transformer, and "
            "Normalize behind it are supported."
        )
    return ImageRepository(source / path, normalize=bool(rest))


def refuse_pictures_of_any_shape(repository: ImageRepository) -> None:
    """SigLIP 2 NaFlex keeps a picture's shape: a number of patches, and where each belongs.

    Raises:
        ExportFailed: it is one, naming what is served instead.
    """
    try:
        config = read_json(repository.folder / "config.json")
    except ArtifactNotAccessible:
        return  # told by whoever needs it
    if isinstance(config, dict) and config.get("model_type") in _ANY_SHAPE:
        raise ExportFailed(
            "SigLIP 2 NaFlex takes pictures in their own shapes, which cannot be served; SigLIP 2 "
            "of a fixed resolution can, such as google/siglip2-base-patch16-224."
        )


def is_two_towers(source: Path) -> bool:
    """True when the repository's model takes both pictures and texts; quickly, by config.json."""
    try:
        config = read_json(read_image_repository(source).folder / "config.json")
    except (ArtifactNotAccessible, ExportFailed):
        return False
    known = isinstance(config, dict) and {"text_config", "vision_config"} <= set(config)
    architectures = (config.get("architectures") or [""]) if known else [""]
    # Models that write texts about pictures have both configurations as well.
    return known and str(architectures[0]).endswith("Model")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ArtifactNotAccessible("modules.json is not a list of modules with a type and a path.")
    return value


def _module(entry: Any) -> tuple[str, PurePosixPath]:
    """Kind and folder."""
    if not isinstance(entry, dict) or not {"type", "path"} <= set(entry):
        raise ArtifactNotAccessible("modules.json is not a list of modules with a type and a path.")
    path = PurePosixPath(str(entry["path"]))
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactNotAccessible(f"modules.json points outside of the model: {str(path)!r}.")
    return str(entry["type"]).rpartition(".")[2], path
