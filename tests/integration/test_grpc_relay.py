"""The frame-level relay before the real Triton, with unmodified clients."""

from __future__ import annotations

import asyncio
import os
import queue
import signal

import grpc
import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as triton_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from controlplane.errors import ServiceUnavailable
from controlplane.events import InferenceFinished
from controlplane.lifecycle.admission import Gate
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.failures import TritonError
from tests.gateway import running_gateway
from tests.triton_models import TritonModels
from tests.waiting import eventually

pytestmark = pytest.mark.triton

MODEL = "org/echo"
PREFIX = "/inference.GRPCInferenceService/"
# Answers as many times as `number` says, with pauses where it is much; notes in a file when it is
# cancelled. The text says how it ends, and what is odd about it.
_DECOUPLED = """
import pathlib
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request,), daemon=True).start()

    def answer(self, request):
        sender = request.get_response_sender()
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        count = int(pb_utils.get_input_tensor_by_name(request, "number").as_numpy().ravel()[0])
        how = text.ravel()[0].decode()
        for number in range(count):
            if sender.is_cancelled():
                pathlib.Path({notes!r}).write_text("cancelled")
                break
            last = FINAL if how == "last has it" and number == count - 1 else 0
            sender.send(pb_utils.InferenceResponse([
                pb_utils.Tensor("text_output", text),
                pb_utils.Tensor("number_output", np.full((1, 1), number, np.float32)),
            ]), flags=last)
            if how == "error within" and number == 0:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("within")))
            time.sleep(0.02 if count > 100 else 0)
        if how == "last is an error":
            error = pb_utils.InferenceResponse(error=pb_utils.TritonError("last"))
            sender.send(error, flags=FINAL)
        elif how == "last has no tensors":
            sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
        elif how != "last has it":
            pause = {pause!r}
            while how == "until told" and not pathlib.Path(pause).exists():
                time.sleep(0.02)
            sender.send(flags=FINAL)
"""
# One answer; that it is the last one is said separately.
_SAID_LATER = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input")
            tensor = pb_utils.Tensor("text_output", text.as_numpy())
            sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="session")
def repository(triton, tmp_path_factory):
    notes = tmp_path_factory.mktemp("notes") / "cancelled"
    triton.notes = notes
    name = triton.models.echo("org--many")
    folder = triton.repository / name
    triton.told = notes.with_name("told")
    source = _DECOUPLED.format(notes=str(notes), pause=str(triton.told))
    (folder / "1" / "model.py").write_text(source)
    later = triton.repository / triton.models.echo("org--later")
    (later / "1" / "model.py").write_text(_SAID_LATER)
    config = (folder / "config.pbtxt").read_text().replace("dynamic_batching { }", "")
    (folder / "config.pbtxt").write_text(config + "model_transaction_policy { decoupled: true }\n")
    for number in range(3):
        triton.models.echo(f"org--relayed{number}")
    triton.models.write("org--lingering", execute="time.sleep(0.7)")
    return triton


@pytest.fixture
async def gateway(repository, triton_client):
    async with running_gateway(repository.server, triton_client) as running:
        for name in ("relayed0", "relayed1", "relayed2", "lingering", "later"):
            running.add_model(f"org/{name}")
        running.add_model("org/many", manifest={"decoupled": True})
        yield running


def inputs_of(text="hello", number=None):
    tensor = blocking.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    if number is None:
        return [tensor]
    number = np.asarray(number, np.float32).reshape(1, -1)
    other = blocking.InferInput("number", list(number.shape), "FP32")
    other.set_data_from_numpy(number)
    return [tensor, other]


def text_of(result) -> str:
    return result.as_numpy("text_output").ravel()[0].decode()


def finished(gateway):
    return [e for e in gateway.events if isinstance(e, InferenceFinished)]


# -- unmodified clients ------------------------------------------------------------------------


async def test_the_blocking_client(gateway):
    def use():
        with blocking.InferenceServerClient(gateway.grpc_address) as client:
            assert client.is_server_live()
            assert client.is_model_ready("org/relayed0")
            texts = [text_of(client.infer("org/relayed0", inputs_of("plain")))]
            answers: queue.Queue = queue.Queue()
            for number in range(20):
                client.async_infer(
                    "org/relayed0",
                    inputs_of(f"async{number}"),
                    callback=lambda result, error: answers.put(error or text_of(result)),
                )
            texts += sorted(str(answers.get(timeout=60)) for _ in range(20))
            client.start_stream(lambda result, error: answers.put(error or text_of(result)))
            for number in range(3):
                client.async_stream_infer(f"org/relayed{number}", inputs_of(f"stream{number}"))
            texts += sorted(str(answers.get(timeout=60)) for _ in range(3))
            client.stop_stream()
            return texts

    texts = await asyncio.to_thread(use)
    assert texts[0] == "plain"
    assert texts[1:21] == sorted(f"async{number}" for number in range(20))
    assert texts[21:] == ["stream0", "stream1", "stream2"]
    await eventually(lambda: all(gateway.leases(f"org/relayed{n}") == 0 for n in range(3)))


