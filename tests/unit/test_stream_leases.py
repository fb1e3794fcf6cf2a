"""Whose lease ends with which answer of a stream; that no busy model is let go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from controlplane.events import EventBus
from controlplane.gateway.grpc_relay import streaming
from controlplane.gateway.grpc_relay.answers import Answer
from controlplane.gateway.grpc_relay.stream_requests import Request, StreamRequests
from controlplane.lifecycle.scheduler import Scheduler
from tests.relay import GatedEffects, H2Client, Store, framed, running_relay
from tests.unit.test_grpc_relay import echoed, request
from tests.unit.test_stream_answers import FINAL, refusal
from tests.waiting import eventually

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASKS = "triton_enable_empty_final_response"


def answer(model, *, final=True, empty=False, error="", version="1"):
    """An answer of Triton for org--`model`; `final` None leaves the mark out."""
    message = pb.ModelStreamInferResponse(error_message=error)
    inner = message.infer_response
    inner.model_name, inner.model_version, inner.id = f"org--{model}", version, "7"
    if final is not None:
        inner.parameters[FINAL].bool_param = final
    if not empty and not error:
        inner.outputs.add(name="y", datatype="UINT8", shape=[1, 1])
        inner.raw_output_contents.append(b"y")
    return message.SerializeToString()


async def soon(condition):
    """As `eventually`, looking more often: it is asked some thousand times."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("not true within 10 s")


class Counting(StreamRequests):
    """Counts the answers that have been seen on all streams."""

    answers = 0

    def answered(self, answer):
        super().answered(answer)
        Counting.answers += 1


@pytest.fixture(autouse=True, scope="module")
def _counting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "StreamRequests", Counting)
        yield


class Stream:
    """An open stream before a Triton that answers when it is told to."""

    def __init__(self, world, client, **headers):
        self.world, self.client = world, client
        self.id = client.open("ModelStreamInfer", **headers)
        world.triton.reply = lambda message: []

    async def ask(self, model, **parameters):
        seen = len(self.world.triton.seen)
        message = request(f"org/{model}")
        for key, value in parameters.items():
            kind = "bool_param" if isinstance(value, bool) else "int64_param"
            setattr(message.parameters[key], kind, value)
        await self.client.send(self.id, framed(message.SerializeToString()))
        await soon(lambda: len(self.world.triton.seen) > seen)
        return pb.ModelInferRequest.FromString(self.world.triton.seen[-1])

    async def ask_often(self, model, times):
        seen = len(self.world.triton.seen) + times
        for _ in range(times):
            data = framed(request(f"org/{model}").SerializeToString())
            await self.client.send(self.id, data)
        await eventually(lambda: len(self.world.triton.seen) == seen)

    async def tell(self, *answers):
        """Have Triton answer; returns when the relay has seen it, or has left the stream."""
        self.world.relay.finals_are_marked = True  # by answers to other streams
        before, later = Counting.answers, self.world.triton.later
        for one in answers:
            later.put_nowait(one)
        await soon(
            lambda: (
                Counting.answers == before + len(answers)
                or (later.empty() and not self.world.leases())
            )
        )

    @property
    def got(self):
        return echoed(self.client.answers[self.id].data)

    def leases(self, model):
        residents = self.world.scheduler.residents()
        return sum(r.leases for r in residents if r.model_id == f"org/{model}")

    def places(self, model):
        residents = self.world.scheduler.residents()
        return sum(64 - r.gate._free for r in residents if r.model_id == f"org/{model}")

    async def end(self):
        self.client.h2.end_stream(self.id)
        self.client.flush()
        return await self.client.answer(self.id)


@pytest.fixture
async def stream():
    async with running_relay() as world, H2Client(world.port) as client:
        yield Stream(world, client)
        await world.at_rest()


def finished(stream):
    return [(e.model_id, e.error_code) for e in stream.world.finished]


# -- one request after the other -----------------------------------------------------------------


async def test_a_request_holds_its_model_until_its_last_answer(stream):
    for _ in range(2):
        await stream.ask(5)
        assert (stream.leases(5), stream.places(5)) == (1, 1)
        await stream.tell(answer(5, final=False), answer(5, final=False))
        assert (stream.leases(5), stream.places(5)) == (1, 1)
        await stream.tell(answer(5))
        assert (stream.leases(5), stream.places(5)) == (0, 0)
    assert finished(stream) == [("org/5", None)] * 2
    await stream.end()
    assert len(stream.world.finished) == 2


