"""Triton's protocol through the gateway: unmodified clients, the real server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json

import aiohttp
import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http as blocking_http
import tritonclient.http.aio as triton_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from controlplane.events import InferenceFinished, ModelLoaded
from tests.gateway import running_gateway
from tests.waiting import eventually

pytestmark = pytest.mark.triton

MODEL = "org/echo"
TRITON_NAME = "org--echo"
IMPOSSIBLE = {
    "inputs": [
        {"name": "number", "datatype": "FP32", "shape": [1, 4611686018427387904], "data": [1.0]}
    ]
}


@pytest.fixture(scope="session")
def repository(triton):
    triton.models.echo(TRITON_NAME)
    triton.models.write("org--slow", execute="time.sleep(1.5)")
    triton.models.write("org--dying", execute="raise RuntimeError('no luck today')")
    return triton


@pytest.fixture
async def gateway(repository, triton_client):
    async with running_gateway(repository.server, triton_client) as running:
        running.add_model(MODEL)
        yield running


@pytest.fixture
async def http(gateway):
    client = triton_http.InferenceServerClient(gateway.http_address)
    yield client
    await client.close()


@pytest.fixture
async def rpc(gateway):
    client = triton_grpc.InferenceServerClient(gateway.grpc_address)
    yield client
    await client.close()


class Raw:
    """Plain HTTP; answers are read to their end, so that no connection stays open."""

    def __init__(self, session):
        self._session = session

    async def request(self, method, path, **more):
        answer = await self._session.request(method, path, **more)
        await answer.read()
        return answer

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, **more):
        return self.request("POST", path, **more)


@contextlib.asynccontextmanager
async def raw_client(gateway):
    async with aiohttp.ClientSession(f"http://{gateway.http_address}") as session:
        yield Raw(session)


@pytest.fixture
async def raw(gateway):
    async with raw_client(gateway) as client:
        yield client


def inputs_of(module, texts=("hello",), number=None):
    text = module.InferInput("text_input", [len(texts), 1], "BYTES")
    text.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=np.object_))
    if number is None:
        return [text]
    other = module.InferInput("number", list(number.shape), "FP32")
    other.set_data_from_numpy(number)
    return [text, other]


def http_json_inputs(texts):
    text = triton_http.InferInput("text_input", [len(texts), 1], "BYTES")
    data = np.array([[t.encode()] for t in texts], dtype=np.object_)
    text.set_data_from_numpy(data, binary_data=False)
    return [text]


def finished(gateway):
    return [e for e in gateway.events if isinstance(e, InferenceFinished)]


# -- HTTP: an unmodified client ----------------------------------------------------------------


async def test_http_health_and_server_metadata(http):
    assert await http.is_server_live()
    assert await http.is_server_ready()
    metadata = await http.get_server_metadata()
    assert metadata["name"] == "triton"
    assert {"binary_tensor_data", "model_repository"} <= set(metadata["extensions"])
    assert not any("shared_memory" in name for name in metadata["extensions"])


@pytest.mark.parametrize("name", [MODEL, TRITON_NAME, "org%2Fecho"])
async def test_http_any_spelling_loads_and_infers(gateway, http, name):
    assert await http.is_model_ready(name)
    assert gateway.effects.loads == []
    metadata = await http.get_model_metadata(name)
    assert [i["name"] for i in metadata["inputs"]] == ["text_input", "number"]
    assert gateway.effects.loads == [MODEL]
    number = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = await http.infer(name, inputs_of(triton_http, ("a", "ü"), number))
    assert result.as_numpy("text_output").tolist() == [[b"a"], ["ü".encode()]]
    assert np.array_equal(result.as_numpy("number_output"), number)
    assert gateway.leases(MODEL) == 0


@pytest.mark.parametrize("version", ["1", "main"])
async def test_http_either_spelling_of_a_version(http, version):
    assert await http.is_model_ready(MODEL, version)
    result = await http.infer(MODEL, inputs_of(triton_http), model_version=version)
    assert result.get_response()["model_version"] == "1"


async def test_http_version_names_may_hold_slashes(gateway, repository, http, raw):
    repository.models.echo("org--branch")
    gateway.add_model("org/branch", "feature/x")
    assert (await http.get_model_metadata("org/branch", "feature/x"))["versions"] == ["1"]
    answer = await raw.get("/v2/models/org%2Fbranch/versions/feature%2Fx/ready")
    assert answer.status == 200


async def test_http_json_tensors_both_ways(http):
    outputs = [triton_http.InferRequestedOutput("text_output", binary_data=False)]
    result = await http.infer(MODEL, http_json_inputs(["x", "y"]), outputs=outputs)
    assert result.as_numpy("text_output").tolist() == [["x"], ["y"]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("as_json", [True, False])
async def test_http_compressed_both_ways(http, algorithm, as_json):
    texts = ["word " * 500]
    inputs = http_json_inputs(texts) if as_json else inputs_of(triton_http, texts)
    result = await http.infer(
        MODEL,
        inputs,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.size(result.as_numpy("text_output")) == 1


async def test_http_config_and_statistics(gateway, http):
    config = await http.get_model_config(MODEL)
    assert config["name"] == TRITON_NAME
    await http.infer(MODEL, inputs_of(triton_http))

    async def counted():  # Triton counts after it has answered
        stats = await http.get_inference_statistics(MODEL)
        return stats["model_stats"][0]["inference_count"] == 1

    await eventually(counted)
    assert (await http.get_inference_statistics())["model_stats"]


async def test_http_looking_at_statistics_loads_nothing(gateway, raw):
    answer = await raw.get(f"/v2/models/{MODEL}/stats")
    assert answer.status == 400
    assert gateway.effects.loads == []


async def test_http_large_tensors_and_the_client_without_asyncio(gateway):
    number = np.random.default_rng(0).random((1, 2_000_000), dtype=np.float32)

    def call():
        client = blocking_http.InferenceServerClient(gateway.http_address)
        inputs = inputs_of(blocking_http, number=number)
        try:
            return client.infer(MODEL, inputs)
        finally:
            client.close()

    result = await asyncio.to_thread(call)
    assert np.array_equal(result.as_numpy("number_output"), number)


async def test_concurrent_first_requests_load_once(gateway, http, rpc):
    calls = [http.infer(MODEL, inputs_of(triton_http)) for _ in range(5)]
    calls += [rpc.infer(MODEL, inputs_of(triton_grpc)) for _ in range(5)]
    await asyncio.gather(*calls)
    assert gateway.effects.loads == [MODEL]
    assert len([e for e in gateway.events if isinstance(e, ModelLoaded)]) == 1


# -- HTTP: errors in Triton's form -------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/models/org/unknown", 404, "not registered"),
        ("POST", "/v2/models/org/unknown/infer", 404, "not registered"),
        ("POST", "/v2/models/simple/infer", 404, "not a model id"),
        ("GET", "/v2/models/simple", 404, "not a model id"),
        ("GET", f"/v2/models/{MODEL}/versions/9", 404, "no version '9'"),
        ("GET", "/v2/models/org/unknown/ready", 404, "not registered"),
        ("GET", f"/v2/models/{MODEL}/infer", 405, "use POST"),
        ("POST", f"/v2/models/{MODEL}", 405, "use GET"),
        ("GET", f"/v2/models/{MODEL}/nonsense", 404, "There is no"),
        ("GET", "/v2/nonsense", 404, "There is no"),
        ("GET", "/v2/repository/index", 405, "use POST"),
        ("POST", "/v2/repository/other/index", 404, "one repository"),
        ("POST", "/v2/repository/models/org/unknown/load", 404, "not registered"),
        ("GET", "/v2/systemsharedmemory/status", 501, "allow_shared_memory"),
        ("POST", "/v2/systemsharedmemory/region/x/register", 501, "allow_shared_memory"),
        ("GET", "/v2/cudasharedmemory/status", 501, "device memory"),
        ("GET", "/v2/logging", 501, "operator"),
        ("POST", "/v2/trace/setting", 501, "operator"),
        ("GET", f"/v2/models/{MODEL}/trace/setting", 501, "operator"),
        ("GET", f"/v2/models/{MODEL}/generate", 405, "use POST"),
        ("POST", "/v2/models/org/unknown/generate", 404, "not registered"),
    ],
)
async def test_http_errors(gateway, raw, method, path, status, words):
    answer = await raw.request(method, path)
    body = await answer.json()
    assert (answer.status, list(body)) == (status, ["error"])
    assert words in body["error"]
    assert answer.headers["X-Trace-Id"]
    assert gateway.effects.loads == []


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(IMPOSSIBLE).encode(),
        json.dumps(IMPOSSIBLE).replace("[1, 46", '[1], "shape": [1, 46').encode(),
        gzip.compress(json.dumps(IMPOSSIBLE).encode()),
        b'{"inputs":',
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b"",
    ],
)
async def test_http_bad_bodies_are_refused_before_the_server_sees_them(gateway, raw, body):
    headers = {"Content-Encoding": "gzip"} if body.startswith(b"\x1f") else {}
    pid = gateway.services.server.pid
    answer = await raw.post(f"/v2/models/{MODEL}/infer", data=body, headers=headers)
    assert answer.status == 400
    assert (await answer.json())["error"]
    assert gateway.effects.loads == []
    assert gateway.services.server.pid == pid
    assert [e.error_code for e in finished(gateway)] == ["INVALID_INPUT"]


async def test_http_a_key_given_twice_cannot_smuggle_a_shape(gateway, raw):
    body = (
        b'{"inputs":[{"name":"number","datatype":"FP32","data":[1.0],'
        b'"shape":[1,4611686018427387904],"shape":[1,1]},'
        b'{"name":"text_input","datatype":"BYTES","shape":[1,1],"data":["a"]}]}'
    )
    pid = gateway.services.server.pid
    answer = await raw.post(f"/v2/models/{MODEL}/infer", data=body)
    # Either it is refused or what was checked is what was run.
    assert answer.status in (200, 400)
    assert gateway.services.server.pid == pid
    assert (await raw.get("/v2")).status == 200


def wrongly_typed(module):
    text = module.InferInput("text_input", [1, 1], "FP32")
    text.set_data_from_numpy(np.zeros((1, 1), np.float32))
    return [text]


async def test_classification_of_text_which_kills_the_server_is_refused(gateway, raw, rpc):
    pid = gateway.services.server.pid
    body = {
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
        "outputs": [{"name": "text_output", "parameters": {"classification": 1}}],
    }
    answer = await raw.post(f"/v2/models/{MODEL}/infer", json=body)
    assert (answer.status, "classification" in await answer.text()) == (501, True)
    outputs = [triton_grpc.InferRequestedOutput("text_output", class_count=1)]
    code, _ = await failure_of(rpc.infer(MODEL, inputs_of(triton_grpc), outputs=outputs))
    assert code == "StatusCode.UNIMPLEMENTED"
    assert gateway.services.server.pid == pid
    assert gateway.effects.loads == []


async def test_grpc_shapes_that_overflow_are_refused(gateway, rpc):
    """FP32 [1, 2**62] is 0 bytes to Triton; the model's process dies of it."""
    number = triton_grpc.InferInput("number", [1, 2**62], "FP32")
    number._raw_content = b""
    code, text = await failure_of(rpc.infer(MODEL, [*inputs_of(triton_grpc), number]))
    assert (code, "impossible shape" in text) == ("StatusCode.INVALID_ARGUMENT", True)
    await rpc.infer(MODEL, inputs_of(triton_grpc))


