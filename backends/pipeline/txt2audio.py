"""Task txt2audio: a text in, a WAV file out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.audio import encode_wav, resample
from backends.errors import EngineError, InputError
from backends.request_parameters import whole_number
from backends.request_texts import read_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_RATE, MAX_RATE = 4_000, 192_000
# A model computes a second or so of sound for ten characters, all at once.
MAX_CHARACTERS = 2_000


class Text2Audio:
    """transformers' pipeline `text-to-audio`: VITS, Bark and their kin."""

    pipeline = "text-to-audio"

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        if not pipe.sampling_rate:
            raise EngineError("The model does not say its sample rate.")
        self._rate = int(pipe.sampling_rate)
        speakers = getattr(pipe.model.config, "num_speakers", 1)
        self._speakers = speakers if isinstance(speakers, int) else 1

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Say it.

        Args:
            parameters: `voice` (the number of a speaker, where the model has several),
                `sample_rate` (Hz; the model's own by default).

        Returns:
            audio_output BYTES [1]: WAV, 16 bits; sample_rate INT32 [1].

        Raises:
            InputError: no text, one that is blank or too long, or a parameter beyond its limits.
        """
        rate = whole_number(parameters, "sample_rate", self._rate, low=MIN_RATE, high=MAX_RATE)
        assert rate is not None
        options = self._voice(parameters)
        found = self._pipe(_text(inputs), forward_params=options)
        samples = np.asarray(found["audio"], np.float32).squeeze()
        if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            raise EngineError("The model gave no sound for this text.")
        wav = encode_wav(resample(samples, self._rate, rate), rate)
        return {
            "audio_output": np.array([wav], np.object_),
            "sample_rate": np.array([rate], np.int32),
        }

    def _voice(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        given = parameters.get("voice")
        if given is None:
            return {}
        if self._speakers < 2:
            raise InputError("This model has one voice; leave out voice.")
        number = int(given) if isinstance(given, str) and given.isdecimal() else given
        voice = whole_number({"voice": number}, "voice", 0, low=0, high=self._speakers - 1)
        return {"speaker_id": voice}


def _text(inputs: Mapping[str, Any]) -> str:
    if "text_input" not in inputs:
        raise InputError("The input text_input is missing.")
    texts = read_texts("text_input", inputs["text_input"])
    if len(texts) != 1:
        raise InputError(f"text_input must hold one text, got {len(texts)}.")
    if not texts[0].strip():
        raise InputError("text_input must not be blank.")
    if len(texts[0]) > MAX_CHARACTERS:
        raise InputError(
            f"text_input has {len(texts[0]):,} characters; at most {MAX_CHARACTERS:,} can be "
            "spoken at once."
        )
    return texts[0]