async def test_an_idle_stream_lets_its_model_leave_and_loads_it_again(stream):
    await stream.ask(5)
    await stream.tell(answer(5))
    await stream.world.scheduler.unload("org/5")
    assert (await stream.ask(5)).model_name == "org--5"
    leaving = asyncio.create_task(stream.world.scheduler.unload("org/5"))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    await stream.tell(answer(5))
    await asyncio.wait_for(leaving, 10)
    await stream.end()


async def test_only_decoupled_models_are_asked_for_an_end_and_only_by_who_has_not(stream):
    """The spelling of the version is what tells these requests' empty answers from others."""
    seen = await stream.ask(0)
    assert (seen.model_version, ASKS in seen.parameters) == ("1", False)
    seen = await stream.ask(5)
    assert (seen.model_version, seen.parameters[ASKS].bool_param) == ("01", True)
    seen = await stream.ask(5, **{ASKS: False})
    assert (seen.model_version, seen.parameters[ASKS].bool_param) == ("01", True)
    seen = await stream.ask(5, **{ASKS: True})
    assert (seen.model_version, seen.parameters[ASKS].bool_param) == ("1", True)
    seen = await stream.ask(5, **{ASKS: 1})  # Triton refuses that
    assert (seen.model_version, seen.parameters[ASKS].int64_param) == ("1", 1)
    await stream.tell(answer(0), *[answer(5)] * 4)
    await stream.end()


async def test_empty_last_answers_are_for_those_who_asked(stream):
    mine, asked = answer(5, empty=True, version="01"), answer(5, empty=True)
    await stream.ask(5)
    await stream.ask(5, **{ASKS: True})
    await stream.tell(mine, asked)
    assert stream.leases(5) == 0
    await stream.end()
    assert mine not in stream.got
    assert asked in stream.got


async def test_a_wish_that_comes_after_the_tensors_is_refused(stream):
    late = pb.ModelInferRequest()
    late.parameters[ASKS].bool_param = True
    message = request("org/5", 100_000).SerializeToString() + late.SerializeToString()
    half = len(message) // 2
    data = framed(message)
    for at in range(0, half, 16_000):
        await stream.client.send(stream.id, data[at : min(at + 16_000, half)])
    await eventually(lambda: stream.leases(5) == 1)
    for at in range(half, len(data), 16_000):
        await stream.client.send(stream.id, data[at : at + 16_000])
    found = await stream.client.answer(stream.id)
    assert b"after its tensors" in found.headers[b"grpc-message"]
    assert stream.world.triton.seen == []


# -- errors --------------------------------------------------------------------------------------


async def test_an_error_within_is_not_the_end(stream):
    await stream.ask(5)
    await stream.tell(answer(5, final=False, error="within"))
    assert stream.leases(5) == 1
    await stream.tell(answer(5, empty=True, version="01"))
    assert stream.leases(5) == 0
    assert finished(stream) == [("org/5", "INFERENCE_FAILED")]
    await stream.end()


async def test_requests_that_triton_refuses_are_over(stream):
    """Which ones they were need not be clear at once."""
    await stream.ask(0)
    await stream.tell(refusal())
    assert stream.leases(0) == 0
    await stream.ask(0)
    await stream.ask(5)
    await stream.tell(refusal())
    assert stream.leases(0) + stream.leases(5) == 2
    await stream.tell(answer(0))
    assert stream.leases(0) + stream.leases(5) == 0
    await stream.ask(0)
    await stream.ask(5)
    await stream.tell(refusal(), refusal(), refusal())
    assert stream.leases(0) + stream.leases(5) == 0
    await stream.ask(5)
    await stream.tell(refusal())
    assert stream.leases(5) == 0
    await stream.end()
    errors = [code for _, code in finished(stream)]
    assert errors.count("INFERENCE_FAILED") == 5
    assert errors.count(None) == 1


