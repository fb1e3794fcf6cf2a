"""Stable Diffusion, converted by the real converter and served by Triton, against diffusers."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from controlplane.lifecycle.health import probe_inputs, probe_parameters
from controlplane.triton.failures import TritonError  # a stream carries no code
from tests import diffusion_models
from tests.served import Served, convert, refusal, served

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [
    pytest.mark.triton,
    pytest.mark.torch,
    # what importing all of diffusers brings up
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
]

PROMPT: dict[str, list[str | bytes]] = {"text_input": ["a red cat"]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion_models.stable_diffusion(tmp_path_factory.mktemp("diffusion") / "source")


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image)


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def reference(source: Path, kind: str, *, seed: int, **options: Any) -> np.ndarray[Any, Any]:
    """diffusers' own picture, in this process."""
    import diffusers
    import torch

    pipe = getattr(diffusers, kind).from_pretrained(source)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe("a red cat", generator=generator, **options).images[0])


async def answers(model: Served, inputs: Any, **parameters: Any) -> list[dict[str, Any]]:
    return [answer async for answer in model.stream(inputs, **parameters)]


async def picture(model: Served, **parameters: Any) -> np.ndarray[Any, Any]:
    return pixels((await answers(model, PROMPT, **parameters))[-1]["image_output"][0])


async def test_pictures_are_diffusers_own_and_come_with_progress(
    source: Path, tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    manifest = convert("txt2img", source, tmp_path / "artefact")
    assert manifest["decoupled"]
    assert manifest["diffusion"]["default_size"] == 64
    async with served("txt2img", tmp_path / "artefact", triton, triton_client) as model:
        found = await answers(model, PROMPT, steps=4, seed=7, guidance_scale=3.0)
        assert [(int(a["step"][0]), int(a["steps"][0])) for a in found] == [
            *[(step, 4) for step in (1, 2, 3, 4)],
            (4, 4),
        ]
        assert ["image_output" in answer for answer in found] == [False] * 4 + [True]
        mine = pixels(found[-1]["image_output"][0])
        expected = reference(
            source,
            "StableDiffusionPipeline",
            seed=7,
            num_inference_steps=4,
            guidance_scale=3.0,
        )
        assert mine.shape == (64, 64, 3)
        assert np.abs(mine.astype(int) - expected).max() <= 1
        options = {"steps": 2, "width": 72, "height": 64}
        same = await picture(model, seed=7, **options)
        assert same.shape == (64, 72, 3)
        assert (same == await picture(model, seed=7, **options)).all()
        assert (same != await picture(model, seed=8, **options)).any()
        assert (same != await picture(model, seed=7, negative_prompt="a dog", **options)).any()
        await check_refusals(model)
        await check_cancellation(model)
        probe = {}
        inputs = probe_inputs(manifest)
        parameters = probe_parameters(manifest)
        async for answer in model.client.stream(
            model.name, 1, inputs, timeout=20, parameters=parameters
        ):
            probe |= answer
        assert set(probe) == {"image_output", "step", "steps"}


async def check_refusals(model: Served) -> None:
    """Every fault is named, and the process lives."""
    pid = model.pid()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"width": 65}, "Parameter width must be a multiple of 8, got 65."),
        ({"width": 7}, "Parameter width must be a whole number from 64 to 2,048, got 7."),
        ({"height": 10**9}, "Parameter height must be a whole number"),
        ({"height": -64}, "got -64"),
        ({"steps": 0}, "Parameter steps must be a whole number from 1 to 200, got 0."),
        ({"steps": 201}, "got 201"),
        ({"steps": 1.5}, "got 1.5"),
        ({"guidance_scale": float("inf")}, "must be a number from 0 to 50, got"),
        ({"guidance_scale": "high"}, "got 'high'"),
        ({"seed": -1}, "Parameter seed"),
        ({"negative_prompt": 3}, "Parameter negative_prompt must be a text, got 3."),
        ({"strength": 0.5}, "Parameter strength is none that model org/name takes."),
    ]
    for parameters, message in wrong:
        with pytest.raises(TritonError) as refused:
            await answers(model, PROMPT, **parameters)
        assert message in str(refused.value)
    for text in (b"\xff", "x" * 100_001):
        with pytest.raises(TritonError, match=r"text_input\[0\]"):
            await answers(model, {"text_input": [text]})
    assert model.pid() == pid
    assert (await picture(model, steps=1)).shape == (64, 64, 3)


async def check_cancellation(model: Served) -> None:
    """Who leaves early leaves the pipeline to the next; those before are served in order."""
    long = model.stream(PROMPT, steps=200, width=256, height=256)
    async with aclosing(long):  # type: ignore[type-var]
        first = await anext(long)
        assert int(first["step"][0]) == 1
    ends: list[int] = []

    async def ask(number: int) -> None:
        await picture(model, steps=1, seed=number)
        ends.append(number)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(0.02)  # so that they arrive in this order
    # 200 steps of that size take far longer
    await asyncio.wait_for(asyncio.gather(*tasks), 15)
    assert ends == [0, 1, 2]


