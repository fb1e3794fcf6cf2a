"""Every task over REST: the gateway, the real server, models that tell what they were given."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from controlplane.cli import exits
from controlplane.cli.main import run
from controlplane.client import (
    AsyncModelMoraClient,
    InferEvent,
    ModelMoraApiError,
    ModelMoraClient,
)
from controlplane.events import InferenceFinished
from controlplane.gateway.rest import event_messages
from controlplane.inference.tasks import TASKS
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from tests import task_models
from tests.conftest import BackgroundTriton
from tests.gateway import Gateway, running_gateway
from tests.waiting import eventually
from tests.webserver import Fault, WebServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

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
    assert said["parts"][0]["content"] == "What is it?"
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
    assert broken["message"] == "input_data.image: is no image"
    # the items travel one by one; the caller's place is what is told
    listed = [b64(PNG), b64(PNG), b64(b"broken")]
    broken = await rest.refused("object_detection", {"image": listed})
    assert broken["details"]["fields"] == {"input_data.image[2]": ["is no image"]}


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
        {"step": step, "steps": 3}
        for step in (1, 2, 3)  # once each
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


async def test_a_client_that_does_not_read_loses_its_call(
    rest: Rest, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_messages, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(event_messages, "_UNREAD", 4)
    await rest.ask("txt2txt", {"prompt": "load it"})
    body = json.dumps({"input_data": {"prompt": "flood"}, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port, limit=1024)
    writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"POST /api/v1/infer/org/txt2txt HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await eventually(lambda: gateway.leases("org/txt2txt") == 0)
    assert finished(gateway)[-1].error_code == "CANCELLED"
    writer.close()


# -- large bodies ---------------------------------------------------------------------------------


async def test_forty_megabytes_leave_the_event_loop_to_others(rest: Rest) -> None:
    content = b"\x89PNG" + bytes(40_000_000)
    body = json.dumps({"input_data": {"image": b64(content)}}).encode()
    await rest.ask("img2embed", {"text": "load it"})
    asking = asyncio.ensure_future(
        rest.http.post("/api/v1/infer/org/img2embed", content=body, timeout=60)
    )
    longest = 0.0
    while not asking.done():
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.001)
        longest = max(longest, asyncio.get_running_loop().time() - began)
    assert (await asking).json()["output_data"]["embedding"][0] == len(content)
    print(f"longest pause of the event loop: {longest * 1000:.0f} ms")
    assert longest < 2.0  # seconds on a crowded machine; measured 0.1 to 0.2


# -- the client and the command line --------------------------------------------------------------


async def test_both_clients_stream(gateway: Gateway) -> None:
    url = f"http://{gateway.http_address}"
    async with AsyncModelMoraClient(url) as client:
        told = [event async for event in client.stream("org/txt2txt", {"prompt": "Hi"})]
        with pytest.raises(ModelMoraApiError, match="the model broke") as caught:
            [event async for event in client.stream("org/txt2txt", {"prompt": "fail"})]
        assert (caught.value.code, caught.value.status) == ("INFERENCE_FAILED", 500)
        with pytest.raises(ModelMoraApiError) as caught:
            [event async for event in client.stream("org/txt2txt", {})]
        assert (caught.value.code, caught.value.status) == ("VALIDATION_ERROR", 400)
    assert told[-1].result is not None
    assert told[-1].result.output_data["text"] == "".join(event.text for event in told)
    assert told[-1].result.metadata.usage == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
    }

    def wait() -> list[InferEvent]:
        with ModelMoraClient(url) as client:
            return list(client.stream("org/txt2img", {"prompt": "Hi"}, {"steps": 2}))

    events = await asyncio.to_thread(wait)
    assert [event.event for event in events] == ["progress", "progress", "done"]


Shell = Callable[..., Any]


@pytest.fixture
def modelmora(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Shell:
    monkeypatch.setenv("MODELMORA_URL", f"http://{gateway.http_address}")
    monkeypatch.chdir(tmp_path)

    async def call(*arguments: str) -> tuple[int, bytes, str]:
        code = await asyncio.to_thread(run, arguments)
        captured = capsysbinary.readouterr()
        lines = captured.err.decode().splitlines(keepends=True)
        return code, captured.out, "".join(line for line in lines if "origin=" not in line)

    return call


async def test_the_command_line_shows_every_kind_of_answer(
    modelmora: Shell, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "Hi"}]')
    _, out, _ = await modelmora("infer", "org/img2embed", "-i", "cat.png", "-i", "cat.png")
    assert out.count(f"[+{len(PNG)}.0000, +1.0000]".encode()) == 2
    _, out, _ = await modelmora("infer", "org/classification", "a", "b", "-p", "top_k=1")
    assert out.split() == b"INPUT LABEL SCORE a l0 0.7500 b l0 0.7500".split()
    _, out, _ = await modelmora("infer", "org/classification", "a", "b")
    assert out.split()[:7] == b"a: LABEL SCORE l0 0.7500 l1 0.3750".split()
    _, out, _ = await modelmora("infer", "org/question_answering", "who?", "--context", "Ada")
    assert out == b"who?|Ada  (score 0.5000, 3 to 3)\n"
    _, out, _ = await modelmora("infer", "org/object_detection", "-i", "cat.png")
    assert out.split() == b"LABEL SCORE BOX cat 0.2500 1, 2, 3, 4".split()
    _, out, _ = await modelmora(
        "infer", "org/audio2txt", "--audio", "cat.png", "-p", "timestamps=true"
    )
    assert out.splitlines()[0] == b"[0.00 - 1.00] ?"
    _, out, _ = await modelmora("infer", "org/txt2txt", "--messages", "talk.json", "-p", "seed=5")
    assert b'{"seed": 5}' in out
    _, out, _ = await modelmora("infer", "org/own", "--input", "word=@cat.png", "--json")
    assert "base64" in json.loads(out)["output_data"]["shout"]


async def test_the_command_line_streams(modelmora: Shell) -> None:
    code, out, _ = await modelmora("infer", "org/txt2txt", "Hi", "--stream")
    assert (code, out) == (0, b'{"text_input": "Hi"} {}\n')
    code, out, err = await modelmora("infer", "org/txt2txt", "fail", "--stream")
    assert (code, out) == (exits.FAILED, b"so far")
    assert "the model broke" in err
    code, out, _ = await modelmora("infer", "org/txt2txt", "Hi", "--stream", "--json")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["delta"] * 3 + ["done"]


async def test_images_and_recordings_become_files(modelmora: Shell, tmp_path: Path) -> None:
    for name in ("txt2img.png", "txt2img-1.png"):  # nothing is overwritten without being asked
        code, out, err = await modelmora("infer", "org/txt2img", "cat")
        assert (code, out) == (0, b"")
        assert err.startswith(name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    code, _, err = await modelmora("infer", "org/txt2img", "cat", "--stream", "-o", "fox.png")
    assert (code, "step 3 of 3" in err) == (0, True)
    assert (tmp_path / "fox.png").exists()
    await modelmora("infer", "org/txt2audio", "Hello", "Bye", "-o", "said.wav")
    assert (tmp_path / "said-2.wav").read_bytes() == b"RIFFBye"
    code, out, _ = await modelmora("infer", "org/txt2audio", "Hello", "-o", "-")
    assert out == b"RIFFHello"
    code, _, err = await modelmora("infer", "org/txt2audio", "Hello", "-o", "no/such/folder")
    assert (code, "No such file" in err) == (exits.USAGE, True)


# -- gateways of their own, last: at their end they unload what the one above uses ---------------


async def test_a_body_beyond_the_limit_is_413(triton_server: BackgroundTriton) -> None:
    async with gateway_before(triton_server, max_request_bytes=10_000) as small:
        url = f"http://{small.http_address}/api/v1/infer/org/img2embed"
        async with httpx.AsyncClient() as http:
            answer = await http.post(url, json={"input_data": {"image": "A" * 20_000}})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "PAYLOAD_TOO_LARGE"


async def test_files_by_address(triton_server: BackgroundTriton, tmp_path: Path) -> None:
    allowed = {"allow_url_inputs": True, "allow_http": True, "allow_private_sources": True}
    with WebServer(tmp_path) as web:
        web.files["/cat.png"] = PNG
        web.files["/large.png"] = bytes(60_000)
        async with (
            gateway_before(triton_server, **allowed, max_request_bytes=50_000) as running,
            httpx.AsyncClient(base_url=f"http://{running.http_address}", timeout=30) as http,
        ):
            rest = Rest(http)
            addresses = [f"{web.url}/cat.png", b64(b"12"), f"{web.url}/cat.png"]
            found = await rest.ask("img2embed", {"image": addresses})
            assert [row[0] for row in found["embeddings"]] == [len(PNG), 2, len(PNG)]
            error = await rest.refused("img2embed", {"image": [f"{web.url}/none.png"]})
            assert (
                "does not exist (HTTP 404)" in error["details"]["fields"]["input_data.image[0]"][0]
            )
            error = await rest.refused("img2embed", {"image": f"{web.url}/large.png"})
            assert "more than 0.05 MB" in error["message"]
            web.faults["/cat.png"] = [
                Fault("redirect", 302, headers={"Location": "http://169.254.169.254/latest"})
            ]
            error = await rest.refused("img2embed", {"image": f"{web.url}/cat.png"})
            assert "link-local or metadata address" in error["message"]
            web.faults["/cat.png"] = [Fault("truncate", after=5)]
            error = await rest.refused("img2embed", {"image": f"{web.url}/cat.png"})
            assert f"5 of {len(PNG)} bytes came" in error["message"]


async def test_addresses_keep_the_rules_of_sources(
    triton_server: BackgroundTriton, tmp_path: Path
) -> None:
    with WebServer(tmp_path) as web:
        web.files["/cat.png"] = PNG
        async with (
            gateway_before(triton_server, allow_url_inputs=True, allow_http=True) as running,
            httpx.AsyncClient(base_url=f"http://{running.http_address}", timeout=30) as http,
        ):
            error = await Rest(http).refused("img2embed", {"image": f"{web.url}/cat.png"})
            assert "MODELMORA_ALLOW_PRIVATE_SOURCES" in error["message"]
            error = await Rest(http).refused("img2embed", {"image": "http://[::1]:1/cat.png"})
            assert error["code"] == "INVALID_INPUT"
        assert web.requests == []
