"""The text_generation backend: against transformers' generate, and in the real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc

from backends.errors import BackendError, EngineError, InputError, RequestAbandoned
from backends.text_generation.generator import Generator
from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from controlplane.triton.failures import TritonError
from tests import generation_models as tiny

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from backends.text_generation.sequence import Piece
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

FAMILIES = {
    "llama": tiny.tiny_llama,
    "gpt2": tiny.tiny_gpt2,
    "mistral": tiny.tiny_mistral,
    "t5": tiny.tiny_t5,
    "bart": tiny.tiny_bart,
}
LLAMA = ModelId.parse("backend-tests/llama")
T5 = ModelId.parse("backend-tests/t5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and artefacts of all families: `home/llama`, `home/llama-artefact`, …"""
    folder: Path = tmp_path_factory.mktemp("generation")
    for name, build in FAMILIES.items():
        build(folder / name)
        convert(folder / name, folder / f"{name}-artefact")
    return folder


def convert(source: Path, output: Path) -> None:
    """In this process: what a process of its own adds, test_converter_text_generation tells."""
    import io

    from converters.__main__ import main

    out = io.StringIO()
    arguments = ["convert", "--task", "txt2txt", "--source", str(source), "--output", str(output)]
    code = main([*arguments, "--model-id", f"org/{source.name}", "--precision", "fp32"], out)
    assert code == 0, out.getvalue()


class Heard:
    """A receiver that keeps what it hears."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.pieces: list[Piece] = []
        self.error: BackendError | None = None
        self._over = threading.Event()
        self._cancel_after = cancel_after

    def send(self, piece: Piece) -> None:
        assert not self._over.is_set()
        self.pieces.append(piece)
        if piece.finish_reason is not None:
            self._over.set()

    def fail(self, error: BackendError) -> None:
        self.error = error
        self._over.set()

    def is_gone(self) -> bool:
        return self._cancel_after is not None and len(self.pieces) >= self._cancel_after

    def wait(self) -> Heard:
        assert self._over.wait(60)
        return self

    @property
    def text(self) -> str:
        assert self.wait().error is None, self.error
        return "".join(piece.text for piece in self.pieces)

    @property
    def last(self) -> Piece:
        assert self.text is not None
        return self.pieces[-1]


def ask(
    generator: Generator, text: str | None = None, heard: Heard | None = None, **asked: Any
) -> Heard:
    heard = heard or Heard()
    messages = asked.pop("messages", None)
    generator.answer(
        None if text is None else text.encode(),
        None if messages is None else json.dumps(messages).encode(),
        {"max_tokens": 24, "stream": True} | asked,
        heard,
    )
    return heard


class Reference:
    """transformers' own generate on the same source."""

    def __init__(self, source: Path) -> None:
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        config = transformers.AutoConfig.from_pretrained(source)
        self._skip = config.is_encoder_decoder
        auto = (
            transformers.AutoModelForSeq2SeqLM if self._skip else transformers.AutoModelForCausalLM
        )
        self.model = auto.from_pretrained(source)

    def __call__(self, text: str, *, special: bool = True, **asked: Any) -> tuple[str, int]:
        """The text, and how many tokens it took."""
        inputs = self.tokenizer(
            text, return_tensors="pt", return_token_type_ids=False, add_special_tokens=special
        )
        options = {"max_new_tokens": 24, "num_beams": 1, "do_sample": False} | asked
        output = self.model.generate(**inputs, **options)[0]
        new = output[1 if self._skip else inputs.input_ids.shape[1] :]
        decoded: str = self.tokenizer.decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded, len(new)


@pytest.fixture
def opened(home: Path) -> Iterator[Callable[[str], Generator]]:
    generators: list[Generator] = []

    def open_one(name: str) -> Generator:
        generators.append(Generator.open(home / f"{name}-artefact"))
        return generators[-1]

    yield open_one
    for generator in generators:
        generator.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate_also_side_by_side(
    family: str, home: Path, opened: Callable[[str], Generator]
) -> None:
    generator, reference = opened(family), Reference(home / family)
    assert generator.artefact.together == (family in ("llama", "gpt2"))
    answers = [ask(generator, prompt, max_tokens=20 + i) for i, prompt in enumerate(tiny.PROMPTS)]
    sampled = {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2}
    drawn = [ask(generator, tiny.PROMPTS[0], seed=3, **sampled) for _ in range(2)]
    for number, (prompt, heard) in enumerate(zip(tiny.PROMPTS, answers, strict=True)):
        expected = reference(prompt, max_new_tokens=20 + number)
        assert (heard.text, heard.last.completion_tokens) == expected
        assert heard.last.finish_reason in ("length", "stop")
        assert len(heard.pieces) > 5
    import torch

    torch.manual_seed(3)  # generate draws from the global one
    expected = reference(tiny.PROMPTS[0], do_sample=True, **sampled)
    assert {heard.text for heard in drawn} == {expected[0]}