async def test_pictures_from_pictures(
    source: Path, tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    manifest = convert("img2img", source, tmp_path / "artefact")
    assert [tensor["name"] for tensor in manifest["inputs"]] == ["image_input", "text_input"]
    noise = np.random.default_rng(1).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    async with served("img2img", tmp_path / "artefact", triton, triton_client) as model:
        both: Any = {"image_input": [png_of(image)], **PROMPT}
        found = await answers(model, both, steps=4, strength=0.5, seed=3)
        expected = reference(
            source,
            "StableDiffusionImg2ImgPipeline",
            seed=3,
            image=image,
            num_inference_steps=4,
            strength=0.5,
        )
        assert [(int(a["step"][0]), int(a["steps"][0])) for a in found] == [(1, 2), (2, 2), (2, 2)]
        mine = pixels(found[-1]["image_output"][0])
        assert mine.shape == (64, 80, 3)
        assert np.abs(mine.astype(int) - expected).max() <= 1
        alone = await answers(model, {"image_input": [png_of(image)]}, steps=2)
        assert pixels(alone[-1]["image_output"][0]).shape == (64, 80, 3)
        pid = model.pid()
        for file, parameters, message in [
            (png_of(image)[:200], {}, "Image 0 is damaged or cut off"),
            (b"GIF89a", {}, "Image 0 is"),
            (png_of(image), {"strength": 1.01}, "Parameter strength must be a number from 0 to 1"),
            (png_of(image), {"steps": 2, "strength": 0.4}, "leave no step to be made"),
            (png_of(image), {"width": 64}, "Parameter width must be left out"),
            (png_of(Image.new("RGB", (2056, 16))), {}, "has 2056 x 16 pixels"),
        ]:
            with pytest.raises(TritonError) as refused:
                await answers(model, {"image_input": [file]}, **parameters)
            assert message in str(refused.value)
        assert model.pid() == pid


@pytest.mark.parametrize(
    ("build", "task", "pipeline", "options"),
    [
        ("stable_diffusion_xl", "txt2img", "StableDiffusionXLPipeline", {}),
        ("stable_diffusion_xl", "img2img", "StableDiffusionXLImg2ImgPipeline", {"strength": 0.7}),
        ("pixart", "txt2img", "PixArtAlphaPipeline", {}),
        (
            "instruct_pix2pix",
            "img2img",
            "StableDiffusionInstructPix2PixPipeline",
            {"image_guidance_scale": 3.0},
        ),
    ],
)
def test_other_families_of_pipelines(
    build: str, task: str, pipeline: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from backends.diffusion.painter import Painter
    from backends.diffusion.requests import read_request
    from backends.errors import InputError

    source = getattr(diffusion_models, build)(tmp_path / "source")
    manifest = convert(task, source, tmp_path / "artefact")
    assert manifest["diffusion"]["pipeline"] == pipeline
    painter = Painter.open(tmp_path / "artefact")
    probe = probe_inputs(manifest)
    healthy = read_request(probe, probe_parameters(manifest), painter.artefact, painter.defaults)
    assert painter.paint(healthy)[:4] == b"\x89PNG"
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    inputs = {"text_input": np.array([b"a red cat"], np.object_)}
    own: dict[str, Any] = {"width": 64, "height": 64}
    if task == "img2img":
        inputs["image_input"] = np.array([png_of(image)], np.object_)
        own = {}

    def read(**parameters: Any) -> Any:
        return read_request(inputs, parameters, painter.artefact, painter.defaults)

    steps: list[tuple[int, int]] = []
    request = read(steps=3, seed=7, guidance_scale=4.0, **own, **options)
    mine = pixels(painter.paint(request, lambda *step: steps.append(step)))
    made = int(3 * options.get("strength", 1))
    assert [step for step, _ in steps] == list(range(1, made + 1))
    more = {"image": image} if task == "img2img" else own
    expected = reference(
        source, pipeline, seed=7, num_inference_steps=3, guidance_scale=4.0, **more, **options
    )
    assert mine.shape == expected.shape == (64, 64, 3)
    assert np.abs(mine.astype(int) - expected).max() <= 1
    if "image_guidance_scale" not in options:
        with pytest.raises(InputError, match="image_guidance_scale is none that"):
            read(image_guidance_scale=2.0)


def test_a_task_that_a_pipeline_does_not_have_is_told(tmp_path: Path) -> None:
    source = diffusion_models.instruct_pix2pix(tmp_path / "source")
    error = refusal("txt2img", source, tmp_path / "artefact")
    assert error["message"] == (
        "diffusers has no txt2img for the pipeline StableDiffusionInstructPix2PixPipeline; it "
        "serves img2img."
    )


def test_what_is_no_pipeline_of_diffusers_own_is_refused(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    index = json.loads((copy / "model_index.json").read_text())

    def refused(change: dict[str, Any]) -> str:
        (copy / "model_index.json").write_text(json.dumps(index | change))
        line = refusal("txt2img", copy, tmp_path / "artefact")
        assert not (tmp_path / "artefact").exists()
        message: str = line["message"]
        return message

    assert "the repository's own" in refused({"_class_name": ["my_pipeline", "Mine"]})
    assert "'scheduler' of model_index.json comes from 'os'" in refused({"scheduler": ["os", "X"]})
    assert "'my.scheduler'" in refused({"scheduler": ["my.scheduler", "X"]})
    assert refused({"_class_name": "DDPMPipeline"}) == (
        "diffusers has no txt2img for the pipeline DDPMPipeline."
    )
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (copy / "model_index.json").write_text(json.dumps(index))
    assert refusal("txt2img", copy, tmp_path / "artefact")["code"] == "UNSAFE_WEIGHTS"
