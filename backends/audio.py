"""From the bytes of an audio file to one channel of samples, and back.

What a request carries is hostile until it is decoded: its length is checked from the header, and
again while it is read, before much of it is in memory.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

MAX_BYTES = 100_000_000
MAX_SECONDS = 3600
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
_NAMES = "WAV, FLAC, OGG and MP3"
_MIN_RATE, _MAX_RATE = 1_000, 768_000
_MAX_CHANNELS = 32
_BLOCK = 1 << 18
# Zero crossings of the resampling filter's sinc on either side, and the share of the lower
# Nyquist frequency that it keeps: torchaudio's defaults (`functional.resample`).
_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
_LARGEST_TABLE = 4_000_000


def decode_audio(encoded: bytes, sample_rate: int) -> Samples:
    """Decode one audio file.

    Args:
        encoded: a WAV, FLAC, OGG or MP3 file of at most 100 MB and one hour.
        sample_rate: what is wanted, in Hz.

    Returns:
        FP32 [samples] in -1..1: the mean of the channels, at `sample_rate`.

    Raises:
        InputError: too large, too long, empty, another format, or damaged.
    """
    import soundfile

    if len(encoded) > MAX_BYTES:
        raise InputError(
            f"audio_input has {len(encoded):,} bytes; at most {MAX_BYTES:,} are allowed."
        )
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            _check(file)
            samples, rate = _read(file), int(file.samplerate)
    except soundfile.LibsndfileError as error:
        why = error.error_string.rstrip(".")  # its text names the object that it read from
        raise InputError(
            f"audio_input is no audio file that can be read ({why}); the formats are {_NAMES}."
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"audio_input is damaged: {_line(error)}.") from error
    if not len(samples):
        raise InputError("audio_input holds no samples.")
    if not np.isfinite(samples).all():
        raise InputError("audio_input holds samples that are not finite.")
    return resample(samples, rate, sample_rate)


def _check(file: Any) -> None:
    if file.format not in FORMATS:
        raise InputError(f"audio_input is a {file.format} file; the formats are {_NAMES}.")
    if not _MIN_RATE <= file.samplerate <= _MAX_RATE or file.channels > _MAX_CHANNELS:
        raise InputError(
            f"audio_input has {file.channels} channels of {file.samplerate:,} Hz; at most "
            f"{_MAX_CHANNELS} of {_MIN_RATE:,} to {_MAX_RATE:,} Hz can be read."
        )


def _read(file: Any) -> Samples:
    """One channel, block by block: headers lie about lengths."""
    blocks: list[Samples] = []
    left = MAX_SECONDS * int(file.samplerate)
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            break
        left -= len(block)
        if left < 0:
            raise InputError(f"audio_input is longer than {MAX_SECONDS:,} seconds.")
        blocks.append(block.mean(axis=1, dtype=np.float32))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """Change the sample rate by band-limited interpolation: a windowed sinc (Hann).

    The method and its defaults are those of torchaudio's `functional.resample`; after
    https://ccrma.stanford.edu/~jos/resample/.

    Args:
        samples: FP32 [n] at `rate` Hz.

    Returns:
        FP32 [ceil(n x wanted / rate)].
    """
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    rate, wanted = rate // common, wanted // common
    if wanted * rate > _LARGEST_TABLE:
        return _interpolated(samples, rate, wanted)
    return _convolved(samples, rate, wanted)


def _convolved(samples: Samples, rate: int, wanted: int) -> Samples:
    """By a table of one filter for each phase: rates that have a large common divisor."""
    import torch

    kernel, width = _kernel(rate, wanted)
    padded = torch.nn.functional.pad(torch.from_numpy(samples)[None, None], (width, width + rate))
    strided = torch.nn.functional.conv1d(padded, torch.from_numpy(kernel)[:, None], stride=rate)
    length = -(-len(samples) * wanted // rate)
    result: Samples = strided[0].T.reshape(-1)[:length].numpy().copy()
    return result


def _interpolated(samples: Samples, rate: int, wanted: int) -> Samples:
    """With filters computed where they are needed: a table for 44,101 Hz would take gigabytes."""
    base = min(rate, wanted) * _ROLLOFF
    width = math.ceil(_ZERO_CROSSINGS * rate / base)
    padded = np.pad(samples, (width, width + 1))
    taps = np.arange(-width, width + 1)
    result = np.empty(-(-len(samples) * wanted // rate), np.float32)
    block = max(1, _BLOCK // len(taps))
    for start in range(0, len(result), block):
        numbers = np.arange(start, min(start + block, len(result)), dtype=np.int64)
        centers, phases = np.divmod(numbers * rate, wanted)
        filters = _filters((taps - (phases / wanted)[:, None]) * base / rate, base / rate)
        result[start : start + block] = (padded[centers[:, None] + taps + width] * filters).sum(1)
    return result


def _filters(times: NDArray[Any], gain: float) -> Samples:
    times = times.clip(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(times * np.pi / _ZERO_CROSSINGS / 2) ** 2
    filters: Samples = (np.sinc(times) * window * gain).astype(np.float32)
    return filters


def _kernel(rate: int, wanted: int) -> tuple[Samples, int]:
    """FP32 [wanted, taps]: one filter for each phase; and how far it reaches to either side."""
    base = min(rate, wanted) * _ROLLOFF
    width = math.ceil(_ZERO_CROSSINGS * rate / base)
    places = np.arange(-width, width + rate, dtype=np.float64)[None] / rate
    times = (np.arange(0, -wanted, -1, dtype=np.float64)[:, None] / wanted + places) * base
    return _filters(times, base / rate), width


def encode_wav(samples: NDArray[Any], sample_rate: int) -> bytes:
    """A WAV file of 16 bits a sample.

    Args:
        samples: [n], or [n, channels]; what lies beyond -1..1 is clipped.
    """
    import soundfile

    file = io.BytesIO()
    clipped = np.clip(np.asarray(samples, np.float32), -1.0, 1.0)
    soundfile.write(file, clipped, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
