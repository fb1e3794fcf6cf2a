"""The image_to_text backend: against transformers' generate, and in the real server."""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backends.errors import InputError, RequestAbandoned
from backends.image_to_text.describer import Describer
from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.failures import RequestRejected
from tests import generation_models as tiny

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

FAMILIES = {"blip": tiny.tiny_blip, "vit-gpt2": tiny.tiny_vit_gpt2, "llava": tiny.tiny_llava}
LLAVA = ModelId.parse("backend-tests/llava")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and artefacts of all families: `home/blip`, `home/blip-artefact`, …"""
    from converters.__main__ import main

    folder: Path = tmp_path_factory.mktemp("captions")
    for name, build in FAMILIES.items():
        source, out = build(folder / name), io.StringIO()
        arguments = ["convert", "--task", "img2txt", "--source", str(source)]
        arguments += ["--output", f"{source}-artefact", "--model-id", f"org/{name}"]
        assert main([*arguments, "--precision", "fp32"], out) == 0, out.getvalue()
    return folder


@pytest.fixture(scope="module")
def picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    gradient = Image.radial_gradient("L").resize((80, 60))
    Image.merge("RGB", [gradient, gradient.rotate(180), gradient]).save(file, "PNG")
    return file.getvalue()


def open_describer(home: Path, name: str) -> Describer:
    return Describer.open(home / f"{name}-artefact")


def describe(
    describer: Describer,
    picture: bytes,
    text: str | None = None,
    messages: Any = None,
    cancelled: Any = lambda: False,
    **asked: Any,
) -> Any:
    return describer.describe(
        picture,
        None if text is None else text.encode(),
        None if messages is None else json.dumps(messages).encode(),
        {"max_tokens": 16} | asked,
        cancelled,
    )


def reference(source: Path, picture: bytes, text: str | None, **asked: Any) -> str:
    """transformers' own answer, by its documented use of each family."""
    import transformers
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    model = transformers.AutoModelForImageTextToText.from_pretrained(source)
    options = {"max_new_tokens": 16, "do_sample": False} | asked
    if source.name == "vit-gpt2":
        processor = transformers.AutoImageProcessor.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        output = model.generate(processor(image, return_tensors="pt").pixel_values, **options)[0]
        return str(tokenizer.decode(output, skip_special_tokens=True))
    processor = transformers.AutoProcessor.from_pretrained(source)
    given = {} if text is None else {"text": text}
    inputs = processor(images=image, return_tensors="pt", **given)
    output = model.generate(**inputs, **options)[0]
    # All but the prompt: BLIP's has its end cut off, and none is only the beginning.
    prompt = inputs.input_ids.shape[1] if "input_ids" in inputs else 1
    start = prompt - 1 if source.name == "blip" and text is not None else prompt
    return str(processor.decode(output[start:], skip_special_tokens=True))


def test_captions_are_transformers_own(home: Path, picture: bytes) -> None:
    for name, text in (("blip", None), ("blip", "the cat"), ("vit-gpt2", None)):
        describer = open_describer(home, name)
        found = describe(describer, picture, text)
        assert found.text == reference(home / name, picture, text)
        assert (found.finish_reason, found.completion_tokens) == ("length", 16)


def test_chat_models_are_asked_through_their_template(home: Path, picture: bytes) -> None:
    describer = open_describer(home, "llava")
    # Without <s>, which the template would have written.
    prompt = "<|user|><image>what plays<end><|assistant|>"
    expected = reference_without_start(home / "llava", picture, prompt)
    asked = describe(describer, picture, "what plays")
    talked = describe(describer, picture, messages=[{"role": "user", "content": "what plays"}])
    assert asked.text == talked.text == expected
    assert asked.prompt_tokens == talked.prompt_tokens > 16
    assert (
        describe(describer, picture).text
        == describe(describer, picture, "Describe the image.").text
    )
    with pytest.raises(InputError, match="none of the role user"):
        describe(describer, picture, messages=[{"role": "system", "content": "hi"}])


def reference_without_start(source: Path, picture: bytes, prompt: str) -> str:
    import transformers
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    processor = transformers.AutoProcessor.from_pretrained(source)
    model = transformers.AutoModelForImageTextToText.from_pretrained(source)
    inputs = processor(images=image, text=prompt, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    return str(processor.decode(output[inputs.input_ids.shape[1] :], skip_special_tokens=True))


def test_seeds_stop_strings_and_cancellation(home: Path, picture: bytes) -> None:
    describer = open_describer(home, "vit-gpt2")
    drawn = [describe(describer, picture, temperature=1.0, seed=s).text for s in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    whole = describe(describer, picture, max_tokens=30).text
    stopped = describe(describer, picture, max_tokens=30, stop=whole[5:8])
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(whole[5:8])], "stop")
    left = iter([False, False, True])
    with pytest.raises(RequestAbandoned):
        describe(describer, picture, max_tokens=30, cancelled=lambda: next(left))
    assert describe(describer, picture, max_tokens=4000).completion_tokens <= 63  # its context


def test_what_a_model_does_not_take_is_refused(home: Path, picture: bytes) -> None:
    vit = open_describer(home, "vit-gpt2")
    with pytest.raises(InputError, match="takes an image alone: it cannot be given a text_input"):
        describe(vit, picture, "a cat")
    with pytest.raises(InputError, match="has no chat template: it takes no messages"):
        describe(vit, picture, messages=[{"role": "user", "content": "a cat"}])
    with pytest.raises(InputError, match="Only one of text_input and messages"):
        describe(vit, picture, "a cat", messages=[{"role": "user", "content": "a cat"}])
    llava = open_describer(home, "llava")
    with pytest.raises(InputError, match=r"make \d+ tokens; model org/llava takes at most 127"):
        describe(llava, picture, "%" * 300)


async def test_in_the_server(
    triton: BackgroundTriton, triton_client: TritonClient, home: Path, picture: bytes
) -> None:
    repository = ModelRepository(triton.repository)
    shutil.copytree(home / "llava-artefact", home / "copy")
    repository.publish(LLAVA, 1, home / "copy")
    config = repository.load_config(LLAVA.triton_name, 1)
    await triton_client.load(LLAVA.triton_name, config, timeout=90)
    outputs = ["text_output", "finish_reason", "prompt_tokens", "completion_tokens"]

    async def ask(image: bytes, **parameters: Any) -> dict[str, Any]:
        inputs = {"image_input": np.array([image], dtype=np.object_)}
        return await triton_client.infer(
            LLAVA.triton_name, 1, inputs, outputs, timeout=60, parameters=parameters
        )

    expected = describe(open_describer(home, "llava"), picture, max_tokens=8)
    found = await ask(picture, max_length=8)  # the alias of max_tokens
    assert [found[name].tolist() for name in outputs] == [
        [expected.text.encode()],
        [b"length"],
        [expected.prompt_tokens],
        [8],
    ]
    hostile = {
        b"": "Image 0 is empty",
        b"GIF89a": "Image 0 is",
        picture[: len(picture) // 2]: "Image 0 is damaged or cut off",
    }
    for image, message in hostile.items():
        with pytest.raises(RequestRejected, match=message):
            await ask(image)
    with pytest.raises(
        RequestRejected, match="temperature must be a number from 0 to 100, got nan"
    ):
        await ask(picture, temperature=float("nan"))
    assert (await ask(picture, max_tokens=1))["completion_tokens"].tolist() == [1]