async def test_the_asyncio_client_streams(gateway):
    async def asked():
        for number in range(5):
            name = f"org/relayed{number % 2}"
            yield {"model_name": name, "inputs": inputs_of(f"a{number}")}

    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        got = [text_of(result) async for result, _ in client.stream_infer(asked())]
    assert sorted(got) == [f"a{number}" for number in range(5)]
    await eventually(lambda: len(finished(gateway)) == 5)
    assert {(e.protocol, e.status) for e in finished(gateway)} == {("v2_grpc_stream", "success")}


async def test_a_decoupled_model_answers_many_times(gateway):
    async def asked():
        yield {"model_name": "org/many", "inputs": inputs_of("x", 50)}

    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        got = [r.as_numpy("number_output").item() async for r, _ in client.stream_infer(asked())]
    assert got == list(range(50))
    await eventually(lambda: gateway.leases("org/many") == 0)


async def test_a_model_sees_that_its_client_has_gone(gateway, repository):
    async def asked():
        yield {"model_name": "org/many", "inputs": inputs_of("x", 100_000)}
        await asyncio.sleep(60)

    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        answers = client.stream_infer(asked())
        await answers.__anext__()
        assert gateway.leases("org/many") == 1
        answers.cancel()
        await eventually(repository.notes.exists)
        await eventually(lambda: gateway.leases("org/many") == 0)
    assert finished(gateway)[-1].error_code == "CANCELLED"


async def test_errors_within_a_stream_leave_it_open(gateway):
    async def asked():
        yield {"model_name": "org/unknown", "inputs": inputs_of()}
        yield {"model_name": "org/relayed0", "inputs": inputs_of("still here")}
        wrong = blocking.InferInput("number", [1, 2**62], "FP32")
        wrong._raw_content = b""
        yield {"model_name": "org/relayed0", "inputs": [*inputs_of(), wrong]}
        yield {"model_name": "org/relayed1", "inputs": inputs_of("and here")}

    errors, texts = [], []
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        async for result, error in client.stream_infer(asked()):
            if error is None:
                texts.append(text_of(result))
            else:
                errors.append(error.message())
    assert sorted(texts) == ["and here", "still here"]
    assert sorted("not registered" in e or "impossible shape" in e for e in errors) == [True, True]


async def test_errors_of_a_stream_as_status_for_those_who_want_them(gateway):
    async def asked():
        yield {"model_name": "org/unknown", "inputs": inputs_of()}

    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        headers = {"triton_grpc_error": "true"}
        answers = client.stream_infer(asked(), headers=headers)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers.__anext__()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# -- what a stream holds -------------------------------------------------------------------------


class Talk:
    """A stream that a test asks on and reads from as it likes."""

    def __init__(self, client, **more):
        self._asked: asyncio.Queue = asyncio.Queue()
        self._answers = client.stream_infer(self._requests(), **more)

    async def _requests(self):
        while (asked := await self._asked.get()) is not None:
            yield asked

    def ask(self, model="org/relayed0", text="hello", number=None, **more):
        more = {"inputs": inputs_of(text, number)} | more
        self._asked.put_nowait({"model_name": model, **more})

    def end(self):
        self._asked.put_nowait(None)

    def cancel(self):
        self._answers.cancel()

    async def answer(self):
        """The next answer as it came."""
        result, error = await asyncio.wait_for(anext(self._answers), 30)
        return str(error) if error else result.get_response()


def asked_of(model, text, count, *, ident="", **parameters):
    """A request message; a parameter is a bool."""
    message = pb.ModelInferRequest(model_name=model, id=ident)
    for tensor in inputs_of(text, count):
        message.inputs.append(tensor._get_tensor())
        message.raw_input_contents.append(tensor._get_content())
    for key, value in parameters.items():
        message.parameters[key].bool_param = value
    return message


