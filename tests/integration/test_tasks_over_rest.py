"""Every task over REST: the gateway, the real server, models that tell what they were given."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from controlplane.events import InferenceFinished
from controlplane.inference.tasks import TASKS
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from tests import task_models
from tests.conftest import BackgroundTriton
from tests.gateway import Gateway, running_gateway
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

PNG = b"\x89PNG\r\n\x1a\n picture"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundTriton]:
    home = tmp_path_factory.mktemp("tasks")
    package = task_models.installed_backend(home / "package")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        repository = ModelRepository(home / "repository")
        for task in task_models.FORMS:
            task_models.publish(repository, task)
        running = BackgroundTriton(home, package / "speaker")
        yield running
        running.stop()


@contextlib.asynccontextmanager
async def gateway_before(triton: BackgroundTriton, **settings: Any) -> AsyncIterator[Gateway]:
    client = TritonClient(triton.endpoints)
    async with running_gateway(triton.server, client, **settings) as running:
        for task in task_models.FORMS:
            running.add_model(
                f"org/{task}",
                task_type="custom" if task == "own" else task,
                manifest=task_models.manifest(task),
            )
        yield running
    await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(triton_server: BackgroundTriton) -> AsyncIterator[Gateway]:
    async with gateway_before(triton_server) as running:
        yield running


class Rest:
    """A client of one gateway."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def post(self, task: str, input_data: dict[str, Any], **more: Any) -> httpx.Response:
        body = {"input_data": input_data, **more}
        return await self.http.post(f"/api/v1/infer/org/{task}", json=body)

    async def ask(self, task: str, input_data: dict[str, Any], **parameters: Any) -> Any:
        answer = await self.post(task, input_data, parameters=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["output_data"]

    async def refused(self, task: str, input_data: dict[str, Any], **more: Any) -> Any:
        answer = await self.post(task, input_data, **more)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]

    async def events(self, task: str, input_data: dict[str, Any], **more: Any) -> list[Any]:
        answer = await self.post(task, input_data, stream=True, **more)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        return events_of(answer.text)


def events_of(text: str) -> list[tuple[str, Any]]:
    told = []
    for block in text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines())
        if "event" in lines:
            told.append((lines["event"], json.loads(lines["data"])))
    return told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest(gateway: Gateway) -> AsyncIterator[Rest]:
    async with httpx.AsyncClient(base_url=f"http://{gateway.http_address}", timeout=30) as http:
        yield Rest(http)


def finished(gateway: Gateway) -> list[InferenceFinished]:
    return [event for event in gateway.events if isinstance(event, InferenceFinished)]


# -- every task -----------------------------------------------------------------------------------


async def test_embeddings_of_texts_and_images(rest: Rest) -> None:
    assert await rest.ask("txt2embed", {"text": "abc"}) == {"embedding": [3, 1], "dimension": 2}
    many = await rest.ask("txt2embed", {"text": ["a"] * 70}, normalize=True)
    assert (len(many["embeddings"]), many["dimension"]) == (70, 2)
    assert max(row[1] for row in many["embeddings"]) <= 32  # in chunks of the model's batch
    assert await rest.ask("txt2embed", {"text": []}) == {"embeddings": [], "dimension": 0}
    image = await rest.ask("img2embed", {"image": b64(PNG)})
    assert image["embedding"] == [len(PNG), 1]
    images = await rest.ask(
        "img2embed", {"image": [b64(b"12"), f"data:image/png;base64,{b64(PNG)}"]}
    )
    assert images["embeddings"] == [[2, 1], [len(PNG), 1]]
    assert (await rest.ask("img2embed", {"text": "word"}))["embedding"] == [4, 0]


async def test_values_that_json_has_no_form_for_are_an_error(rest: Rest) -> None:
    more = {"parameters": {"normalize": True, "prompt_name": "nan"}}
    answer = await rest.post("txt2embed", {"text": "a"}, **more)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INFERENCE_FAILED")
    assert "not finite" in answer.text


