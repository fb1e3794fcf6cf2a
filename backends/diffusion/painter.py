"""A diffusers pipeline that makes one picture at a time."""

from __future__ import annotations

import inspect
import io
import os
import warnings
from typing import TYPE_CHECKING, Any

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # diffusers imports ONNX Runtime, which reports unless told
)
import diffusers
import torch

from backends.diffusion.artefact import DiffusionArtefact, read_artefact
from backends.diffusion.requests import Defaults, PictureRequest
from backends.errors import EngineError, InputError, RequestAbandoned
from backends.machine import return_free_memory, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Painter:
    """A loaded pipeline; `paint` may be called from one thread at a time."""

    def __init__(self, artefact: DiffusionArtefact, pipe: Any) -> None:
        self.artefact = artefact
        self._pipe = pipe
        known = inspect.signature(pipe.__call__).parameters
        self._known = frozenset(known)
        self.defaults = Defaults(
            steps=_default(known, "num_inference_steps", 50),
            guidance_scale=_default(known, "guidance_scale", 7.5),
            strength=_default(known, "strength", 0.8),
            image_guidance_scale=_default(known, "image_guidance_scale", 1.5),
            known=self._known,
        )

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Painter:
        """Load the pipeline in a version folder, onto a CUDA device where there is one.

        Raises:
            ArtefactError, EngineError: it cannot be loaded, with the reason.
        """
        artefact = read_artefact(folder)
        torch.set_num_threads(usable_cores())
        diffusers.utils.logging.disable_progress_bar()
        try:
            pipe = _without_warnings(
                getattr(diffusers, artefact.pipeline).from_pretrained,
                artefact.folder,
                torch_dtype=_DTYPES[artefact.precision],
                variant=artefact.variant,
                local_files_only=True,
            )
            pipe.to(f"cuda:{device_id}" if torch.cuda.is_available() else "cpu")
        except Exception as error:
            raise EngineError(f"diffusers cannot load the model: {_line(error)}") from error
        pipe.set_progress_bar_config(disable=True)
        return cls(artefact, pipe)

    def paint(
        self,
        request: PictureRequest,
        on_step: Callable[[int, int], None] = lambda *_: None,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """Make the picture; a PNG file.

        Args:
            on_step: told how many steps are done, and of how many, after each.
            abandoned: asked before the first and after each step; True ends the work.

        Raises:
            InputError: the pipeline refuses the request, or its safety checker the picture.
            EngineError: it failed.
            RequestAbandoned: as `abandoned` said.
        """
        if abandoned():  # while it waited
            raise RequestAbandoned("The request was cancelled.")
        steps_done = 0

        def after_step(step: int) -> None:
            nonlocal steps_done
            steps_done = step + 1
            if abandoned():
                raise RequestAbandoned("The request was cancelled.")
            of = getattr(self._pipe, "num_timesteps", request.steps)
            on_step(steps_done, max(steps_done, of))

        try:
            with torch.inference_mode():
                found = self._pipe(**self._options(request), **self._listener(after_step))
        except RequestAbandoned:
            raise
        except ValueError as error:  # what pipelines say of arguments, before they begin
            kind = EngineError if steps_done else InputError
            raise kind(f"The pipeline refuses the request: {_line(error)}") from error
        except Exception as error:
            raise EngineError(f"diffusers failed: {_line(error)}") from error
        finally:
            return_free_memory()
        return _png(found)

    def _options(self, request: PictureRequest) -> dict[str, Any]:
        """The pipeline's arguments: of ours those that it has, and that are not left to it."""
        options: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            # else diffusers looks for packages that would change the prompt, and logs it each time
            "clean_caption": False,
            # on the CPU: the same noise for the same seed on every device
            "generator": torch.Generator().manual_seed(request.seed),
        }
        if request.image is None:
            options |= {"width": request.width, "height": request.height}
        else:
            options |= {
                "image": request.image,
                "strength": request.strength,
                "image_guidance_scale": request.image_guidance_scale,
            }
        given = {name: value for name, value in options.items() if value is not None}
        return {name: value for name, value in given.items() if name in self._known}

    def _listener(self, after_step: Callable[[int], None]) -> dict[str, Any]:
        """The argument by which the pipeline tells of its steps, counted from 0."""
        if "callback_on_step_end" in self._known:

            def on_end(_: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                after_step(step)
                return tensors

            return {"callback_on_step_end": on_end}
        if "callback" in self._known:  # PixArt, DeepFloyd: the older form
            return {"callback": lambda step, *_: after_step(step), "callback_steps": 1}
        return {}


def _without_warnings(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    # `torch_dtype` has become `dtype` within the releases that we support.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return load(*arguments, **options)


def _default(known: Any, name: str, otherwise: Any) -> Any:
    """The default of an argument, of the type that is expected; `otherwise` where there is none."""
    value = known[name].default if name in known else None
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(otherwise)(value) if right else otherwise


def _png(found: Any) -> bytes:
    flagged = getattr(found, "nsfw_content_detected", None)
    if flagged and flagged[0]:
        raise InputError("The model's safety checker withheld the picture; change the prompt.")
    file = io.BytesIO()
    found.images[0].save(file, "PNG")
    return file.getvalue()


def _line(error: Exception) -> str:
    """An exception's text on one line of reasonable length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:500]