async def test_what_the_gateway_refuses_counts_and_holds_nothing(stream):
    bad = request("org/0")
    bad.inputs[0].shape[:] = [1, 2**62]
    await stream.client.send(stream.id, framed(bad.SerializeToString()))
    await eventually(lambda: stream.got)
    await stream.client.send(stream.id, framed(request("org/x").SerializeToString()))
    await eventually(lambda: len(stream.got) == 2)
    assert finished(stream) == [("org/0", "INVALID_INPUT")]
    assert (await stream.end()).status == 0


@pytest.mark.parametrize("how", ["cancelled", "connection lost", "Triton lost"])
async def test_a_stream_that_ends_lets_go(stream, how):
    await stream.ask(5)
    await stream.ask(0)
    await stream.tell(answer(0))
    if how == "cancelled":
        stream.client.h2.reset_stream(stream.id, 8)
        stream.client.flush()
    elif how == "connection lost":
        stream.client.writer.transport.abort()
    else:
        for connection in list(stream.world.relay.upstream._connections):
            connection.abort()
    await eventually(lambda: stream.leases(5) == 0)
    code = "SERVICE_UNAVAILABLE" if how == "Triton lost" else "CANCELLED"
    assert finished(stream) == [("org/0", None), ("org/5", code)]
    assert stream.world.suspects == (["org/5"] if how == "Triton lost" else [])


async def test_an_idle_stream_has_none_in_triton_and_outlives_it(stream):
    """Triton holds models that a stream has used until the stream ends."""
    await stream.ask(5)
    await stream.tell(answer(5))
    connections = stream.world.relay.upstream._connections
    await eventually(lambda: not any(c.streams for c in connections))
    for connection in list(connections):
        connection.abort()
    await stream.ask(0)
    await stream.tell(answer(0))
    await eventually(lambda: stream.got == [answer(5), answer(0)])
    assert (await stream.end()).status == 0


async def test_what_comes_after_the_last_answer_does_not_spoil_the_next(stream):
    """A server that says more than it should, and that in two halves."""
    await stream.ask(0)
    (upstream,) = stream.world.relay.upstream._connections[0].streams.values()
    whole = framed(answer(0))
    call = upstream.owner
    call.on_data(upstream, whole + whole[:7], end=False)
    call.on_data(upstream, whole[7:], end=False)
    await stream.ask(0)
    await stream.tell(answer(0))
    await eventually(lambda: stream.got == [answer(0)] * 3)
    assert (await stream.end()).status == 0


