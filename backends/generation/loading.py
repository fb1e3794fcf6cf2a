"""Opens a packaged transformers model in a stub process: device, precision, threads, offline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from backends import machine
from backends.errors import ArtefactError, EngineError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PRECISIONS = ("fp32", "bf16")


def be_offline() -> None:
    """Before transformers is imported: it then asks no hub and prints no progress."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def choose_device(device_id: int) -> torch.device:
    """The CUDA device of that number where torch can use it, else the CPU, with all its cores."""
    import torch

    torch.set_num_threads(machine.usable_cores())
    if machine.cuda_devices() > device_id and torch.cuda.is_available():
        return torch.device("cuda", device_id)
    return torch.device("cpu")


def open_model(
    class_name: str, folder: Path, *, precision: str, device: torch.device, safe: bool
) -> Any:
    """A model, ready to compute.

    Args:
        class_name: transformers' class, e.g. `AutoModelForCausalLM`.
        folder: the model's own files.
        safe: the weights are safetensors; pickles are read only where the converter was allowed.

    Raises:
        ArtefactError: unknown class or precision.
        EngineError: transformers cannot load it, with its reason.
    """
    import torch
    import transformers

    if precision not in PRECISIONS or not hasattr(transformers, class_name):
        raise ArtefactError(
            f"This backend cannot open a {class_name} in {precision}; install the model again."
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        model = getattr(transformers, class_name).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=safe
        )
        return model.to(device).eval()
    except Exception as error:
        raise EngineError(f"transformers cannot load the model: {_reason(error)}.") from error


def open_processor(class_name: str, folder: Path) -> Any:
    """A tokenizer or processor of transformers, by its class.

    Raises:
        EngineError: transformers cannot load it, with its reason.
    """
    import transformers

    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise EngineError(
            f"transformers cannot load the {class_name}: {_reason(error)}."
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return (text or type(error).__name__).splitlines()[0].rstrip(". ")
