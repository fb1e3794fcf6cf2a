"""Audio files to samples: formats, channels, rates, hostile bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import audio
from backends.errors import InputError


def tone(rate: int, hertz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    times = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "tolerance"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1)])
def test_formats_and_channels(kind: str, tolerance: float) -> None:
    mono = tone(16_000)
    stereo = np.stack([mono, np.zeros_like(mono)], axis=1)
    found = audio.decode_audio(encoded(stereo, 16_000, kind), 16_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mono / 2, atol=tolerance)


def test_mp3() -> None:
    found = audio.decode_audio(encoded(tone(44_100), 44_100, "MP3"), 16_000)
    middle = found[2_000:6_000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize(
    "rates", [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000), (44_101, 16_000)]
)
def test_resampling_keeps_a_tone_and_drops_what_cannot_be_told(rates: tuple[int, int]) -> None:
    rate, wanted = rates
    found = audio.resample(tone(rate), rate, wanted)
    expected = tone(wanted)
    assert len(found) == len(expected)
    inner = slice(200, -200)
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.005)
    if rate > wanted:  # above the new Nyquist frequency
        high = audio.resample(tone(rate, 0.7 * wanted), rate, wanted)
        assert np.abs(high[inner]).max() < 0.02


def test_both_ways_of_resampling_agree() -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, 3_000).astype(np.float32)
    one = audio._convolved(noise, 441, 160)
    np.testing.assert_allclose(audio._interpolated(noise, 441, 160), one, atol=1e-5)


def test_a_file_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_SECONDS", 1)
    with pytest.raises(InputError, match="longer than 1 seconds"):
        audio.decode_audio(encoded(tone(16_000, seconds=1.2), 16_000, "FLAC"), 16_000)
    monkeypatch.setattr(audio, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 are allowed"):
        audio.decode_audio(encoded(tone(16_000), 16_000, "FLAC"), 16_000)


def test_other_formats_are_named() -> None:
    with pytest.raises(InputError, match="is a AIFF file"):
        audio.decode_audio(encoded(tone(16_000), 16_000, "AIFF"), 16_000)


FILES = {kind: encoded(tone(8_000, seconds=0.05), 8_000, kind) for kind in ("WAV", "FLAC", "OGG")}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.integers(0, 2_000),
    st.lists(st.tuples(st.integers(0, 1_500), st.integers(0, 255)), max_size=8),
)
def test_damaged_files_are_refused_or_read(
    kind: str, cut: int, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = audio.decode_audio(bytes(data[:cut]), 8_000)
    except InputError as error:
        words = str(error)
    else:
        words = "audio_input"
        assert np.isfinite(found).all()
    assert words.startswith("audio_input")


def test_wav_is_clipped() -> None:
    samples, rate = soundfile.read(io.BytesIO(audio.encode_wav(np.array([0.0, 2.0, -3.0]), 8_000)))
    assert rate == 8_000
    np.testing.assert_allclose(samples, [0, 1, -1], atol=1e-3)