async def test_http_triton_own_errors_pass(gateway, raw):
    tensor = {"name": "text_input", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    answer = await raw.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]})
    assert answer.status == 400
    assert "data-type is 'FP32'" in (await answer.json())["error"]
    assert finished(gateway)[-1].error_code == "INVALID_INPUT"


async def test_http_a_model_that_is_not_installed(gateway, raw):
    gateway.add_model("org/new", ready=False)
    answer = await raw.post("/v2/models/org/new/infer", data=b"{}")
    assert answer.status == 503
    assert "not ready" in (await answer.json())["error"]


async def test_http_request_limit(repository, triton_client):
    async with (
        running_gateway(repository.server, triton_client, max_request_bytes=2000) as gateway,
        raw_client(gateway) as raw,
    ):
        gateway.add_model(MODEL)
        big = json.dumps({"inputs": [{"name": "x" * 5000}]}).encode()
        for body, headers in ((big, {}), (gzip.compress(big), {"Content-Encoding": "gzip"})):
            answer = await raw.post(f"/v2/models/{MODEL}/infer", data=body, headers=headers)
            assert answer.status == 413
            assert "MAX_REQUEST_BYTES" in (await answer.json())["error"]


async def test_http_timeout(repository, triton_client):
    async with running_gateway(repository.server, triton_client, request_timeout=0.7) as gateway:
        gateway.add_model("org/slow")
        await triton_client.load("org--slow", None, timeout=30)
        async with raw_client(gateway) as raw:
            body = {
                "inputs": [
                    {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
                ]
            }
            answer = await raw.post("/v2/models/org/slow/infer", json=body)
            assert answer.status == 504
            assert "no answer within" in (await answer.json())["error"]
        assert gateway.leases("org/slow") == 0
        assert finished(gateway)[-1].error_code == "INFERENCE_TIMEOUT"


async def test_http_client_that_leaves_ends_the_call_upstream(gateway):
    gateway.add_model("org/slow")
    body = json.dumps(
        {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]}
    ).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    head = (
        f"POST /v2/models/org/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await eventually(lambda: gateway.leases("org/slow") == 1)
    writer.close()
    await eventually(lambda: gateway.leases("org/slow") == 0)
    assert finished(gateway)[-1].error_code == "CANCELLED"


async def test_http_trace_id_comes_back(raw):
    wanted = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"
    answer = await raw.get("/v2/health/live", headers={"X-Trace-Id": wanted})
    assert answer.headers["X-Trace-Id"] == wanted


# -- gRPC --------------------------------------------------------------------------------------


async def test_grpc_health_and_server_metadata(rpc):
    assert await rpc.is_server_live()
    assert await rpc.is_server_ready()
    metadata = await rpc.get_server_metadata()
    assert metadata.name == "triton"
    assert {"statistics", "model_repository"} <= set(metadata.extensions)
    assert "system_shared_memory" not in metadata.extensions


@pytest.mark.parametrize("name", [MODEL, TRITON_NAME])
async def test_grpc_any_spelling_loads_and_infers(gateway, rpc, name):
    assert await rpc.is_model_ready(name)
    assert gateway.effects.loads == []
    assert (await rpc.get_model_metadata(name)).name == TRITON_NAME
    assert gateway.effects.loads == [MODEL]
    number = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = await rpc.infer(name, inputs_of(triton_grpc, ("a", "ü"), number), request_id="77")
    assert result.as_numpy("text_output").tolist() == [[b"a"], ["ü".encode()]]
    assert np.array_equal(result.as_numpy("number_output"), number)
    assert result.get_response().id == "77"
    assert gateway.leases(MODEL) == 0


@pytest.mark.parametrize("version", ["1", "main"])
async def test_grpc_either_spelling_of_a_version(rpc, version):
    result = await rpc.infer(MODEL, inputs_of(triton_grpc), model_version=version)
    assert result.get_response().model_version == "1"
    assert (await rpc.get_model_config(MODEL, version)).config.name == TRITON_NAME


async def test_grpc_statistics(gateway, rpc):
    await rpc.infer(MODEL, inputs_of(triton_grpc))

    async def counted():  # Triton counts after it has answered
        return (await rpc.get_inference_statistics(MODEL)).model_stats[0].inference_count == 1

    await eventually(counted)
    assert len((await rpc.get_inference_statistics()).model_stats) >= 1
    await eventually(lambda: finished(gateway))
    assert finished(gateway)[-1].protocol == "v2_grpc"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
async def test_grpc_compressed(rpc, compression):
    result = await rpc.infer(
        MODEL, inputs_of(triton_grpc, ["word " * 1000]), compression_algorithm=compression
    )
    assert result.as_numpy("text_output").tolist() == [[b"word " * 1000]]


async def test_grpc_messages_beyond_the_usual_limit(rpc):
    number = np.random.default_rng(0).random((1, 4_000_000), dtype=np.float32)
    result = await rpc.infer(MODEL, inputs_of(triton_grpc, number=number))
    assert np.array_equal(result.as_numpy("number_output"), number)


async def failure_of(call):
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value.status(), caught.value.message()


async def test_grpc_errors(gateway, rpc):
    gateway.add_model("org/new", ready=False)
    gateway.add_model("org/dying")
    sent = inputs_of(triton_grpc)
    code, text = await failure_of(rpc.infer("org/unknown", sent))
    assert (code, "not registered" in text) == ("StatusCode.NOT_FOUND", True)
    code, text = await failure_of(rpc.infer("simple", sent))
    assert (code, "not a model id" in text) == ("StatusCode.NOT_FOUND", True)
    code, text = await failure_of(rpc.infer(MODEL, sent, model_version="9"))
    assert (code, "no version" in text) == ("StatusCode.NOT_FOUND", True)
    code, text = await failure_of(rpc.infer("org/new", sent))
    assert (code, "not ready" in text) == ("StatusCode.UNAVAILABLE", True)
    assert not await rpc.is_model_ready("org/unknown")
    code, text = await failure_of(rpc.get_log_settings())
    assert (code, "operator" in text) == ("StatusCode.UNIMPLEMENTED", True)
    assert gateway.effects.loads == []


async def test_grpc_triton_own_errors_pass_unchanged(gateway, rpc, repository):
    await rpc.get_model_metadata(MODEL)
    direct = triton_grpc.InferenceServerClient(repository.endpoints.grpc_url)
    ours = await failure_of(rpc.infer(MODEL, wrongly_typed(triton_grpc)))
    theirs = await failure_of(direct.infer(TRITON_NAME, wrongly_typed(triton_grpc)))
    await direct.close()
    assert ours == theirs
    assert ours[0] == "StatusCode.INVALID_ARGUMENT"
    assert finished(gateway)[-1].error_code == "INVALID_INPUT"


async def test_grpc_a_failing_model_is_suspected(repository, triton_client):
    async with running_gateway(repository.server, triton_client) as gateway:
        gateway.add_model("org/dying")
        suspects = []
        object.__setattr__(gateway.services, "suspect", lambda s: suspects.append(s.model_id))
        client = triton_grpc.InferenceServerClient(gateway.grpc_address)
        code, text = await failure_of(client.infer("org/dying", inputs_of(triton_grpc)))
        await client.close()
        assert "no luck today" in text
        assert code == "StatusCode.INTERNAL"
        assert suspects == ["org/dying"]
        assert finished(gateway)[-1].error_code == "INFERENCE_FAILED"


async def test_grpc_deadline_and_cancellation_release_the_lease(gateway, rpc):
    gateway.add_model("org/slow")
    await rpc.get_model_metadata("org/slow")
    code, _ = await failure_of(rpc.infer("org/slow", inputs_of(triton_grpc), client_timeout=0.3))
    assert code == "StatusCode.DEADLINE_EXCEEDED"
    await eventually(lambda: gateway.leases("org/slow") == 0)
    assert finished(gateway)[-1].error_code  # not because the model had answered
    call = asyncio.create_task(rpc.infer("org/slow", inputs_of(triton_grpc)))
    await eventually(lambda: gateway.leases("org/slow") == 1)
    call.cancel()
    await eventually(lambda: gateway.leases("org/slow") == 0)
    assert finished(gateway)[-1].error_code == "CANCELLED"


async def test_grpc_our_own_deadline(repository, triton_client):
    async with running_gateway(repository.server, triton_client, request_timeout=0.5) as gateway:
        gateway.add_model("org/slow")
        await triton_client.load("org--slow", None, timeout=30)
        client = triton_grpc.InferenceServerClient(gateway.grpc_address)
        code, text = await failure_of(client.infer("org/slow", inputs_of(triton_grpc)))
        await client.close()
        assert code == "StatusCode.DEADLINE_EXCEEDED"
        assert "no answer within 0.5 s" in text


async def test_grpc_raw_calls_malformed_bytes_metadata_and_streams(gateway):
    prefix = "/inference.GRPCInferenceService/"
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(prefix + "ModelInfer")(b"\x0a\x05abc")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        trailing = dict(caught.value.trailing_metadata())
        assert trailing["x-error-code"] == "INVALID_INPUT"
        assert len(trailing["x-trace-id"]) == 36
        wanted = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"
        call = channel.unary_unary(prefix + "ServerLive")(
            b"", metadata=(("x-trace-id", wanted), ("some-bin", b"\x00\xff"))
        )
        assert pb.ServerLiveResponse.FromString(await call).live
        assert dict(await call.trailing_metadata())["x-trace-id"] == wanted
        stream = channel.stream_stream(prefix + "NoSuchMethod")()
        assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "NoSuchMethod" in await stream.details()


async def test_the_secret_of_the_control_calls_cannot_be_brought_by_a_client(gateway, repository):
    """With it, a client's load would be Triton's business; it is ours, whatever it brings."""
    prefix = "/inference.GRPCInferenceService/"
    request = pb.RepositoryModelLoadRequest(model_name=TRITON_NAME)
    request.parameters["config"].string_param = "{}"
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(prefix + "RepositoryModelLoad")(
                request.SerializeToString(), metadata=repository.endpoints.grpc_metadata
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert gateway.effects.loads == []


async def test_grpc_port_in_use_is_a_startup_error(gateway):
    from controlplane.errors import StartupError
    from controlplane.gateway.v2_grpc import GrpcGateway

    second = GrpcGateway(gateway.services, "127.0.0.1", gateway.grpc_port)
    with pytest.raises(StartupError, match="MODELMORA_GRPC_PORT"):
        await second.start()


# -- what the metrics say of it ----------------------------------------------------------------


async def test_requests_are_counted(gateway, http, rpc, raw):
    await http.infer(MODEL, inputs_of(triton_http))
    await rpc.infer(MODEL, inputs_of(triton_grpc))
    await raw.post(f"/v2/models/{MODEL}/infer", data=b"{}")
    await eventually(lambda: len(finished(gateway)) == 3)  # what went well waits for a moment
    text = await (await raw.get("/metrics")).text()
    assert f'modelmora_requests_total{{model_id="{MODEL}",status="success"}} 2.0' in text
    assert 'endpoint="v2_http",model_id="org/echo"} 1.0' in text.replace(
        'code="INVALID_INPUT",', ""
    )
    assert "modelmora_models_loaded 1.0" in text
