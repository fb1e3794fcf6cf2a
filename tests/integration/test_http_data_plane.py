"""Triton's HTTP protocol through the gateway: unmodified clients, raw sockets, a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json

import aiohttp
import msgspec
import numpy as np
import pytest
import tritonclient.http as blocking_http
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.events import InferenceFinished
from controlplane.gateway import asgi, http_protocol
from controlplane.inference import again
from tests.gateway import running_gateway
from tests.triton_models import config_text
from tests.waiting import eventually

pytestmark = pytest.mark.triton

ECHO, WORDS, SLOW, NAN = "http/echo", "http/words", "http/slow", "http/nan"
# One response per word; "fail" is an error, "wait" goes on until the request is cancelled.
_WORDS = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self.answer(request, request.get_response_sender())

    def answer(self, request, sender):
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        for word in text.ravel()[0].decode().split():
            if word == "fail":
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no luck")))
                continue
            while word == "wait" and not sender.is_cancelled():
                time.sleep(0.01)
            sender.send(pb_utils.InferenceResponse([
                pb_utils.Tensor("text_output", np.array([[word.encode()]], dtype=np.object_)),
                pb_utils.Tensor("number_output", np.full(
                    (1, 1), np.nan if word == "nan" else 0, np.float32)),
            ]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write_words(models, name):
    folder = models.root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(_WORDS, encoding="utf-8")
    config = config_text(name) + "model_transaction_policy { decoupled: true }\n"
    (folder.parent / "config.pbtxt").write_text(config, encoding="utf-8")


@pytest.fixture(scope="session")
def repository(triton):
    models = triton.models
    models.echo("http--echo")
    models.write("http--slow", execute="time.sleep(1.5)")
    models.write("http--nan", execute="number = number * np.float32('nan')")
    write_words(models, "http--words")
    return triton


@pytest.fixture
async def gateway(repository, triton_client):
    async with running_gateway(repository.server, triton_client) as running:
        for name in (ECHO, WORDS, SLOW, NAN):
            running.add_model(name)
        yield running


@pytest.fixture
async def http(gateway):
    async with triton_http.InferenceServerClient(gateway.http_address) as client:
        yield client


@pytest.fixture
async def session(gateway):
    async with aiohttp.ClientSession(f"http://{gateway.http_address}") as client:
        yield client


def text_body(text="a", **more):
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    return {"inputs": [tensor], **more}


def inputs_of(module, number=None, text="hello"):
    tensor = module.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    if number is None:
        return [tensor]
    other = module.InferInput("number", list(number.shape), "FP32")
    other.set_data_from_numpy(number)
    return [tensor, other]


def finished(gateway):
    return [e for e in gateway.events if isinstance(e, InferenceFinished)]


# -- the model repository, by an unmodified client ---------------------------------------------


async def test_repository_control_by_tritonclient(gateway, http):
    def states(entries):
        return {entry["name"]: (entry["version"], entry["state"]) for entry in entries}

    assert states(await http.get_model_repository_index())["http--echo"] == ("1", "UNAVAILABLE")
    for name in (ECHO, "http--echo", ECHO):
        await http.load_model(name)
    assert gateway.effects.loads == [ECHO]
    assert states(await http.get_model_repository_index())["http--echo"] == ("1", "READY")
    await http.unload_model(ECHO, unload_dependents=True)
    await http.unload_model(ECHO)
    assert states(await http.get_model_repository_index())["http--echo"] == ("1", "UNAVAILABLE")
    with pytest.raises(InferenceServerException, match="runs code"):
        await http.load_model(ECHO, config="{}")
    with pytest.raises(InferenceServerException, match="not registered"):
        await http.load_model("http/unknown")


async def test_repository_index_ready_filter(gateway, http, session):
    await http.load_model(ECHO)
    answer = await session.post("/v2/repository/index", json={"ready": True})
    entry = {"name": "http--echo", "version": "1", "state": "READY", "reason": ""}
    assert await answer.json() == [entry]
    for body in (b"[]", b"{", b'{"ready": 1}'):
        answer = await session.post("/v2/repository/index", data=body)
        assert answer.status == 400
        await answer.read()


async def test_the_client_without_asyncio_sync_and_async(gateway):
    def calls():
        with blocking_http.InferenceServerClient(gateway.http_address, concurrency=4) as client:
            client.load_model(ECHO)
            assert client.is_model_ready(ECHO)
            sent = inputs_of(blocking_http)
            running = [client.async_infer(ECHO, sent) for _ in range(8)]
            results = [call.get_result() for call in running] + [client.infer(ECHO, sent)]
            client.unload_model(ECHO)
            return [result.as_numpy("text_output").tolist() for result in results]

    assert await asyncio.to_thread(calls) == [[[b"hello"]]] * 9


# -- generate ----------------------------------------------------------------------------------


async def test_generate(gateway, session):
    answer = await session.post(f"/v2/models/{ECHO}/generate", json={"text_input": "hello"})
    body = await answer.json()
    assert (answer.status, body["text_output"]) == (200, "hello")
    assert finished(gateway)[-1].error_code is None


async def events_of(answer):
    lines = (await answer.read()).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


async def test_generate_stream(gateway, session):
    sent = {"text_input": "one two three"}
    answer = await session.post("/v2/models/http%2Fwords/generate_stream", json=sent)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = await events_of(answer)
    assert [event["text_output"] for event in events] == ["one", "two", "three"]
    assert gateway.leases(WORDS) == 0


async def test_generate_stream_passes_events_on_as_they_come(gateway, session):
    sent = {"text_input": "one wait"}
    path = f"/v2/models/{WORDS}/generate_stream"
    async with session.post(path, json=sent) as answer:
        event = await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 20)
        assert json.loads(event.removeprefix(b"data: "))["text_output"] == "one"
        assert gateway.leases(WORDS) == 1
        answer.close()
    await eventually(lambda: gateway.leases(WORDS) == 0)
    # The model was told: else it would wait for ever, and this one behind it.
    answer = await session.post(path, json={"text_input": "two"})
    assert [e["text_output"] for e in await events_of(answer)] == ["two"]


async def test_an_event_with_nan_is_an_error_and_the_stream_goes_on(gateway, session):
    path = f"/v2/models/{WORDS}/generate_stream"
    answer = await session.post(path, json={"text_input": "one nan two"})
    first, second, third = await events_of(answer)
    assert (first["text_output"], third["text_output"]) == ("one", "two")
    assert "NaN or Infinity" in second["error"]


async def test_generate_errors_have_tritons_form_and_right_codes(gateway, session):
    cases = [
        (f"/v2/models/{WORDS}/generate", {"text_input": "one two"}, 400, "exactly 1 response"),
        (f"/v2/models/{WORDS}/infer", text_body(), 400, "decoupled"),
        (f"/v2/models/{WORDS}/generate_stream", {"nothing": "x"}, 400, ""),
        (f"/v2/models/{ECHO}/generate", {"text_input": {"a": 1}}, 400, "text_input"),
        (f"/v2/models/{ECHO}/generate", {"text_input": []}, 400, "text_input"),
        (f"/v2/models/{ECHO}/generate", ["x"], 400, "generate request"),
        (f"/v2/models/{ECHO}/generate", {"text_input": "a", "priority": "x"}, 400, "priority"),
    ]
    for path, body, status, words in cases:
        answer = await session.post(path, json=body)
        said = await answer.json(content_type=None)
        assert (answer.status, list(said)) == (status, ["error"]), (path, said)
        assert words in said["error"]
    answer = await session.post(
        f"/v2/models/{WORDS}/generate_stream", json={"text_input": "one fail two"}
    )
    first, second, third = await events_of(answer)
    assert (first["text_output"], third["text_output"]) == ("one", "two")
    assert "no luck" in second["error"]


@pytest.mark.parametrize("action", ["generate", "generate_stream"])
async def test_no_generate_body_ends_the_server(gateway, session, action):
    pid = gateway.services.server.pid
    values = [
        *(1, -1, 2**63, -(2**63), 2**64 - 1, 10**30, 1e308, -1e-320, True, "", "x" * 100_000),
        *("\u0000", "\ud7ff", [1, "a"], [True, 1.5], ["a"] * 50, [1e308] * 9, [2**63]),
    ]
    for name in ("text_input", "number", "parameters", "id", "model_name", "other"):
        for value in values:
            body = io.BytesIO(json.dumps({"text_input": "a", name: value}).encode())
            path = f"/v2/models/{ECHO}/{action}"
            answer = await session.post(path, data=body)
            await answer.read()
            assert answer.status < 600
    assert gateway.services.server.pid == pid
    answer = await session.post(f"/v2/models/{ECHO}/generate", json={"text_input": "still"})
    assert (await answer.json())["text_output"] == "still"


# -- what the request says of its turn ---------------------------------------------------------


async def test_the_requests_own_timeout_counts(gateway, http):
    await http.load_model(SLOW)
    with pytest.raises(InferenceServerException, match=r"no answer within 0\.2 s"):
        await http.infer(SLOW, inputs_of(triton_http), timeout=200_000)
    assert gateway.leases(SLOW) == 0


async def test_the_requests_priority_counts(gateway, http, monkeypatch):
    taken = []
    lease = gateway.services.scheduler.lease

    def spying(servable, *, deadline, priority):
        taken.append(priority)
        return lease(servable, deadline=deadline, priority=priority)

    monkeypatch.setattr(gateway.services.scheduler, "lease", spying)
    for priority in (0, 1, 9):
        await http.infer(ECHO, inputs_of(triton_http), priority=priority)
    assert taken == [3, 1, 4]


# -- the short way ------------------------------------------------------------------------------


async def test_requests_of_either_client_are_answered_below_asgi(gateway, http, monkeypatch):
    """As JSON, as binary tensors, compressed answers; the first one has loaded the model."""
    await http.infer(ECHO, inputs_of(triton_http))
    monkeypatch.setattr("controlplane.gateway.v2_runs.Runs.run", None)
    outputs = [triton_http.InferRequestedOutput("text_output", binary_data=False)]
    for options in ({}, {"outputs": outputs}, {"response_compression_algorithm": "gzip"}):
        result = await http.infer(ECHO, inputs_of(triton_http, text="short"), **options)
        assert result.as_numpy("text_output").tolist() in ([[b"short"]], [["short"]])

    def blocking():
        with blocking_http.InferenceServerClient(gateway.http_address) as client:
            return client.infer(ECHO, inputs_of(blocking_http)).as_numpy("text_output").tolist()

    assert await asyncio.to_thread(blocking) == [[b"hello"]]
    assert [event.status for event in finished(gateway)] == ["success"] * 5


# -- answers that JSON cannot carry ------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_nan_is_not_sent_as_json(gateway, session, encoding):
    headers = {"Accept-Encoding": encoding}
    sent = text_body()
    answer = await session.post(f"/v2/models/{NAN}/infer", json=sent, headers=headers)
    assert answer.status == 422
    assert "binary_data_output" in (await answer.json())["error"]
    sent["parameters"] = {"binary_data_output": True}
    answer = await session.post(f"/v2/models/{NAN}/infer", json=sent, headers=headers)
    assert answer.status == 200
    await answer.read()
    # A text that reads so is no number.
    answer = await session.post(f"/v2/models/{ECHO}/infer", json=text_body("NaN"), headers=headers)
    assert (await answer.json())["outputs"][0]["data"] == ["NaN"]


# -- large bodies ------------------------------------------------------------------------------


# What the client library says of its own way to send.
by_client = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@by_client
async def test_100_mb_both_ways_are_passed_on_as_they_come(gateway, http):
    number = np.random.default_rng(0).random((1, 25_000_000), dtype=np.float32)
    result = await http.infer(ECHO, inputs_of(triton_http, number))
    assert np.array_equal(result.as_numpy("number_output"), number)
    assert gateway.leases(ECHO) == 0
    assert finished(gateway)[-1].error_code is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_large_compressed_bodies(http, algorithm):
    number = np.zeros((1, 3_000_000), dtype=np.float32)
    result = await http.infer(
        ECHO,
        inputs_of(triton_http, number),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(result.as_numpy("number_output"), number)


async def test_large_json_both_ways(session):
    numbers = list(range(400_000))
    tensor = {"name": "number", "datatype": "FP32", "shape": [1, len(numbers)], "data": numbers}
    sent = text_body()
    sent["inputs"].append(tensor)
    body = io.BytesIO(json.dumps(sent).encode())
    answer = await session.post(f"/v2/models/{ECHO}/infer", data=body)
    outputs = {output["name"]: output["data"] for output in (await answer.json())["outputs"]}
    assert outputs["number_output"] == numbers


@pytest.mark.parametrize(
    ("shape", "claimed", "words"),
    [([1, 1_000_000], 4_000_000, "claim"), ([1, 4611686018427387904], 2_000_000, "impossible")],
)
async def test_a_large_body_is_checked_before_it_is_passed_on(
    gateway, session, shape, claimed, words
):
    tensor = {"name": "number", "datatype": "FP32", "shape": shape}
    tensor["parameters"] = {"binary_data_size": claimed}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = await session.post(
        f"/v2/models/{ECHO}/infer",
        data=io.BytesIO(head + bytes(2_000_000)),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert (answer.status, words in await answer.text()) == (400, True)
    assert gateway.effects.loads == []


async def test_tritons_own_refusal_of_a_large_body(gateway, session):
    tensor = {"name": "wrong", "datatype": "FP32", "shape": [1, 500_000]}
    tensor["parameters"] = {"binary_data_size": 2_000_000}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = await session.post(
        f"/v2/models/{ECHO}/infer",
        data=io.BytesIO(head + bytes(2_000_000)),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status == 400
    assert "wrong" in (await answer.json())["error"]
    assert gateway.leases(ECHO) == 0


# -- a model that has gone ---------------------------------------------------------------------


async def test_a_request_to_a_model_that_left_is_answered_all_the_same(
    gateway, session, triton_client
):
    """Triton says that it does not have the model; it is loaded again, the request sent again."""
    scheduler, suspects = gateway.services.scheduler, []

    def suspect(servable):
        suspects.append(servable.model_id)
        for resident in scheduler.residents():
            scheduler.declare_unhealthy(resident, "it has gone")

    object.__setattr__(gateway.services, "suspect", suspect)
    for path in ("infer", "generate", "generate_stream"):
        await _warm(gateway, ECHO)
        await triton_client.unload("http--echo", timeout=30)
        body = text_body("back") if path == "infer" else {"text_input": "back"}
        answer = await session.post(f"/v2/models/{ECHO}/{path}", json=body)
        assert (answer.status, "back" in await answer.text()) == (200, True)
        assert gateway.leases(ECHO) == 0
    assert suspects == [ECHO] * 3
    assert gateway.effects.loads == [ECHO] * 4


async def test_one_of_a_sequence_is_not_sent_again(gateway, session, triton_client, monkeypatch):
    monkeypatch.setattr(again, "NOTICE_SECONDS", 0.0)
    await _warm(gateway, ECHO)
    await triton_client.unload("http--echo", timeout=30)
    sent = text_body(parameters={"sequence_id": 7, "sequence_start": True})
    answer = await session.post(f"/v2/models/{ECHO}/infer", json=sent)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "does not answer" in (await answer.json())["error"]


# -- shared memory -----------------------------------------------------------------------------


async def test_shared_memory_when_a_setting_allows_it(repository, triton_client):
    """The client and the server are on one machine; the tensor travels beside the request."""
    from tritonclient.utils import shared_memory

    async with (
        running_gateway(repository.server, triton_client, allow_shared_memory=True) as gateway,
        triton_http.InferenceServerClient(gateway.http_address) as http,
    ):
        gateway.add_model(ECHO)
        assert "system_shared_memory" in (await http.get_server_metadata())["extensions"]
        number = np.arange(4, dtype=np.float32).reshape(1, 4)
        region = shared_memory.create_shared_memory_region("r", "/modelmora_test_http", 16)
        try:
            shared_memory.set_shared_memory_region(region, [number])
            await http.register_system_shared_memory("r", "/modelmora_test_http", 16)
            assert [r["name"] for r in await http.get_system_shared_memory_status()] == ["r"]
            text, tensor = inputs_of(triton_http, number)
            tensor.set_shared_memory("r", 16)
            result = await http.infer(ECHO, [text, tensor])
            assert np.array_equal(result.as_numpy("number_output"), number)
            tensor.set_shared_memory("r", 12)
            with pytest.raises(InferenceServerException, match="does not fit its shape"):
                await http.infer(ECHO, [text, tensor])
            await http.unregister_system_shared_memory("r")
            assert await http.get_system_shared_memory_status() == []
        finally:
            shared_memory.destroy_shared_memory_region(region)


# -- raw sockets -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def socket_to(gateway):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(body, *headers, path=f"/v2/models/{ECHO}/infer", length=True):
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answer_of(reader):
    """Status and body of one answer with a Content-Length."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
    status = int(head.split(" ")[1])
    if status == 100:
        return status, b""
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return status, await reader.readexactly(length)