async def test_text_generation(rest: Rest) -> None:
    answer = await rest.post(
        "txt2txt",
        {"prompt": "Once", "max_tokens": 5},
        parameters={"temperature": 1, "stop": ["x", "y"], "seed": 2**60},
    )
    body = answer.json()
    given, _, options = body["output_data"]["text"].partition("} ")
    assert json.loads(given + "}") == {"text_input": "Once"}
    assert json.loads(options) == {
        "max_tokens": 5,
        "temperature": 1.0,
        "stop": '["x", "y"]',
        "seed": 2**60,
    }
    assert body["output_data"]["finish_reason"] == "stop"
    assert body["output_data"]["tokens_used"] == 7
    assert body["metadata"]["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
    }
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    talked = (await rest.ask("txt2txt", {"messages": chat}))["text"]
    assert json.loads(json.loads(talked.partition("} ")[0] + "}")["messages"]) == [
        {"role": "user", "content": "Hi"}
    ]
    batch = await rest.post("txt2txt", {"text": ["a", "b", "c"]})
    assert [r["text"][:20] for r in batch.json()["output_data"]["results"]] == [
        '{"text_input": "a"} ',
        '{"text_input": "b"} ',
        '{"text_input": "c"} ',
    ]
    assert batch.json()["metadata"]["usage"]["total_tokens"] == 21
    assert batch.json()["metadata"]["batch_size"] == 3


async def test_captions_and_questions_about_images(rest: Rest) -> None:
    answer = await rest.ask("img2txt", {"image": b64(PNG), "prompt": "a"}, max_length=3)
    assert json.loads(answer["text"]) == {"image_input": len(PNG), "text_input": 1}
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(PNG)}"}},
        {"type": "text", "text": "What is it?"},
    ]
    told = await rest.ask("img2txt", {"messages": [{"role": "user", "content": parts}]})
    said = json.loads(told["text"])
    assert said["image_input"] == len(PNG)
    assert said["parts"][0]["content"] == [{"type": "image"}, parts[1]]
    error = await rest.refused("img2txt", {"prompt": "what?"})
    assert error["details"]["fields"] == {"input_data.image": ["is required"]}


async def test_images(rest: Rest) -> None:
    drawn = await rest.ask("txt2img", {"prompt": "a cat"}, steps=2, width=64, guidance_scale=7)
    assert drawn["format"] == "png"
    content = base64.b64decode(drawn["image"])
    assert content[:4] == b"\x89PNG"
    assert json.loads(content[4:]) == {"steps": 2, "width": 64, "guidance_scale": 7.0}
    again = await rest.ask("img2img", {"image": b64(PNG)}, strength=0.5)
    assert json.loads(base64.b64decode(again["image"])[4:]) == {"strength": 0.5}