def test_conversations_go_through_the_chat_template(
    home: Path, opened: Callable[[str], Generator]
) -> None:
    generator, reference = opened("llama"), Reference(home / "llama")
    messages = [{"role": "system", "content": "a cat"}, {"role": "user", "content": "play"}]
    heard = ask(generator, messages=messages)
    prompt = "<|system|>a cat<end><|user|>play<end><|assistant|>"
    assert heard.text == reference(prompt, special=False)[0]
    assert heard.last.prompt_tokens == len(
        reference.tokenizer(prompt, add_special_tokens=False).input_ids
    )
    with pytest.raises(InputError, match=r"refuses these messages: the system message must come"):
        ask(generator, messages=messages[::-1])
    with pytest.raises(InputError, match=r"org/gpt2 has no chat template: it continues a text_inp"):
        ask(opened("gpt2"), messages=messages)


def test_seeds_do_not_depend_on_who_runs_beside(opened: Callable[[str], Generator]) -> None:
    generator = opened("llama")
    asked = {"temperature": 1.0, "seed": 11}
    alone = ask(generator, "the cat", **asked).text
    others = [ask(generator, prompt, temperature=1.0) for prompt in tiny.PROMPTS]
    beside = ask(generator, "the cat", **asked)
    assert beside.text == alone
    assert ask(generator, "the cat", temperature=1.0, seed=12).text != alone
    assert len({heard.text for heard in others}) == len(others)


def test_stop_strings_end_the_text_before_them(opened: Callable[[str], Generator]) -> None:
    generator = opened("llama")
    whole = ask(generator, "a river").text
    stop = whole[10:14]
    at = whole.index(stop)
    heard = ask(generator, "a river", stop=json.dumps(["never seen", stop]))
    assert heard.text == whole[:at]
    assert heard.last.finish_reason == "stop"
    at_once = ask(generator, "a river", stop=stop, stream=False)
    assert [piece.text for piece in at_once.wait().pieces] == [whole[:at]]


def test_an_answer_ends_with_the_context(opened: Callable[[str], Generator]) -> None:
    generator = opened("llama")
    heard = ask(generator, "the cat plays", max_tokens=5000)
    assert heard.last.prompt_tokens + heard.last.completion_tokens <= tiny.CONTEXT
    with pytest.raises(
        InputError,
        match=r"The prompt has 401 tokens; model org/llama takes at most 127 \(its context is 128",
    ):
        ask(generator, "%" * 400)


def test_a_cancelled_generation_computes_no_further(opened: Callable[[str], Generator]) -> None:
    generator = opened("llama")
    heard = ask(generator, "the cat", Heard(cancel_after=3), max_tokens=100).wait()
    assert heard.last.finish_reason == "cancelled"
    assert heard.last.completion_tokens <= 6  # tokens without whole text, and one on its way
    assert ask(generator, "the cat").text


class Broken:
    """A model whose forward pass fails for prompts that hold a certain token."""

    def __init__(self, model: Any, token: int) -> None:
        self._model, self._token = model, token
        self.forward = model.forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        ids = inputs.get("input_ids")
        if ids is not None and bool((ids == self._token).any()):
            raise RuntimeError("this token cannot be computed")
        return self._model(**inputs)


def test_what_breaks_one_generation_leaves_the_others(
    home: Path, opened: Callable[[str], Generator]
) -> None:
    generator = opened("llama")
    whole = {prompt: ask(generator, prompt).text for prompt in tiny.PROMPTS[:3]}
    # A token that only the second answer takes, beginning with its third: it breaks in a batch.
    tokenizer = Reference(home / "llama").tokenizer
    answers = [tokenizer(text, add_special_tokens=False).input_ids for text in whole.values()]
    used = {token for number in (0, 2) for token in answers[number]}
    bad = next(token for token in answers[1][2:] if token not in used)
    generator._decoder._model = Broken(generator._decoder._model, bad)
    heard = {prompt: ask(generator, prompt) for prompt in whole}
    broken = list(whole)[1]
    assert isinstance(heard.pop(broken).wait().error, EngineError)
    assert {prompt: each.text for prompt, each in heard.items()} == {
        prompt: text for prompt, text in whole.items() if prompt != broken
    }


class Unreachable(Heard):
    """A receiver that breaks at whatever it is told."""

    def send(self, piece: Piece) -> None:
        raise OSError("the pipe is closed")

    def fail(self, error: BackendError) -> None:
        super().fail(error)
        raise OSError("the pipe is closed")