async def test_a_stream_whose_model_has_died_ends(stream):
    """Triton says nothing more on it, and its client may wait without a deadline."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    await stream.ask(5)
    await stream.tell(answer(5))
    (resident,) = stream.world.scheduler.residents()
    resident.process_id = process.pid
    await stream.ask(5)
    await stream.tell(answer(5, final=False))
    process.kill()
    await process.wait()
    found = await stream.client.answer(stream.id)
    assert found.status == grpc.StatusCode.UNAVAILABLE.value[0]
    assert b"died" in found.headers[b"grpc-message"]
    assert stream.world.suspects == ["org/5"]
    assert finished(stream) == [("org/5", None), ("org/5", "SERVICE_UNAVAILABLE")]
    assert not stream.world.relay.vigil._running


# -- where the end cannot be seen ----------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(answer(5, final=None), id="no mark"),
        pytest.param(refusal(), id="an error before any mark"),
        pytest.param(b"\xff", id="no protobuf"),
    ],
)
async def test_a_server_that_does_not_mark_its_answers_gets_the_model_for_the_stream(stream, odd):
    await stream.ask(5)
    stream.world.triton.later.put_nowait(odd)
    await eventually(lambda: odd in stream.got)
    await stream.ask_often(5, 70)  # more than there are places
    for _ in range(70):
        stream.world.triton.later.put_nowait(answer(5, final=None))
    await eventually(lambda: len(stream.got) == 71)
    assert (stream.leases(5), stream.places(5)) == (1, 0)
    assert len(stream.world.finished) == 71
    await stream.end()
    assert stream.leases(5) == 0


async def test_a_model_that_leaves_is_not_held_up_by_a_lease_that_was_kept(stream):
    await stream.ask(5)
    stream.world.triton.later.put_nowait(answer(5, final=None))
    await eventually(lambda: stream.got)
    leaving = asyncio.create_task(stream.world.scheduler.unload("org/5"))
    await asyncio.sleep(0)
    await stream.ask(5)  # waits for its next load
    assert leaving.done()
    await stream.end()


async def test_a_model_that_leaves_is_kept_where_its_end_is_unseen_until_it_is_asked_again(stream):
    await stream.ask(5)
    leaving = asyncio.create_task(stream.world.scheduler.unload("org/5"))
    await asyncio.sleep(0)
    stream.world.triton.later.put_nowait(answer(5, final=None))
    await eventually(lambda: stream.got)
    assert not leaving.done()  # more answers may come
    await stream.ask(5)
    assert leaving.done()
    leaving = asyncio.create_task(stream.world.scheduler.unload("org/5"))
    await asyncio.sleep(0)
    asking = asyncio.create_task(stream.ask(5))
    await eventually(lambda: stream.world.waiters() == 1)
    stream.world.triton.later.put_nowait(answer(5, final=None))
    await asyncio.wait_for(asking, 10)
    assert leaving.done()
    await stream.end()


async def test_a_model_that_should_answer_once_and_says_not_final_is_kept(stream):
    await stream.ask(0)
    await stream.ask(0)
    await stream.tell(answer(0, final=False), answer(0, final=False))
    assert (stream.leases(0), stream.places(0)) == (1, 0)
    await stream.tell(answer(0, final=False), answer(0))  # its manifest was wrong
    assert stream.leases(0) == 1
    await stream.end()


async def test_a_sequence_keeps_its_model_and_takes_no_place(stream):
    await stream.ask(5, sequence_id=3, sequence_start=True)
    assert (stream.leases(5), stream.places(5)) == (1, 0)
    await stream.tell(answer(5))
    await stream.ask(5, sequence_id=4, sequence_start=True)
    await stream.ask(5, sequence_id=4, sequence_end=True)
    await stream.ask(5)
    await stream.tell(answer(5), answer(5), answer(5))
    assert (stream.leases(5), stream.places(5)) == (1, 0)  # of sequence 3
    await stream.ask(5, sequence_id=0)  # none
    await stream.tell(answer(5))
    await stream.ask(5, sequence_id=3, sequence_end=True)
    assert stream.leases(5) == 1
    await stream.tell(answer(5))
    assert stream.leases(5) == 0
    await stream.ask(5, sequence_id=3, sequence_start=True)
    await stream.tell(answer(5))
    await stream.end()
    assert stream.leases(5) == 0


# -- places --------------------------------------------------------------------------------------


async def test_requests_of_a_stream_wait_for_a_place(stream):
    await stream.ask_often(5, 64)
    await stream.client.send(stream.id, framed(request("org/5").SerializeToString()))
    await eventually(lambda: stream.world.scheduler.view("org/5").waiting_requests == 1)
    assert len(stream.world.triton.seen) == 64
    await stream.tell(answer(5))
    await eventually(lambda: len(stream.world.triton.seen) == 65)
    await stream.tell(*[answer(5)] * 64)
    assert (stream.leases(5), stream.places(5)) == (0, 0)
    await stream.end()


# -- any history ---------------------------------------------------------------------------------

# (model, answers that are not the last, how it ends)
histories = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 5, 6]),
        st.integers(0, 3),
        st.sampled_from(["data", "empty", "error", "refused"]),
    ),
    min_size=1,
    max_size=6,
)


@few
@given(histories, st.randoms(use_true_random=False))
def test_no_busy_model_is_let_go_and_no_idle_one_is_kept(requests, order):
    """Triton answers in any order that keeps each request's own."""

    async def history():
        async with running_relay() as world, H2Client(world.port) as client:
            world.relay.finals_are_marked = True
            stream = Stream(world, client)
            running = []
            todo = list(requests)
            sent = []
            while todo or running:
                if todo and (not running or order.random() < 0.5):
                    model, count, end = todo.pop(0)
                    await stream.ask(model)
                    count = count if model >= 5 and end != "refused" else 0
                    running.append([model, count, end])
                    continue
                one = order.choice(running)
                model, count, end = one
                if count:
                    one[1] -= 1
                    sent.append(answer(model, final=False))
                else:
                    running.remove(one)
                    sent.append(last(model, end))
                await stream.tell(sent[-1])
                for number in {model for model, _, _ in requests}:
                    busy = sum(model == number for model, _, _ in running)
                    assert stream.leases(number) >= (busy > 0)
                    assert stream.leases(number) >= busy or "refused" in str(requests)
                if not running:
                    assert world.leases() == 0
            found = await stream.end()
            assert found.status == 0
            quiet = answer(5, empty=True, version="01"), answer(6, empty=True, version="01")
            assert stream.got == [a for a in sent if a not in quiet]
            assert sorted(e.model_id for e in world.finished) == sorted(
                f"org/{model}" for model, _, _ in requests
            )
            await world.at_rest()

    asyncio.run(history())