async def all_answers(address, *asked):
    """The messages that a stream of these requests brings."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            PREFIX + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        found = [answer async for answer in call(iter(asked))]
    for answer in found:
        if answer.infer_response.model_name and not answer.infer_response.outputs:
            # The one thing that differs: how the request spelled it, see docs/data-plane.md.
            answer.infer_response.model_version = "1"
    return found


async def test_an_idle_stream_does_not_keep_its_model(gateway):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        talk = Talk(client)
        for round_number in range(1, 3):
            talk.ask("org/many", "x", 2)
            talk.ask("org/relayed0", "y")
            answers = [await talk.answer() for _ in range(3)]
            assert {a.model_name for a in answers} == {"org--many", "org--relayed0"}
            await eventually(lambda: gateway.leases("org/many") == 0)
            await eventually(lambda: gateway.leases("org/relayed0") == 0)
            for model in ("org/many", "org/relayed0"):
                await asyncio.wait_for(gateway.services.scheduler.unload(model), 30)
                assert gateway.effects.loads.count(model) == round_number
        assert len(finished(gateway)) == 4
        talk.cancel()
    assert {e.status for e in finished(gateway)} == {"success"}


async def test_a_long_answer_keeps_its_model_and_no_other(gateway, repository):
    repository.told.unlink(missing_ok=True)
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        talk = Talk(client)
        talk.ask("org/many", "until told", 1)
        talk.ask("org/relayed0")
        await talk.answer()
        await talk.answer()
        await eventually(lambda: gateway.leases("org/relayed0") == 0)
        assert gateway.leases("org/many") == 1
        leaving = asyncio.create_task(gateway.services.scheduler.unload("org/many"))
        await asyncio.wait_for(gateway.services.scheduler.unload("org/relayed0"), 30)
        assert not leaving.done()
        repository.told.touch()
        await asyncio.wait_for(leaving, 30)
        talk.end()
        assert [a async for a in talk._answers] == []


@pytest.mark.parametrize("asks", [False, True])
async def test_decoupled_answers_are_those_of_triton(gateway, repository, triton_client, asks):
    """Also for a client that asks for empty last answers itself, and for some requests only."""
    await triton_client.load("org--many", None, timeout=30)

    def asked(model):
        ways = ("plain", "last has it", "error within", "last is an error", "last has no tensors")
        for number, (way, count) in enumerate((w, c) for w in ways for c in (0, 1, 3)):
            wish = {"triton_enable_empty_final_response": number % 3 != 0} if asks else {}
            if (way, count) != ("last has it", 0):  # that would have no end
                yield asked_of(model, way, count, ident=str(number % 4 or ""), **wish)
        wrong = asked_of(model, "x", 1, ident="wrong")
        wrong.inputs[0].name = "nothing"
        yield wrong

    direct, relayed = [], []
    for one in asked("org--many"):
        direct.append(await all_answers(repository.server.endpoints.grpc_url, one))
    for one in asked("org/many"):
        relayed.append(await all_answers(gateway.grpc_address, one))
    assert relayed == direct
    together = await all_answers(gateway.grpc_address, *asked("org/many"))
    everything = [answer for answers in direct for answer in answers]
    assert sorted(map(str, together)) == sorted(map(str, everything))
    await eventually(lambda: gateway.leases("org/many") == 0)
    codes = [event.error_code for event in finished(gateway)]
    assert len(codes) == 2 * len(direct)
    assert set(codes) == {None, "INFERENCE_FAILED"}


async def test_the_blocking_client_gets_the_end_it_asks_for(gateway):
    def use():
        answers: queue.Queue = queue.Queue()
        with blocking.InferenceServerClient(gateway.grpc_address) as client:
            client.start_stream(lambda result, error: answers.put(error or result.get_response()))
            for asks in (True, False):
                client.async_stream_infer(
                    "org/many", inputs_of("x", 2), enable_empty_final_response=asks
                )
            got = [answers.get(timeout=30) for _ in range(5)]
            client.stop_stream()
        assert answers.empty()
        return got

    got = await asyncio.to_thread(use)
    finals = [a for a in got if a.parameters["triton_final_response"].bool_param]
    assert [len(answer.outputs) for answer in finals] == [0]


async def test_errors_on_a_stream_let_go(gateway):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        talk = Talk(client)
        talk.ask("org/many", "last is an error", 1)
        await talk.answer()
        assert "last" in await talk.answer()
        await eventually(lambda: gateway.leases("org/many") == 0)
        wrong = inputs_of("x", 1)
        wrong[0]._input.name = "nothing"
        for model in ("org/many", "org/relayed0"):
            talk.ask(model, inputs=wrong)
            assert "unexpected inference input" in await talk.answer()
            await eventually(lambda m=model: gateway.leases(m) == 0)
            await asyncio.wait_for(gateway.services.scheduler.unload(model), 30)
        talk.cancel()
    assert [e.error_code for e in finished(gateway)] == ["INFERENCE_FAILED"] * 3


async def test_cancelling_a_stream_lets_go(gateway, repository):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        repository.told.unlink(missing_ok=True)
        talk = Talk(client)
        talk.ask("org/many", "until told", 1)
        await talk.answer()
        assert gateway.leases("org/many") == 1
        talk.cancel()
        await eventually(lambda: gateway.leases("org/many") == 0)
        repository.told.touch()
    assert [e.error_code for e in finished(gateway)] == ["CANCELLED"]


async def test_a_model_that_ends_its_one_answer_separately_is_kept_to_the_streams_end(
    gateway, monkeypatch
):
    # More requests than may run at a time. Few of them, and one after the other: Triton 2.51 may
    # die of a model that answers so.
    monkeypatch.setitem(Gate.__init__.__kwdefaults__, "running", 2)
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        talk = Talk(client)
        for number in range(3):
            talk.ask("org/later", str(number))
            assert not (await talk.answer()).parameters["triton_final_response"].bool_param
        assert gateway.leases("org/later") == 1
        assert len(finished(gateway)) == 3
        talk.end()
        assert [a async for a in talk._answers] == []
    await eventually(lambda: gateway.leases("org/later") == 0)


# -- sizes and numbers -------------------------------------------------------------------------


async def test_a_hundred_megabytes_there_and_back(gateway):
    number = np.random.default_rng(0).random((1, 25_000_000), dtype=np.float32)
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        result = await client.infer("org/relayed0", inputs_of("x", number))
        assert np.array_equal(result.as_numpy("number_output"), number)


async def test_thousands_of_streams_on_one_connection(gateway):
    request = pb.ModelInferRequest(model_name="org/relayed0")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        call = channel.unary_unary(
            PREFIX + "ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )

        async def ask(number):
            mine = pb.ModelInferRequest()
            mine.CopyFrom(request)
            mine.id = str(number)
            content = str(number).encode()
            mine.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
            return (await call(mine.SerializeToString())).id

        # A model's queue takes a thousand at a time; the model is being loaded when they come.
        for _ in range(3):
            ids = await asyncio.gather(*[ask(number) for number in range(1000)])
            assert ids == [str(number) for number in range(1000)]
    assert gateway.leases("org/relayed0") == 0


async def test_streams_pass_one_that_waits_for_its_model(gateway, repository):
    repository.models.write("org--dormant", initialize="time.sleep(3)")
    gateway.add_model("org/dormant")
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        await client.infer("org/relayed0", inputs_of())
        big = np.zeros(1_000_000)
        waiting = asyncio.create_task(client.infer("org/dormant", inputs_of("late", big)))
        await eventually(lambda: "org/dormant" in gateway.effects.loads)
        for number in range(20):
            assert text_of(await client.infer("org/relayed0", inputs_of(f"n{number}")))
        assert not waiting.done()
        assert text_of(await waiting) == "late"


# -- models, memory, repository ----------------------------------------------------------------


async def test_repository_calls_go_through_our_lifecycle(gateway):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        index = {m.name: m.state for m in (await client.get_model_repository_index()).models}
        assert index["org--relayed0"] == "UNAVAILABLE"
        await client.load_model("org/relayed0")
        assert gateway.effects.loads == ["org/relayed0"]
        index = {m.name: m.state for m in (await client.get_model_repository_index()).models}
        assert index["org--relayed0"] == "READY"
        await client.unload_model("org--relayed0")
        view = gateway.services.scheduler.view("org/relayed0")
        assert view is None or view.memory_mb == 0
        with pytest.raises(InferenceServerException) as caught:
            await client.load_model("org/relayed0", config="{}")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_what_is_refused_says_why(gateway):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        for call, word in (
            (client.get_system_shared_memory_status(), "allow_shared_memory"),
            (client.get_cuda_shared_memory_status(), "CUDA"),
            (client.get_log_settings(), "LOG_LEVEL"),
            (client.get_trace_settings(), "trace"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                await call
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
            assert word in caught.value.message()


async def test_shared_memory_where_it_is_allowed(repository, triton_client):
    async with (
        running_gateway(repository.server, triton_client, allow_shared_memory=True) as gateway,
        triton_grpc.InferenceServerClient(gateway.grpc_address) as client,
    ):
        assert "system_shared_memory" in (await client.get_server_metadata()).extensions
        assert not (await client.get_system_shared_memory_status()).regions


async def test_priority_and_timeout_of_a_request(gateway):
    async with triton_grpc.InferenceServerClient(gateway.grpc_address) as client:
        await client.get_model_metadata("org/lingering")
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("org/lingering", inputs_of(), priority=1, timeout=200_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "within 0.2 s" in caught.value.message()


# -- deaths ------------------------------------------------------------------------------------

SLOW_ONCE = """
begun = {!r}
if not os.path.exists(begun):
    open(begun, "w").close()
    time.sleep(30)