def test_a_receiver_that_breaks_harms_nobody_else(opened: Callable[[str], Generator]) -> None:
    generator = opened("llama")
    whole = ask(generator, "a river").text
    broken = ask(generator, "the cat", Unreachable())
    beside = ask(generator, "a river")
    assert isinstance(broken.wait().error, EngineError)
    assert beside.text == whole


def test_a_closed_generator_lets_go_of_the_model(home: Path) -> None:
    generator = Generator.open(home / "llama-artefact")
    running = ask(generator, "the cat", max_tokens=100)
    model = weakref.ref(generator._model)
    generator.close()
    assert model() is None
    assert isinstance(running.wait().error, RequestAbandoned) or running.pieces[-1].finish_reason
    assert "generation" not in {thread.name for thread in threading.enumerate()}


# -- in the server -------------------------------------------------------------------------------


class Server:
    def __init__(self, triton: BackgroundTriton, client: TritonClient) -> None:
        self.triton, self.client = triton, client
        self.repository = ModelRepository(triton.repository)

    async def ask(
        self, model: ModelId, text: str | bytes, **parameters: Any
    ) -> list[dict[str, Any]]:
        """All responses: their outputs by name, texts decoded."""
        raw = text.encode() if isinstance(text, str) else text
        inputs = {"text_input": np.array([raw], dtype=np.object_)}
        responses = self.client.stream(
            model.triton_name, 1, inputs, timeout=60, parameters=parameters
        )
        return [{name: plain(a) for name, a in outputs.items()} async for outputs in responses]


def plain(array: Any) -> Any:
    (value,) = array.tolist()
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def published(triton: BackgroundTriton, home: Path) -> BackgroundTriton:
    """Llama and T5, loaded once."""
    repository = ModelRepository(triton.repository)

    async def load(model: ModelId) -> None:
        client = TritonClient(triton.endpoints)
        config = repository.load_config(model.triton_name, 1)
        await client.load(model.triton_name, config, timeout=90)
        await client.close()

    for name, model in (("llama", LLAMA), ("t5", T5)):
        copy = home / f"{name}-copy"
        shutil.copytree(home / f"{name}-artefact", copy)
        repository.publish(model, 1, copy)
        triton.call(load(model))
    return triton


@pytest.fixture
async def server(published: BackgroundTriton) -> AsyncIterator[Server]:
    client = TritonClient(published.endpoints)
    yield Server(published, client)
    await client.close()


async def test_streams_pieces_and_then_the_figures(server: Server, home: Path) -> None:
    expected, count = Reference(home / "llama")("a river")
    pieces = await server.ask(LLAMA, "a river", max_tokens=24, stream=True)
    assert "".join(piece["text_output"] for piece in pieces) == expected
    assert len(pieces) > 5
    assert {tuple(piece) for piece in pieces[:-1]} == {("text_output",)}
    assert pieces[-1]["completion_tokens"] == count
    whole = await server.ask(LLAMA, "a river", max_tokens=24)
    assert [piece["text_output"] for piece in whole] == [expected]
    assert [piece["finish_reason"] for piece in whole] == ["length"]
    (translated,) = await server.ask(T5, "a river", max_tokens=24)
    assert translated["text_output"] == Reference(home / "t5")("a river")[0]


async def test_many_streams_at_once(server: Server, home: Path) -> None:
    reference = Reference(home / "llama")
    answers = await asyncio.gather(
        *[server.ask(LLAMA, prompt, max_tokens=24, stream=True) for prompt in tiny.PROMPTS * 3]
    )
    texts = ["".join(piece["text_output"] for piece in pieces) for pieces in answers]
    assert texts == [reference(prompt)[0] for prompt in tiny.PROMPTS] * 3


def test_a_plain_grpc_client_streams(published: BackgroundTriton, home: Path) -> None:
    tensor = triton_grpc.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a river"], dtype=np.object_))
    heard: list[Any] = []
    over = threading.Event()

    def on_response(result: Any, error: Any) -> None:
        heard.append(error or result)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            over.set()

    client = triton_grpc.InferenceServerClient(published.endpoints.grpc_url)
    client.start_stream(on_response)
    client.async_stream_infer(
        LLAMA.triton_name, [tensor], parameters={"stream": True, "max_tokens": 24}
    )
    assert over.wait(30)
    client.stop_stream()
    client.close()
    text = b"".join(result.as_numpy("text_output")[0] for result in heard)
    assert text.decode() == Reference(home / "llama")("a river")[0]