BODY = json.dumps(text_body("raw")).encode()


async def test_keep_alive_and_pipelining(gateway):
    async with socket_to(gateway) as (reader, writer):
        for _ in range(2):
            writer.write(post(BODY))
            status, body = await answer_of(reader)
            assert (status, b'"raw"' in body) == (200, True)
        texts = [f"text {number}" for number in range(5)]
        writer.write(b"".join(post(json.dumps(text_body(t)).encode()) for t in texts))
        for text in texts:
            status, body = await answer_of(reader)
            assert (status, msgspec.json.decode(body)["outputs"][0]["data"]) == (200, [text])
        writer.write(post(b"{", length=True) + post(BODY))
        assert [(await answer_of(reader))[0] for _ in range(2)] == [400, 200]


async def test_chunked_bodies_and_byte_by_byte(gateway):
    chunks = [BODY[i : i + 7] for i in range(0, len(BODY), 7)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    request = post(b"", "Transfer-Encoding: chunked", length=False) + coded
    async with socket_to(gateway) as (reader, writer):
        writer.write(request)
        assert (await answer_of(reader))[0] == 200
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await answer_of(reader))[0] == 200


async def test_expect_100_continue(gateway):
    async with socket_to(gateway) as (reader, writer):
        head = post(BODY, "Expect: 100-continue").removesuffix(BODY)
        writer.write(head)
        assert (await answer_of(reader))[0] == 100
        writer.write(BODY)
        assert (await answer_of(reader))[0] == 200
        # An unknown model is told at once: its body need not travel.
        path = "/v2/models/http/unknown/infer"
        writer.write(post(BODY, "Expect: 100-continue", path=path).removesuffix(BODY))
        assert (await answer_of(reader))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 6",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length : 5",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding:\x0bchunked",),
        ("X: a\rContent-Length: 5",),
        ("X: a\x00b",),
        ("X-Folded: a", " b\x01"),
        ("Bad Name: x",),
        (": nameless",),
    ],
)
async def test_requests_of_doubtful_length_or_form_are_refused(gateway, headers):
    sent = "\r\n".join([f"POST /v2/models/{ECHO}/infer HTTP/1.1", "Host: x", *headers, "", ""])
    async with socket_to(gateway) as (reader, writer):
        writer.write(sent.encode("latin-1") + b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _ = await answer_of(reader)
        assert status in (400, 415)
    assert gateway.effects.loads == []


async def test_heads_have_a_limit(gateway):
    async with socket_to(gateway) as (reader, writer):
        writer.write(b"GET /v2/health/live HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(20):
                writer.write(b"X-%d: %b\r\n" % (number, b"a" * 8000))
                await writer.drain()
            # What the client had sent beyond the limit may take the answer away (a TCP reset).
            assert (await answer_of(reader))[0] == 431
    async with socket_to(gateway) as (reader, writer):
        writer.write(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer_of(reader))[0] == 431
    async with socket_to(gateway) as (reader, writer):
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nX: " + b"a" * 30_000 + b"\r\n\r\n")
        assert (await answer_of(reader))[0] == 200


async def test_a_head_that_does_not_come_ends_the_connection(gateway, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    async with socket_to(gateway) as (reader, writer):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    async with socket_to(gateway) as (reader, writer):
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer_of(reader))[0] == 200
        writer.write(b"GET /v2/health/li")
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_body_that_stops_coming_ends_the_request(gateway, monkeypatch):
    monkeypatch.setattr(asgi, "STALL_SECONDS", 0.1)
    async with socket_to(gateway) as (reader, writer):
        writer.write(post(BODY)[:-10])
        assert (await answer_of(reader))[0] == 408
    head = b'{"inputs":[{"name":"number","datatype":"FP32","shape":[1,500000],"parameters":'
    head += b'{"binary_data_size":2000000}}]}'
    length = f"Inference-Header-Content-Length: {len(head)}"
    async with socket_to(gateway) as (reader, writer):
        writer.write(post(head + bytes(2_000_000), length)[:-1_000_000])
        assert (await answer_of(reader))[0] == 408
    assert gateway.leases(ECHO) == 0
    assert finished(gateway)[-1].error_code == "REQUEST_TIMEOUT"


@pytest.mark.parametrize("half", [True, False])
async def test_a_client_that_closes_is_gone(gateway, half):
    """Half a close is a close: from here nobody can tell whether the other half is open."""
    await asyncio.gather(*[_warm(gateway, name) for name in (SLOW, ECHO)])
    async with socket_to(gateway) as (reader, writer):
        writer.write(post(BODY, path=f"/v2/models/{SLOW}/infer"))
        await eventually(lambda: gateway.leases(SLOW) == 1)
        if half:
            writer.write_eof()
        else:
            writer.close()
        await eventually(lambda: gateway.leases(SLOW) == 0)
        assert finished(gateway)[-1].error_code == "CANCELLED"
        assert await reader.read() == b""
    async with socket_to(gateway) as (reader, writer):  # in the middle of a large body
        head = json.dumps(text_body()).encode()
        length = f"Inference-Header-Content-Length: {len(head)}"
        writer.write(post(head + bytes(3_000_000), length)[:-10])
        writer.close()
    await eventually(lambda: gateway.leases(ECHO) == 0)


async def _warm(gateway, name):
    async with triton_http.InferenceServerClient(gateway.http_address) as client:
        await client.load_model(name)


async def test_a_client_that_leaves_while_the_model_loads_is_not_waited_for(gateway):
    free = asyncio.Event()
    load = gateway.effects.load

    async def held(servable, timeout):
        await free.wait()
        return await load(servable, timeout)

    gateway.effects.load = held
    async with socket_to(gateway) as (_, writer):
        writer.write(post(BODY))
        view = gateway.services.scheduler.view
        await eventually(lambda: view(ECHO) and view(ECHO).waiting_requests == 1)
        writer.close()
        await eventually(lambda: view(ECHO).waiting_requests == 0)
    free.set()
    await eventually(lambda: gateway.services.scheduler.view(ECHO).state == "loaded")


async def test_compressed_body_that_lies_about_its_length(session):
    bomb = gzip.compress(bytes(300 * 2**20))
    answer = await session.post(
        f"/v2/models/{ECHO}/infer", data=bomb, headers={"Content-Encoding": "gzip"}
    )
    assert answer.status == 413
    await answer.read()
