"""A loaded model that makes text of images, one request at a time; knows nothing of Triton."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING, Any

from backends.errors import BackendError, EngineError, InputError, RequestAbandoned
from backends.generation import loading
from backends.generation.parameters import Generation, read_generation
from backends.image_to_text.artefact import ImageToTextArtefact, read_artefact
from backends.image_to_text.prompts import read_prompt
from backends.images import decode_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from PIL import Image


@dataclasses.dataclass(frozen=True)
class Description:
    """A whole answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Describer:
    """One model with its processor, or its image processor and tokenizer."""

    def __init__(self, artefact: ImageToTextArtefact, model: Any, processors: tuple[Any, ...]):
        self.artefact = artefact
        self._model = model
        self._processor = processors[0]
        self._tokenizer = getattr(processors[-1], "tokenizer", processors[-1])

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Describer:
        """Load the artefact in a version folder.

        Raises:
            BackendError: it is incomplete, or transformers cannot load it.
        """
        artefact = read_artefact(folder)
        loading.be_offline()
        model = loading.open_model(
            "AutoModelForImageTextToText",
            artefact.folder,
            precision=artefact.precision,
            device=loading.choose_device(device_id),
            safe=artefact.safe,
        )
        names: tuple[str, ...] = ("AutoProcessor",)
        if artefact.kind == "encoder_decoder":
            names = ("AutoImageProcessor", "AutoTokenizer")
        parts = tuple(loading.open_processor(name, artefact.folder) for name in names)
        return cls(artefact, model, parts)

    def describe(
        self,
        image: Any,
        text: bytes | None,
        messages: bytes | None,
        parameters: Mapping[str, Any],
        abandoned: Callable[[], bool],
    ) -> Description:
        """Answer one request.

        Args:
            image: an encoded image file.
            abandoned: whether nobody waits any more; asked after each token.

        Raises:
            InputError: the image or a parameter is not what it should be, the prompt too long.
            RequestAbandoned: nobody waits any more.
            EngineError: transformers failed, with its reason.
        """
        asked = read_generation(parameters)
        prompt = read_prompt(text, messages, self.artefact, self._processor)
        inputs = self._inputs(decode_image(image), prompt)
        count = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        asked = self._fitting(asked, count)
        try:
            description = self._generate(inputs, asked, abandoned)
        except BackendError:
            raise
        except Exception as error:
            raise EngineError(f"The generation failed: {_reason(error)}.") from error
        return dataclasses.replace(description, prompt_tokens=count)

    def _inputs(self, image: Image.Image, prompt: str | None) -> Any:
        given = {} if prompt is None else {"text": prompt}
        if self.artefact.kind == "chat":  # the template wrote the special tokens
            given["add_special_tokens"] = False  # type: ignore[assignment]
        try:
            inputs = self._processor(images=image, return_tensors="pt", **given)
        except Exception as error:
            raise InputError(
                f"The model's processor refuses this image or text: {_reason(error)}."
            ) from error
        return inputs.to(self._model.device, dtype=self._model.dtype)

    def _fitting(self, asked: Generation, prompt: int) -> Generation:
        """With as many tokens as there is room for behind the prompt (and image)."""
        limit = self.artefact.context_length
        if prompt >= limit:
            raise InputError(
                f"Image and prompt make {prompt:,} tokens; model {self.artefact.model_id} takes at "
                f"most {limit - 1:,} (its context is {limit:,} tokens, with room for one more)."
            )
        # An encoder-decoder's first token is its start, without any prompt.
        room = limit - max(prompt, 1)
        return dataclasses.replace(asked, max_tokens=min(asked.max_tokens, max(1, room)))

    def _generate(
        self, inputs: Any, asked: Generation, abandoned: Callable[[], bool]
    ) -> Description:
        import torch

        from backends.generation import sampling
        from backends.image_to_text.listening import Listener

        listener = Listener(self._tokenizer, asked, abandoned, sampling.end_tokens(self._model))
        options = sampling.generate_options(self._model, asked)
        # generate draws from torch's own generator; requests are answered one at a time.
        torch.manual_seed(secrets.randbits(63) if asked.seed is None else asked.seed)
        with torch.inference_mode():
            self._model.generate(**inputs, **options, stopping_criteria=[listener])
        if listener.abandoned:
            raise RequestAbandoned("The request was cancelled.")
        text, reason = listener.result()
        return Description(text, reason, 0, listener.count)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