"""


@pytest.fixture
async def own(tmp_path):
    """A Triton of the test's own, to be killed."""
    models = TritonModels(tmp_path / "repository")
    models.echo("org--echo")
    # its first request takes long, those after it do not
    models.write("org--slow", execute=SLOW_ONCE.format(str(tmp_path / "begun")))
    server = EmbeddedTriton(tmp_path / "repository", tmp_path / "state")
    await server.start()
    client = TritonClient(server.endpoints)
    async with running_gateway(server, client, request_timeout=60.0) as gateway:
        scheduler = gateway.services.scheduler
        server.on_lost.append(scheduler.server_lost)
        server.on_restored.append(lambda: client.reconnect(server.endpoints))
        server.on_restored.append(scheduler.server_restored)

        async def unload(servable, timeout):
            # After a death in the middle of a request Triton (2.51) never ends the unload.
            try:
                await client.unload(servable.triton_name, timeout=3)
            except TritonError as error:
                raise ServiceUnavailable(str(error)) from None

        def suspect(servable):  # as the monitor finds out within a second or two
            if not server.stub_pids(servable.triton_name, servable.triton_version):
                for resident in scheduler.residents():
                    if resident.servable.key == servable.key:
                        scheduler.declare_unhealthy(resident, "its process has died")

        object.__setattr__(gateway.services, "suspect", suspect)
        gateway.effects.unload = unload
        gateway.effects.kill_server = server.kill
        gateway.add_model("org/echo")
        gateway.add_model("org/slow")
        yield gateway
    await client.close()
    await server.stop()


