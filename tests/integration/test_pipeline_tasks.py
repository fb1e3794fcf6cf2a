"""Detection, listening and speaking: converted, served by Triton, against transformers' own."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from backends.audio import encode_wav
from controlplane.triton.failures import RequestRejected
from tests import pipeline_models
from tests.served import Served, convert, refusal, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

RATE = 16_000
NOISE = np.random.default_rng(3).normal(0, 0.2, 2 * RATE).astype(np.float32)


def pipeline(kind: str, source: Path) -> Any:
    """transformers' own pipeline, in this process."""
    import transformers

    return transformers.pipeline(kind, str(source), device="cpu")


async def refusals(
    model: Served, wrong: Sequence[tuple[dict[str, Any], dict[str, Any], str]]
) -> None:
    """Each request is refused with these words, by the same process."""
    pid = model.pid()
    for inputs, parameters, message in wrong:
        with pytest.raises(RequestRejected) as refused:
            await model.infer(inputs, **parameters)
        assert message in str(refused.value)
    assert model.pid() == pid


# -- object_detection ----------------------------------------------------------------------------


def scene() -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def check_objects(found: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    expected = sorted(expected, key=lambda entry: -entry["score"])
    assert [label.decode() for label in found["label"]] == [e["label"] for e in expected]
    np.testing.assert_allclose(found["score"], [e["score"] for e in expected], atol=1e-5)
    corners = [[e["box"][c] for c in ("xmin", "ymin", "xmax", "ymax")] for e in expected]
    assert found["box"].shape == (len(expected), 4)
    np.testing.assert_allclose(found["box"], np.array(corners).reshape(-1, 4), atol=1)


async def test_objects_are_transformers_own(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    source = pipeline_models.detector(tmp_path / "source")
    convert("object_detection", source, tmp_path / "artefact")
    async with served("detr", tmp_path / "artefact", triton, triton_client) as model:
        image = scene()
        expected = pipeline("object-detection", source)(image, threshold=0.0)
        found = await model.infer({"image_input": [encoded(image)]}, threshold=0.0)
        assert len(expected) > 0
        check_objects(found, expected)
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying on its side
        lying = encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
        check_objects(await model.infer({"image_input": [lying]}, threshold=0.0), expected)
        none = await model.infer({"image_input": [encoded(image)]}, threshold=1.0)
        assert (none["label"].shape, none["box"].shape) == ((0,), (0, 4))
        jpeg = encoded(image, "JPEG")
        good: dict[str, Any] = {"image_input": [jpeg]}
        await refusals(
            model,
            [
                ({"image_input": [jpeg[:200]]}, {}, "Image 0 is damaged or cut off"),
                ({"image_input": [b""]}, {}, "Image 0 is empty"),
                (good, {"threshold": float("nan")}, "Parameter threshold must be a number from 0"),
                (good, {"threshold": -0.1}, "got -0.1"),
                (good, {"threshold": 10**400 // 10**390}, "got 10000000000"),
                (good, {"threshold": "0.5"}, "got '0.5'"),
            ],
        )


def test_another_family_of_detectors(tmp_path: Path) -> None:
    from backends.pipeline.runner import Runner

    source = pipeline_models.detector(tmp_path / "source", detr=False)
    convert("object_detection", source, tmp_path / "artefact")
    runner = Runner.open(tmp_path / "artefact")
    inputs = {"image_input": np.array([encoded(scene())], np.object_)}
    found = runner.run(inputs, {"threshold": 0.1})
    check_objects(found, pipeline("object-detection", source)(scene(), threshold=0.1))


# -- audio2txt -----------------------------------------------------------------------------------


def file_of(samples: np.ndarray[Any, Any], kind: str = "WAV", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return file.getvalue()


@pytest.fixture(scope="module")
def whisper_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline_models.whisper(tmp_path_factory.mktemp("whisper") / "source")


@pytest.fixture
async def whisper(
    whisper_source: Path, tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> AsyncIterator[Served]:
    convert("audio2txt", whisper_source, tmp_path / "artefact")
    async with served("whisper", tmp_path / "artefact", triton, triton_client) as model:
        yield model


async def test_whisper_hears_what_transformers_hears(whisper_source: Path, whisper: Served) -> None:
    listen = pipeline("automatic-speech-recognition", whisper_source)
    for language in ("de", "English"):
        expected = listen(NOISE.copy(), generate_kwargs={"language": language.lower()})
        found = await whisper.infer({"audio_input": [file_of(NOISE)]}, language=language)
        assert found["text_output"][0].decode() == expected["text"]
        assert found["segment_text"].shape == found["segment_end"].shape == (0,)
    options = {"language": "de"}
    expected = listen(NOISE.copy(), return_timestamps=True, generate_kwargs=options)
    stereo = file_of(np.stack([NOISE, NOISE], axis=1))
    found = await whisper.infer({"audio_input": [stereo]}, timestamps=True, **options)
    assert found["text_output"][0].decode() == expected["text"]
    assert [t.decode() for t in found["segment_text"]] == [c["text"] for c in expected["chunks"]]
    assert len(found["segment_start"]) == len(found["segment_end"]) == len(expected["chunks"])
    long = np.concatenate([NOISE] * 3)  # longer than Whisper's window
    expected = listen(long.copy(), return_timestamps=True, generate_kwargs=options)
    found = await whisper.infer({"audio_input": [file_of(long)]}, **options)
    assert found["text_output"][0].decode() == expected["text"]
    good = {"audio_input": [file_of(NOISE)]}
    flac = file_of(NOISE, "FLAC")
    lying_header = bytearray(file_of(NOISE))
    lying_header[24:28] = (0).to_bytes(4, "little")  # 0 Hz
    await refusals(
        whisper,
        [
            (
                {"audio_input": [b"RIFF"]},
                {},
                "audio_input is no audio file that can be read (Format not recognised);",
            ),
            ({"audio_input": [b"RIFF....WAVE"]}, {}, "audio_input"),
            ({"audio_input": [flac[: len(flac) // 2]]}, {}, "audio_input"),
            ({"audio_input": [bytes(lying_header)]}, {}, "audio_input"),
            ({"audio_input": [file_of(NOISE[:0])]}, {}, "audio_input holds no samples."),
            ({"audio_input": [file_of(NOISE * np.nan)]}, {}, "samples that are not finite"),
            (good, {"language": "klingon"}, "Parameter language must be one of de, en, got"),
            (good, {"language": 3}, "Parameter language must be a text, got 3."),
            (good, {"timestamps": "yes"}, "Parameter timestamps must be true or false"),
        ],
    )


def test_ctc_models_tell_words_and_times(tmp_path: Path) -> None:
    from backends.errors import InputError
    from backends.pipeline.runner import Runner

    source = pipeline_models.ctc_listener(tmp_path / "source")
    convert("audio2txt", source, tmp_path / "artefact")
    runner = Runner.open(tmp_path / "artefact")
    listen = pipeline("automatic-speech-recognition", source)
    inputs = {"audio_input": np.array([file_of(NOISE)], np.object_)}
    expected = listen(NOISE.copy(), return_timestamps="word")
    found = runner.run(inputs, {"timestamps": True})
    assert found["text_output"][0].decode() == expected["text"]
    assert [t.decode() for t in found["segment_text"]] == [c["text"] for c in expected["chunks"]]
    times = [chunk["timestamp"] for chunk in expected["chunks"]]
    np.testing.assert_allclose(found["segment_start"], [start for start, _ in times], atol=1e-5)
    with pytest.raises(InputError, match="hears one language"):
        runner.run(inputs, {"language": "en"})
    long = np.tile(NOISE, 20)  # 40 s: in chunks
    found = runner.run({"audio_input": np.array([file_of(long)], np.object_)}, {})
    assert found["text_output"][0].decode() == listen(long, chunk_length_s=30.0)["text"]


# -- txt2audio -----------------------------------------------------------------------------------


async def test_speech_is_transformers_own(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    source = pipeline_models.speaker(tmp_path / "source", speakers=3)
    convert("txt2audio", source, tmp_path / "artefact")
    async with served("vits", tmp_path / "artefact", triton, triton_client) as model:
        said: dict[str, Any] = {"text_input": ["the cat plays"]}
        found = await model.infer(said, voice=1)
        assert found["sample_rate"].tolist() == [16_000]
        samples, rate = soundfile.read(io.BytesIO(found["audio_output"][0]), dtype="float32")
        speak = pipeline("text-to-audio", source)
        expected = speak("the cat plays", forward_params={"speaker_id": 1})["audio"].squeeze()
        assert rate == 16_000
        assert samples.shape == expected.shape
        np.testing.assert_allclose(samples, expected.clip(-1, 1), atol=1e-3)
        other = await model.infer(said, voice="2")
        assert other["audio_output"][0] != found["audio_output"][0]
        half = await model.infer(said, voice=1, sample_rate=8_000)
        shorter, rate = soundfile.read(io.BytesIO(half["audio_output"][0]))
        assert rate == half["sample_rate"][0] == 8_000
        assert len(shorter) == -(-len(samples) // 2)
        await refusals(
            model,
            [
                ({"text_input": [" "]}, {}, "text_input must not be blank"),
                ({"text_input": ["x" * 2_001]}, {}, "text_input has 2,001 characters"),
                ({"text_input": [b"\xff"]}, {}, "text_input[0] is not valid UTF-8"),
                (said, {"voice": 3}, "Parameter voice must be a whole number from 0 to 2, got 3."),
                (said, {"voice": "anna"}, "got 'anna'"),
                (said, {"sample_rate": 0}, "Parameter sample_rate must be a whole number from"),
                (said, {"sample_rate": 10**9}, "Parameter sample_rate must be"),
            ],
        )


def test_one_voice_takes_no_voice(tmp_path: Path) -> None:
    from backends.errors import InputError
    from backends.pipeline.runner import Runner

    convert("txt2audio", pipeline_models.speaker(tmp_path / "source"), tmp_path / "artefact")
    runner = Runner.open(tmp_path / "artefact")
    with pytest.raises(InputError, match="one voice"):
        runner.run({"text_input": np.array([b"a"], np.object_)}, {"voice": 0})


def test_bark_speaks_with_the_voices_of_its_repository(tmp_path: Path) -> None:
    import torch

    from backends.errors import InputError
    from backends.pipeline.runner import Runner

    source = pipeline_models.bark(tmp_path / "source")
    convert("txt2audio", source, tmp_path / "artefact")
    runner = Runner.open(tmp_path / "artefact")
    said = {"text_input": np.array([b"the cat plays"], np.object_)}
    model: Any = runner._task._pipe.model  # type: ignore[attr-defined]
    generate, given = model.generate, list[Any]()

    def observed(*inputs: Any, **options: Any) -> Any:
        given.append(options.get("history_prompt"))
        return generate(*inputs, **options)

    model.generate = observed

    def spoken(**parameters: Any) -> tuple[np.ndarray[Any, Any], int]:
        torch.manual_seed(1)
        wav = runner.run(said, parameters)["audio_output"][0]
        found: tuple[np.ndarray[Any, Any], int] = soundfile.read(io.BytesIO(wav), dtype="float32")
        return found

    plain, rate = spoken()
    assert rate == 24_000
    assert len(plain) > 0
    voiced, _ = spoken(voice="v2/en_speaker_1")
    # a model this small says the same with any voice: what it was given tells
    assert given[0] is None
    for part in ("semantic_prompt", "coarse_prompt", "fine_prompt"):
        saved = np.load(source / f"speaker_embeddings/v2/en_speaker_1_{part}.npy")
        assert (given[1][part].numpy() == saved).all()
    speak = pipeline("text-to-audio", source)
    torch.manual_seed(1)
    with torch.inference_mode():
        ids = speak.processor("the cat plays", voice_preset="v2/en_speaker_1")
        expected = speak.model.generate(**ids).numpy().squeeze()
    np.testing.assert_allclose(voiced, expected.clip(-1, 1), atol=1e-3)
    with pytest.raises(InputError, match=r"one of de_speaker_0, v2/en_speaker_1, got 'anna'"):
        spoken(voice="anna")
    long = {"text_input": np.array([b"word " * 300], np.object_)}
    with pytest.raises(InputError, match="speaks at most 256 at once"):
        runner.run(long, {})


def test_models_that_need_a_vocoder_from_elsewhere_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "speecht5"}')
    error = refusal("txt2audio", source, tmp_path / "artefact")
    assert error["code"] == "EXPORT_FAILED"
    assert "the vocoder that makes sound of them is in another repository" in error["message"]
    assert "facebook/mms-tts-eng" in error["message"]


def test_the_wrong_task_is_told(whisper_source: Path, tmp_path: Path) -> None:
    line = refusal("object_detection", whisper_source, tmp_path / "artefact")
    assert line["code"] == "ARTIFACT_NOT_ACCESSIBLE"
    assert "do not give a pipeline for object_detection" in line["message"]
    assert not (tmp_path / "artefact").exists()
    assert encode_wav(np.zeros(3), RATE)[:4] == b"RIFF"