def test_generate_and_generate_stream(published: BackgroundTriton, home: Path) -> None:
    base = f"{published.endpoints.http_url}/v2/models/{LLAMA.triton_name}"
    body = {"text_input": "a river", "max_tokens": 24, "temperature": 0.0}
    expected = Reference(home / "llama")("a river")[0]
    answer = httpx.post(f"{base}/generate", json=body, timeout=30).json()
    assert answer["text_output"] == expected
    assert answer["completion_tokens"] == 24
    nested = {"text_input": "a river", "parameters": {"max_tokens": 24, "stream": True}}
    with httpx.stream("POST", f"{base}/generate_stream", json=nested, timeout=30) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert "".join(event["text_output"] for event in events) == expected
    assert len(events) > 5
    talk = {"messages": json.dumps([{"role": "user", "content": "play"}]), "max_tokens": 3}
    assert httpx.post(f"{base}/generate", json=talk, timeout=30).json()["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("x" * 1_100_000, {}, "text_input has 1,100,000 characters; at most 100,000 are allowed"),
        ("%" * 5000, {}, "The prompt has 5,001 tokens"),
        (b"\xff\xfe", {}, "text_input is not valid UTF-8"),
        ("a", {"temperature": float("nan")}, "temperature must be a number from 0 to 100, got nan"),
        ("a", {"temperature": -1.0}, "temperature must be a number from 0 to 100, got -1"),
        ("a", {"temperature": "hot"}, "temperature must be a number from 0 to 100, got 'hot'"),
        ("a", {"max_tokens": -5}, "max_tokens must be a whole number from 1 to"),
        ("a", {"max_tokens": True}, "max_tokens must be a whole number from 1 to"),
        ("a", {"top_p": 2.0}, "top_p must be a number from 0 to 1, got 2"),
        ("a", {"top_k": 1.5}, "top_k must be a whole number"),
        ("a", {"seed": -1}, "seed must be a whole number from 0 to"),
        ("a", {"stop": '["", "b"]'}, "stop must not hold an empty text"),
        ("a", {"stop": "[1]"}, "stop must be a text or a JSON list of texts"),
        ("a", {"stream": "yes"}, "stream must be true or false, got 'yes'"),
    ],
)
async def test_hostile_requests_get_a_sentence(
    server: Server, text: str | bytes, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(TritonError, match=message.replace("(", r"\(")):
        await server.ask(LLAMA, text, **parameters)
    (answer,) = await server.ask(LLAMA, "", max_tokens=1)  # empty, but for its first token
    assert answer["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (b"[{", "messages is not JSON"),
        (b"[" * 90_000, "messages is not JSON"),
        (b"{}", "messages must be a list of at least one"),
        (b'["hi"]', "messages.0 must be an object with role and content"),
        (b'[{"role": "user"}]', "messages.0.content must be a text"),
        (b'[{"role": "user", "content": "\\ud800"}]', "messages.0.content is not valid Unicode"),
    ],
)
async def test_hostile_conversations_get_a_sentence(
    server: Server, messages: bytes, message: str
) -> None:
    inputs = {"messages": np.array([messages], dtype=np.object_)}
    with pytest.raises(TritonError, match=message):
        async for _ in server.client.stream(LLAMA.triton_name, 1, inputs, timeout=30):
            pass


async def test_neither_and_both_inputs_are_refused(server: Server) -> None:
    both = np.array([b"hi"], dtype=np.object_)
    for inputs, found in (({}, "neither"), ({"text_input": both, "messages": both}, "both")):
        with pytest.raises(TritonError, match=f"messages is needed, got {found}"):
            async for _ in server.client.stream(LLAMA.triton_name, 1, inputs, timeout=30):
                pass


async def test_a_client_that_leaves_ends_its_generation(server: Server) -> None:
    (pid,) = server.triton.server.stub_pids(LLAMA.triton_name, 1)
    stub = psutil.Process(pid)
    inputs = {"text_input": np.array([b"a river"], dtype=np.object_)}
    calls = [
        server.client.stream(
            LLAMA.triton_name, 1, inputs, timeout=60, parameters={"max_tokens": 120, "stream": True}
        )
        for _ in range(40)  # some seconds of work
    ]
    for call in calls:
        await anext(call)
    for call in calls:
        await call.aclose()
    (answer,) = await server.ask(LLAMA, "the cat", max_tokens=1)
    assert answer["completion_tokens"] == 1
    deadline = time.monotonic() + 20
    before, spent = sum(stub.cpu_times()[:2]), 1.0
    while spent > 0.02:  # idle again
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
        now = sum(stub.cpu_times()[:2])
        before, spent = now, now - before


async def test_memory_comes_back_when_it_is_unloaded(server: Server) -> None:
    (pid,) = server.triton.server.stub_pids(T5.triton_name, 1)
    call = asyncio.ensure_future(server.ask(T5, "a river", max_tokens=100, stream=True))
    await server.client.unload(T5.triton_name, timeout=30)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await asyncio.wait([call])
    assert call.exception() is None or isinstance(call.exception(), TritonError)
