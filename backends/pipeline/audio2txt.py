"""Task audio2txt: an audio file in, its text and segments out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.audio import decode_audio
from backends.errors import InputError
from backends.request_parameters import flag, short_text
from backends.request_texts import read_one_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_NAME = 100
# CTC models hear everything at once: longer recordings are cut into chunks that overlap.
_CHUNK_SECONDS = 30.0


class Audio2Text:
    """transformers' pipeline `automatic-speech-recognition`: Whisper and its kin, CTC models."""

    pipeline = "automatic-speech-recognition"

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._rate = int(pipe.feature_extractor.sampling_rate)
        whisper = pipe.type == "seq2seq_whisper"
        self._window = int(pipe.feature_extractor.n_samples) if whisper else None
        generation = getattr(pipe.model, "generation_config", None)
        languages = getattr(generation, "lang_to_id", None) or {}
        self._languages = sorted(name.strip("<|>") for name in languages)

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What is said; with `timestamps` (true or false) also when.

        Args:
            parameters: `language` (a name or code, for models of many languages), `timestamps`.

        Returns:
            text_output BYTES [1]; segment_text BYTES [n], segment_start and segment_end FP32 [n]
            in seconds, n = 0 without timestamps. Segments of CTC models are words; a segment that
            Whisper does not close ends with the recording.

        Raises:
            InputError: no audio, or a parameter that the model does not have.
        """
        timestamps = flag(parameters, "timestamps", False)
        options = self._language(parameters) | self._times(timestamps)
        audio = decode_audio(read_one_bytes("audio_input", inputs), self._rate)
        if self._pipe.type == "ctc" and len(audio) > _CHUNK_SECONDS * self._rate:
            options["chunk_length_s"] = _CHUNK_SECONDS
        if self._window is not None and len(audio) > self._window:
            options["return_timestamps"] = True  # Whisper finds its way by them
        found = self._pipe(audio, **options)
        chunks = found.get("chunks", []) if timestamps else []
        return {"text_output": np.array([found["text"].encode()], np.object_)} | _segments(
            chunks, len(audio) / self._rate
        )

    def _language(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        language = short_text(parameters, "language", None, longest=_LONGEST_NAME)
        if language is None:
            return {}
        if not self._languages:
            raise InputError("Parameter language must be left out: this model hears one language.")
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if code not in self._languages:
            raise InputError(
                f"Parameter language must be one of {', '.join(self._languages)}, got {language!r}."
            )
        return {"generate_kwargs": {"language": code}}

    def _times(self, timestamps: bool) -> dict[str, Any]:
        if not timestamps:
            return {}
        if self._pipe.type == "ctc":
            return {"return_timestamps": "word"}
        if self._pipe.type != "seq2seq_whisper":
            raise InputError("Parameter timestamps must be left out: this model gives none.")
        return {"return_timestamps": True}


def _segments(chunks: list[Any], seconds: float) -> dict[str, Any]:
    times = [chunk["timestamp"] for chunk in chunks]
    return {
        "segment_text": np.array([chunk["text"].encode() for chunk in chunks], np.object_),
        "segment_start": np.array([start or 0.0 for start, _ in times], np.float32),
        "segment_end": np.array([seconds if e is None else e for _, e in times], np.float32),
    }