async def test_requests_survive_the_death_of_triton(own):
    server = own.services.server
    async with triton_grpc.InferenceServerClient(own.grpc_address) as client:
        await client.infer("org/echo", inputs_of())
        stop = False
        done: list[str] = []

        async def ask(worker):
            number = 0
            while not stop:
                text = f"{worker}-{number}"
                assert text_of(await client.infer("org/echo", inputs_of(text))) == text
                done.append(text)
                number += 1

        asking = [asyncio.create_task(ask(worker)) for worker in range(16)]
        await eventually(lambda: len(done) > 200)
        os.kill(server.pid, signal.SIGKILL)
        before = len(done)
        await eventually(lambda: server.state == "ready" and len(done) > before + 500)
        stop = True
        await asyncio.gather(*asking)
    assert {e.status for e in finished(own)} == {"success"}


async def test_a_stream_ends_with_the_server_it_runs_in_and_an_idle_one_lives_on(own, tmp_path):
    asked: asyncio.Queue = asyncio.Queue()

    async def requests():
        while True:
            yield {"model_name": await asked.get(), "inputs": inputs_of()}

    async with triton_grpc.InferenceServerClient(own.grpc_address) as client:
        answers = client.stream_infer(requests())
        asked.put_nowait("org/echo")
        await answers.__anext__()
        os.kill(own.services.server.pid, signal.SIGKILL)
        await eventually(lambda: own.services.server.state != "ready")
        asked.put_nowait("org/echo")  # waits for Triton's return
        result, error = await answers.__anext__()
        assert error is None
        assert text_of(result) == "hello"
        asked.put_nowait("org/slow")
        await eventually((tmp_path / "begun").exists, 30)
        os.kill(own.services.server.pid, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers.__anext__()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert text_of(await client.infer("org/echo", inputs_of("again"))) == "again"


async def test_a_request_survives_the_death_of_its_models_process(own, tmp_path):
    server = own.services.server
    async with triton_grpc.InferenceServerClient(own.grpc_address) as client:
        await client.get_model_metadata("org/slow")
        asking = asyncio.create_task(client.infer("org/slow", inputs_of("phoenix")))
        await eventually((tmp_path / "begun").exists)
        for pid in server.stub_pids("org--slow", 1):
            os.kill(pid, signal.SIGKILL)
        assert text_of(await asking) == "phoenix"
        assert own.effects.loads.count("org/slow") == 2
