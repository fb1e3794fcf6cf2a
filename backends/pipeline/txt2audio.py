"""Task txt2audio: a text in, a WAV file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.audio import encode_wav, resample
from backends.errors import EngineError, InputError
from backends.request_parameters import short_text, whole_number
from backends.request_texts import read_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_RATE, MAX_RATE = 4_000, 192_000
# A model computes a second or so of sound for ten characters, all at once.
MAX_CHARACTERS = 2_000
_PRESET_PARTS = ("semantic_prompt", "coarse_prompt", "fine_prompt")
_LONGEST_NAME = 100
_BARK_TOKENS = 256
_SHOWN = 12


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
        self._presets = _presets(pipe)
        self._most_tokens = _most_tokens(pipe)

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Say it.

        Args:
            parameters: `voice` (the number of a speaker, or the name of a preset, where the model
                has several),
                `sample_rate` (Hz; the model's own by default).

        Returns:
            audio_output BYTES [1]: WAV, 16 bits; sample_rate INT32 [1].

        Raises:
            InputError: no text, one that is blank or too long, or a parameter beyond its limits.
        """
        rate = whole_number(parameters, "sample_rate", self._rate, low=MIN_RATE, high=MAX_RATE)
        assert rate is not None
        options = self._voice(parameters)
        text = _text(inputs)
        self._check_length(text)
        found = self._pipe(text, **options)
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
        if self._presets:
            return {"preprocess_params": {"voice_preset": self._preset(parameters)}}
        if self._speakers < 2:
            raise InputError("Parameter voice must be left out: this model has one voice.")
        number = int(given) if isinstance(given, str) and given.isdecimal() else given
        voice = whole_number({"voice": number}, "voice", 0, low=0, high=self._speakers - 1)
        return {"forward_params": {"speaker_id": voice}}

    def _preset(self, parameters: Mapping[str, Any]) -> str:
        name = short_text(parameters, "voice", None, longest=_LONGEST_NAME)
        if name is None or name not in self._presets:
            more = len(self._presets) - _SHOWN
            listed = ", ".join(self._presets[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
            raise InputError(f"Parameter voice must be one of {listed}, got {name!r}.")
        return name

    def _check_length(self, text: str) -> None:
        if self._most_tokens is None:
            return
        count = len(self._pipe.tokenizer(text, add_special_tokens=False)["input_ids"])
        if count > self._most_tokens:
            raise InputError(
                f"text_input has {count} tokens; this model speaks at most {self._most_tokens} at "
                "once."
            )


def _presets(pipe: Any) -> tuple[str, ...]:
    """Names of the voices whose arrays are all there (Bark's), sorted."""
    processor = getattr(pipe, "processor", None)
    known = getattr(processor, "speaker_embeddings", None)
    if not known:
        return ()
    home = Path(pipe.model.name_or_path)
    known["repo_or_path"] = str(home)  # the file may say another place, or none
    return tuple(
        sorted(
            name
            for name, files in known.items()
            if isinstance(files, dict)
            and all((home / str(files.get(part, ""))).is_file() for part in _PRESET_PARTS)
        )
    )


def _most_tokens(pipe: Any) -> int | None:
    """Tokens of a text beyond which the model would leave out the rest in silence (Bark)."""
    if pipe.model.config.model_type != "bark":
        return None
    semantic = getattr(pipe.model.generation_config, "semantic_config", None)
    known = semantic if isinstance(semantic, dict) else vars(semantic or object)
    return int(known.get("max_input_semantic_length", _BARK_TOKENS))


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