def last(model, end):
    if end == "refused":
        return refusal()
    if end == "error":
        return answer(model, error="bad", version="01")
    if end == "empty" and model >= 5:
        return answer(model, empty=True, version="01")
    return answer(model)


# What Triton may do with one of the requests that run; it refuses only what has no answer yet, and
# a model that answers once can only do so.
ACTS = st.sampled_from(["more", "error", "last", "last error", "refuse"])
ASKS_AND_ACTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0, 1, 5, 6]), st.sampled_from([0, 0, 1, 2]), st.booleans()),
        st.tuples(st.integers(0, 9), ACTS),
    ),
    max_size=30,
)


class Books:
    """The bookkeeping of one stream beside what is true."""

    def __init__(self, scheduler, *, marks):
        self.scheduler = scheduler
        bus = SimpleNamespace(publish=lambda event: None)
        services = SimpleNamespace(scheduler=scheduler, bus=bus)
        self.relay = SimpleNamespace(services=services, finals_are_marked=marks)
        self.requests = StreamRequests(self.relay)
        self.marks = marks
        self.running = []  # model, whether there was an answer
        self.sequences = set()

    async def ask(self, model, sequence, *, ends):
        servable = Store().servable(f"org/{model}")
        asked = Request(self.relay.services, servable)
        said = SimpleNamespace(sequence=b"%d" % sequence if sequence else b"", ends_sequence=ends)
        if self.requests.borrow(servable) is None:
            asked.lease = self.scheduler.lease(servable, deadline=1e9, place=not sequence)
            await asked.lease.__aenter__()
        self.requests.sent(asked, servable)
        self.requests.said(servable, said)
        self.running.append([model, False])
        if sequence:
            (self.sequences.discard if ends else self.sequences.add)((model, sequence))

    def act(self, number, act):
        request = self.running[number % len(self.running)]
        model, answered = request
        if act == "refuse" and answered:
            act = "last error"
        if model < 5:
            act = {"more": "last", "error": "last error"}.get(act, act)
        request[1] = True
        final = act not in ("more", "error")
        if final:
            self.running.remove(request)
        known = act != "refuse"
        self.requests.answered(
            Answer(
                (f"org--{model}", 1) if known else None,
                final=final if known and self.marks else None,
                failed="error" in act or not known,
            )
        )

    def check(self):
        """A server that marks nothing may make us keep more, and never less."""
        leases = {r.model_id: r.leases for r in self.scheduler.residents()}
        places = {r.model_id: 64 - r.gate._free for r in self.scheduler.residents()}
        needed = {model for model, _ in self.running} | {model for model, _ in self.sequences}
        for model in (0, 1, 5, 6):
            held = leases.get(f"org/{model}", 0)
            assert held or model not in needed
            assert places.get(f"org/{model}", 0) <= held
            if self.marks and not self.running and model not in needed:
                assert not held


@given(ASKS_AND_ACTS, st.booleans())
def test_the_books_hold_what_runs_and_nothing_else(steps, marks):
    async def history():
        scheduler = Scheduler(
            GatedEffects(), EventBus(), budget_mb=100, max_models=10, load_timeout=9
        )
        books = Books(scheduler, marks=marks)
        for step in steps:
            if len(step) == 3:
                await books.ask(step[0], step[1], ends=step[2])
            elif books.running:
                books.act(*step)
            books.check()
        books.requests.end(None)
        assert not any(r.leases for r in scheduler.residents())
        assert all(r.gate._free == 64 for r in scheduler.residents())
        await scheduler.close()

    asyncio.run(history())