async def test_classes_objects_and_answers(rest: Rest) -> None:
    found = await rest.ask("classification", {"text": "fine"}, top_k=1)
    assert found == {"classes": [{"label": "l0", "score": 0.75}]}
    both = await rest.ask("classification", {"text": ["a", "b"]})
    assert [len(one["classes"]) for one in both["results"]] == [2, 2]
    # a model that takes no images says so
    error = await rest.refused("classification", {"image": b64(PNG)})
    assert error["details"]["fields"] == {"input_data.image": ["this model takes no image"]}
    answer = await rest.ask("question_answering", {"question": ["who", "what"], "context": "ctx"})
    assert answer["results"][1] == {"answer": "what|ctx", "score": 0.5, "start": 3, "end": 3}
    objects = await rest.ask("object_detection", {"image": b64(PNG)}, threshold=0.5)
    box = {"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}
    assert objects == {"objects": [{"label": "cat", "score": 0.5, "box": box}]}
    assert await rest.ask("object_detection", {"image": b64(b"nothing")}) == {"objects": []}
    broken = await rest.refused("object_detection", {"image": b64(b"broken")})
    assert broken["code"] == "INVALID_INPUT"
    assert "image_input is no image" in broken["message"]


async def test_speech(rest: Rest) -> None:
    heard = await rest.ask("audio2txt", {"audio": b64(b"RIFF1")}, language="en", timestamps=True)
    assert heard == {
        "text": "en 5",
        "segments": [
            {"start": 0, "end": 1, "text": "en"},
            {"start": 1, "end": 2, "text": "5"},
        ],
    }
    assert await rest.ask("audio2txt", {"audio": b64(b"RIFF1")}) == {"text": "? 5"}
    said = await rest.ask("txt2audio", {"text": "Hello"}, sample_rate=16_000)
    assert said == {"audio": b64(b"RIFFHello"), "format": "wav", "sample_rate": 16_000}


async def test_a_model_with_tensors_of_its_own(rest: Rest) -> None:
    one = await rest.ask("own", {"word": "hi", "numbers": [[1, 2], [3, 4]]})
    assert one == {"shout": "HI", "doubled": [[2, 4], [6, 8]]}
    raw = await rest.ask("own", {"word": {"base64": b64(b"\xff\xfe")}})
    assert raw["shout"] == {"base64": b64(b"\xff\xfe")}
    many = await rest.ask("own", {"word": ["a", "b"], "numbers": [[[1], [2]], [[3, 4], [5, 6]]]})
    assert [item["shout"] for item in many["results"]] == ["A", "B"]
    assert many["results"][1]["doubled"] == [[6, 8], [10, 12]]
    error = await rest.refused("own", {"numbers": [[1.5], [2]], "other": 1})
    assert error["details"]["fields"] == {
        "input_data.other": ["is not an input of this model (word, numbers)"],
        "input_data.word": ["is required"],
        "input_data.numbers": ["must be a whole number (INT64)"],
    }


async def test_every_task_tells_its_schema(rest: Rest) -> None:
    for task in task_models.FORMS:
        answer = await rest.http.get(f"/api/v1/models/org/{task}/schema")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["streams"] is (task in ("txt2txt", "txt2img", "img2img"))
        names = set(body["input_data"]["properties"])
        assert names == (
            {"word", "numbers"} if task == "own" else {f.name for f in TASKS[task].inputs}
        )


# -- streaming ------------------------------------------------------------------------------------


async def test_text_comes_in_pieces(rest: Rest, gateway: Gateway) -> None:
    told = await rest.events("txt2txt", {"prompt": "Hi"}, parameters={"max_tokens": 3})
    pieces = [data["text"] for name, data in told if name == "delta"]
    assert len(pieces) == 3
    name, done = told[-1]
    assert name == "done"
    assert done["output_data"]["text"] == "".join(pieces)
    assert done["metadata"]["usage"]["total_tokens"] == 7
    assert finished(gateway)[-1].status == "success"


async def test_images_tell_of_their_steps(rest: Rest) -> None:
    told = await rest.events("txt2img", {"prompt": "cat"}, parameters={"steps": 3})
    assert [data for name, data in told if name == "progress"] == [
        {"step": step, "steps": 3} for step in (1, 2, 3)
    ]
    assert told[-1][1]["output_data"]["format"] == "png"


async def test_what_does_not_stream_is_done_at_once(rest: Rest) -> None:
    told = await rest.events("txt2embed", {"text": ["a", "b"]})
    assert [name for name, _ in told] == ["done"]
    assert len(told[0][1]["output_data"]["embeddings"]) == 2
    # the Accept header is as good
    answer = await rest.http.post(
        "/api/v1/infer/org/own",
        json={"input_data": {"word": "x"}},
        headers={"Accept": "text/event-stream"},
    )
    assert events_of(answer.text)[0][1]["output_data"]["shout"] == "X"


async def test_a_failure_before_the_first_event_is_a_status(rest: Rest) -> None:
    error = await rest.refused("txt2txt", {"prompt": ["a", "b"]}, stream=True)
    assert error["details"]["fields"] == {"stream": ["takes one item at a time, not lists"]}
    error = await rest.refused("txt2txt", {}, stream=True)
    assert error["details"]["fields"] == {
        "input_data.prompt": ["is required: give prompt or messages"]
    }
    answer = await rest.post("nothing", {"text": "a"}, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "MODEL_NOT_FOUND")


async def test_a_failure_after_that_is_an_event(rest: Rest) -> None:
    told = await rest.events("txt2txt", {"prompt": "fail"})
    assert [name for name, _ in told] == ["delta", "error"]
    assert told[-1][1]["error"]["code"] == "INFERENCE_FAILED"
    assert "the model broke" in told[-1][1]["error"]["message"]


async def test_the_deadline_ends_a_stream(rest: Rest, gateway: Gateway) -> None:
    await rest.ask("txt2txt", {"prompt": "load it"})
    told = await rest.events("txt2txt", {"prompt": "endless"}, timeout_seconds=0.5)
    assert told[0][0] == "delta"
    assert told[-1][1]["error"]["code"] == "INFERENCE_TIMEOUT"
    await eventually(lambda: gateway.leases("org/txt2txt") == 0)


async def test_a_client_that_goes_away_ends_the_request_in_the_model(
    rest: Rest, gateway: Gateway, triton_server: BackgroundTriton
) -> None:
    folder = triton_server.repository / "org--txt2txt" / "1"
    (folder / "cancelled").unlink(missing_ok=True)
    body = {"input_data": {"prompt": "endless"}, "stream": True}
    async with rest.http.stream("POST", "/api/v1/infer/org/txt2txt", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                break
        assert gateway.leases("org/txt2txt") == 1
    await eventually((folder / "cancelled").exists)
    await eventually(lambda: gateway.leases("org/txt2txt") == 0)
    assert finished(gateway)[-1].error_code == "CANCELLED"
