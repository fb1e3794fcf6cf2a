"""The relay's HTTP/2 between strict peers: random splits, interleaving, holds, cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import zlib

import grpc
import h2.errors
import h2.settings
import hpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from controlplane.gateway.grpc_relay import frames, server
from controlplane.gateway.grpc_relay.headers import Block
from controlplane.gateway.grpc_relay.heads import request_head
from tests.relay import H2Client, framed, running_relay
from tests.waiting import eventually

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def request(model="org/0", size=10, **parameters):
    message = pb.ModelInferRequest(model_name=model, id="7")
    message.inputs.add(name="x", datatype="UINT8", shape=[1, size])
    for key, value in parameters.items():
        message.parameters[key].int64_param = value
    message.raw_input_contents.append(random.Random(size).randbytes(size))
    return message


def as_triton_sees(message):
    seen = pb.ModelInferRequest()
    seen.CopyFrom(message)
    seen.model_name, seen.model_version = message.model_name.replace("/", "--"), "1"
    return seen


async def ask(client, message, method="ModelInfer", **headers):
    stream_id = client.open(method, **headers)
    data = framed(message.SerializeToString())
    if len(data) < frames.FRAME_SIZE:  # whole, as gRPC's libraries send small messages
        await client.send(stream_id, data, end=True)
    else:
        await client.send_all(stream_id, data)
    return await client.answer(stream_id)


# Requests like those before them are passed on in one step, all others in several.
both_ways = pytest.mark.parametrize("known", [False, True])


def assert_echoed(answer, message):
    assert (answer.status, answer.headers.get(b"grpc-message") or b"") == (0, b"")
    assert pb.ModelInferRequest.FromString(answer.message) == as_triton_sees(message)
    assert len(answer.headers[b"x-trace-id"]) == 36


# -- calls ---------------------------------------------------------------------------------------


@both_ways
async def test_names_are_changed_and_nothing_else(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:
        for size in (0, 10, 70_000, 300_000):
            message = request(size=size)
            assert_echoed(await ask(client, message), message)
        await world.at_rest()
        assert [(e.model_id, e.status) for e in world.finished] == [("org/0", "success")] * 4


@pytest.mark.parametrize("name", ["gzip", "deflate"])
async def test_compressed_messages_are_read(name):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[name]
    async with running_relay(max_request_bytes=1_000_000) as world, H2Client(world.port) as client:
        for size in (10, 200_000):
            message = request(size=size)
            stream_id = client.open(grpc_encoding=name)
            data = framed(compress(message.SerializeToString()), compressed=True)
            await client.send_all(stream_id, data)
            assert_echoed(await client.answer(stream_id), message)
        stream_id = client.open(grpc_encoding=name)
        await client.send_all(stream_id, framed(compress(bytes(2_000_000)), compressed=True))
        assert (await client.answer(stream_id)).status != 0
        stream_id = client.open(grpc_encoding=name)
        await client.send_all(stream_id, framed(b"nonsense", compressed=True))
        assert (await client.answer(stream_id)).status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        await world.at_rest()


async def test_an_unknown_compression_is_refused():
    async with running_relay() as world, H2Client(world.port) as client:
        stream_id = client.open(grpc_encoding="snappy")
        await client.send_all(stream_id, framed(b"x", compressed=True))
        answer = await client.answer(stream_id)
        assert b"snappy" in answer.headers[b"grpc-message"]


async def test_requests_like_those_before_them_are_passed_on_in_one_step():
    async with running_relay() as world, H2Client(world.port) as client:
        await ask(client, request("org/1"))  # there is a connection to Triton
        found = []
        known = world.relay.known_heads
        find = known.find
        known.find = lambda *given: found.append(find(*given)) or found[-1]
        for size in (10, 10, 10, 11):
            message = request(size=size)
            message.ClearField("id")
            assert_echoed(await ask(client, message), message)
        assert found == [None, ("org/0", ""), ("org/0", ""), None]  # another shape is another head
        await world.at_rest()


class Recorder:
    """A transport that tells what is written to it, and what there was of calls by then."""

    def __init__(self, connection):
        self.connection, self.transport = connection, connection._transport
        self.writes = []
        connection._transport = self

    def write(self, data):
        self.writes.append((data.count(b"org--0"), len(self.connection.streams)))
        self.transport.write(data)

    def __getattr__(self, name):
        return getattr(self.transport, name)


async def test_a_call_that_is_alone_leaves_before_its_books_are_kept_and_several_leave_together():
    async with running_relay(known=True) as world, H2Client(world.port) as client:
        await ask(client, request())  # it is loaded
        recorder = Recorder(world.relay.upstream._connections[0])
        assert_echoed(await ask(client, request()), request())
        assert recorder.writes[0] == (1, 0)  # one call, and no stream yet
        recorder.writes.clear()
        data = framed(request().SerializeToString())
        streams = [client.open() for _ in range(3)]
        for stream_id in streams:
            client.h2.send_data(stream_id, data, end_stream=True)
        client.flush()
        for stream_id in streams:
            assert (await client.answer(stream_id)).status == 0
        assert [calls for calls, _ in recorder.writes if calls] == [3]
        await world.at_rest()


async def test_a_call_that_the_windows_stop_goes_step_by_step():
    async with running_relay(known=True) as world, H2Client(world.port) as client:
        await ask(client, request())
        connection = world.relay.upstream._connections[0]
        connection.send_window, had = 0, connection.send_window
        asking = asyncio.create_task(ask(client, request()))
        await eventually(lambda: connection.blocked)
        assert world.relay.known_heads.found == 1
        connection.send_window = had
        connection.pump()
        assert_echoed(await asking, request())
        await world.at_rest()


@both_ways
async def test_errors_are_trailers_with_their_code(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:
        answer = await ask(client, request("org/unkn%öwn"))
        assert answer.status == grpc.StatusCode.NOT_FOUND.value[0]
        assert answer.headers[b":status"] == b"200"
        assert answer.headers[b"x-error-code"] == b"MODEL_NOT_FOUND"
        assert b"org/unkn%25%C3%B6wn" in answer.headers[b"grpc-message"]
        answer = await ask(client, request(), method="NoSuchMethod")
        assert answer.status == grpc.StatusCode.UNIMPLEMENTED.value[0]
        answer = await ask(client, request(), content_type="text/plain")
        assert answer.headers[b":status"] == b"415"
        await world.at_rest()


@both_ways
async def test_a_message_that_is_cut_off_or_followed_by_another_is_refused(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:
        whole = framed(request().SerializeToString())
        for data in (b"", whole[:3], whole[:20], whole[:-1], whole + whole):
            stream_id = client.open()
            await client.send(stream_id, data, end=True)
            answer = await client.answer(stream_id)
            assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        await world.at_rest()
        assert world.triton.seen == []


async def test_what_is_found_wrong_late_keeps_a_large_message_from_being_run():
    message = request(size=300_000).SerializeToString()
    tails = [
        pb.ModelInferRequest(model_name="org/1"),
        pb.ModelInferRequest(inputs=[{"name": "y", "shape": [1, 2**62]}]),
    ]
    async with running_relay() as world, H2Client(world.port) as client:
        for tail in tails:
            stream_id = client.open()
            await client.send_all(stream_id, framed(message + tail.SerializeToString()))
            answer = await client.answer(stream_id)
            assert answer.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        await world.at_rest()
        assert world.triton.seen == []


async def test_a_message_that_names_its_model_last():
    parts = request(size=100_000)
    name = pb.ModelInferRequest(model_name=parts.model_name).SerializeToString()
    parts.ClearField("model_name")
    async with running_relay() as world, H2Client(world.port) as client:
        stream_id = client.open()
        await client.send_all(stream_id, framed(parts.SerializeToString() + name))
        parts.model_name = "org/0"
        assert_echoed(await client.answer(stream_id), parts)
        # Beyond 4 MB that is too much to hold.
        stream_id = client.open()
        huge = request(size=5_000_000)
        huge.ClearField("model_name")
        sending = asyncio.create_task(
            client.send_all(stream_id, framed(huge.SerializeToString() + name))
        )
        answer = await client.answer(stream_id)
        assert b"before its tensors" in answer.headers[b"grpc-message"]
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await world.at_rest()


@both_ways
async def test_deadlines_of_header_and_parameter(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:
        await ask(client, request())

        async def linger(number, context):
            await asyncio.sleep(30)

        world.triton.fate = linger
        late = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert (await ask(client, request(), grpc_timeout="200m")).status == late
        assert (await ask(client, request(timeout=200_000))).status == late
        await world.at_rest()
        await eventually(lambda: world.triton.cancelled == 2)
        assert [e.error_code for e in world.finished[1:]] == ["INFERENCE_TIMEOUT"] * 2


@both_ways
async def test_a_cancelled_call_is_cancelled_in_triton_and_a_lost_connection_cancels_all(known):
    async with running_relay(known=known) as world:

        async def linger(number, context):
            await asyncio.sleep(30)

        world.triton.fate = linger
        async with H2Client(world.port) as client:
            ids = [client.open() for _ in range(3)]
            for stream_id in ids:
                data = framed(request().SerializeToString())
                await client.send(stream_id, data, end=True)
            await eventually(lambda: world.triton.running == 3)
            assert world.leases() == 3
            client.h2.reset_stream(ids[0], h2.errors.ErrorCodes.CANCEL)
            client.flush()
            await eventually(lambda: world.triton.cancelled == 1)
            assert world.leases() == 2
        await eventually(lambda: world.triton.cancelled == 3)
        await world.at_rest()
        assert [e.error_code for e in world.finished] == ["CANCELLED"] * 3


async def test_what_a_client_brings_of_triton_keys_is_not_passed_on():
    async with running_relay() as world, H2Client(world.port) as client:
        seen = []

        async def look(number, context):
            seen.extend(context.invocation_metadata())

        world.triton.fate = look
        await ask(client, request(), triton_grpc_protocol_key="stolen", my_own="kept")
        keys = dict(seen)
        assert keys["my-own"] == "kept"
        assert "triton-grpc-protocol-key" not in keys


def test_answers_of_streams_are_not_to_be_compressed():
    for method, compressed in (("ModelInfer", True), ("ModelStreamInfer", False)):
        path = f"/inference.GRPCInferenceService/{method}".encode()
        block = Block(((b":path", path), (b"grpc-accept-encoding", b"identity, gzip")))
        assert (b"grpc-accept-encoding" in request_head(block).forwarded) == compressed


async def test_metadata_that_could_harm_the_shared_connection_is_refused():
    async with running_relay() as world, H2Client(world.port) as bystander:
        for fields in ([("x-bad", "line\r\nbreak")], [("Upper", "x")], [("x-big", "y" * 20_000)]):
            async with Raw(world.port) as raw:
                block = h2_block("ModelInfer", fields)
                raw.writer.write(HELLO + frames.header_frames(1, block, end=False, limit=16_000))
                received = b""
                while b"INVALID_INPUT" not in received:
                    chunk = await asyncio.wait_for(raw.reader.read(65_536), 10)
                    assert chunk, received
                    received += chunk
        assert_echoed(await ask(bystander, request()), request())
        await world.at_rest()


async def test_refused_requests_of_a_stream_do_not_pile_up_for_who_does_not_read():
    async with running_relay() as world, H2Client(world.port) as lazy:
        lazy.acknowledge = False
        stream_id = lazy.open("ModelStreamInfer")
        bad = framed(request("org/unknown").SerializeToString())
        with contextlib.suppress(AssertionError):
            for _ in range(200):  # until the window is closed
                await lazy.send(stream_id, bad * (16_000 // len(bad)), patience=1)
        (stream,) = next(iter(world.relay._door.connections)).streams.values()
        assert stream.queued <= 1024 * 1024


# -- once more -----------------------------------------------------------------------------------


NOT_HEALTHY = "Stub process 'x' is not healthy."


@both_ways
async def test_a_request_whose_process_died_is_sent_once_more(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:

        async def die_once(number, context):
            if number == 1:
                for resident in world.scheduler.residents():
                    world.scheduler.declare_unhealthy(resident, "it died")
                await context.abort(grpc.StatusCode.INTERNAL, NOT_HEALTHY)

        world.triton.fate = die_once
        for size in (10, 200_000):
            world.triton.seen.clear()
            message = request(size=size)
            assert_echoed(await ask(client, message), message)
            assert len(world.triton.seen) == 2
        assert world.suspects == ["org/0"] * 2
        await world.at_rest()


@both_ways
@pytest.mark.parametrize("why", ["sequence", "large", "dies again"])
async def test_what_is_not_sent_once_more(known, why):
    async with running_relay(known=known) as world, H2Client(world.port) as client:

        async def die(number, context):
            for resident in world.scheduler.residents():
                world.scheduler.declare_unhealthy(resident, "it died")
            await context.abort(grpc.StatusCode.INTERNAL, NOT_HEALTHY)

        world.triton.fate = die
        message = request(size=5_000_000 if why == "large" else 10)
        if why == "sequence":
            message.parameters["sequence_id"].int64_param = 3
        answer = await ask(client, message)
        assert answer.status == grpc.StatusCode.INTERNAL.value[0]
        assert len(world.triton.seen) == (2 if why == "dies again" else 1)
        await world.at_rest()


@both_ways
async def test_a_server_that_comes_back_gets_the_requests_it_had_not_answered(known):
    async with running_relay(known=known) as world, H2Client(world.port) as client:
        stuck = asyncio.Event()

        async def linger(number, context):
            if number <= 3:
                stuck.set()
                await asyncio.sleep(30)

        world.triton.fate = linger
        ids = [client.open() for _ in range(3)]
        for stream_id in ids:
            await client.send(stream_id, framed(request().SerializeToString()), end=True)
        await eventually(lambda: len(world.triton.seen) == 3)
        world.relay.services.server.state = "lost"
        world.scheduler.server_lost()
        for connection in list(world.relay.upstream._connections):
            connection.abort()  # as a process that is killed closes them
        await world.triton.stop()
        late = client.open()  # comes while there is no server
        await client.send(late, framed(request().SerializeToString()), end=True)
        await asyncio.sleep(0.1)
        await world.triton.start()  # on another port
        world.relay.services.server.endpoints.grpc_url = f"127.0.0.1:{world.triton.port}"
        world.relay.services.server.state = "ready"
        world.scheduler.server_restored()
        for stream_id in [*ids, late]:
            assert_echoed(await client.answer(stream_id), request())
        await world.at_rest()


# -- random histories ----------------------------------------------------------------------------


@st.composite
def plans(draw):
    """For each stream: model, size of its tensor, sizes of its DATA frames, padding, fate."""
    one = st.tuples(
        st.integers(0, 2),
        st.sampled_from([0, 1, 100, 5_000, 40_000, 150_000]),
        st.lists(st.integers(1, 16_000), min_size=1, max_size=4),
        st.sampled_from([0, 0, 1, 200]),
        st.sampled_from(["whole", "whole", "whole", "cancelled"]),
    )
    return draw(st.lists(one, min_size=1, max_size=8)), draw(st.integers(0, 2**32))


async def carry_out(world, client, number, plan, order):
    model, size, cuts, padding, fate = plan
    message = request(f"org/{model}", size)
    data = framed(message.SerializeToString())
    stream_id = client.open()
    index = 0
    while data:
        await asyncio.sleep(0) if order.random() < 0.7 else await asyncio.sleep(0.002)
        if fate == "cancelled" and order.random() < 0.3:
            break
        cut = max(cuts[index % len(cuts)], size // 100)  # a byte at a time would take minutes
        index += 1
        end = fate != "cancelled" and len(data) <= cut
        await client.send(stream_id, data[:cut], end=end, padding=padding)
        data = data[cut:]
    if fate == "cancelled":
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            client.h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            client.flush()
        return
    assert_echoed(await client.answer(stream_id), message)


@few
@given(plans(), st.booleans(), st.booleans(), st.sampled_from([1, 700, 65_535, 2**20]))
def test_interleaved_held_and_cancelled_streams_in_any_pieces(planned, held, known, window):
    streams, seed = planned
    order = random.Random(seed)

    async def history():
        async with running_relay(known=known) as world, H2Client(world.port) as client:
            client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
            client.flush()
            if held:
                world.effects.gate.clear()
            calls = [
                asyncio.create_task(carry_out(world, client, number, plan, order))
                for number, plan in enumerate(streams)
            ]
            await asyncio.sleep(0.02)
            world.effects.gate.set()
            client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
            client.flush()
            await asyncio.gather(*calls)
            assert client.goaway is None
            await world.at_rest()

    asyncio.run(history())


async def test_a_client_that_does_not_read_holds_up_nobody_and_little():
    async with (
        running_relay() as world,
        H2Client(world.port) as lazy,
        H2Client(world.port) as other,
    ):
        lazy.acknowledge = False
        slow = lazy.open()
        sending = asyncio.create_task(
            lazy.send_all(slow, framed(request(size=3_000_000).SerializeToString()))
        )
        await sending
        await eventually(lambda: len(lazy.answers[slow].data) > 60_000)
        assert_echoed(await ask(other, request(size=500_000)), request(size=500_000))
        held = sum(s.queued for c in world.relay._door.connections for s in c.streams.values())
        assert held <= 256 * 1024
        lazy.h2.increment_flow_control_window(2**24)
        lazy.h2.increment_flow_control_window(2**24, slow)
        lazy.flush()
        assert_echoed(await lazy.answer(slow), request(size=3_000_000))
        await world.at_rest()


async def test_held_streams_take_little_and_let_others_pass():
    async with running_relay() as world, H2Client(world.port) as client:
        assert_echoed(await ask(client, request("org/1")), request("org/1"))
        world.effects.gate.clear()
        message = request("org/0", 1_000_000)
        held = [client.open() for _ in range(20)]
        sending = [
            asyncio.create_task(client.send_all(s, framed(message.SerializeToString())))
            for s in held
        ]
        await eventually(lambda: world.waiters() == 20)
        for _ in range(5):
            assert_echoed(await ask(client, request("org/1", 100_000)), request("org/1", 100_000))
        assert not any(task.done() for task in sending)  # no more than their windows was let in
        world.effects.gate.set()
        await asyncio.gather(*sending)
        for stream_id in held:
            assert_echoed(await client.answer(stream_id), message)
        await world.at_rest()


# -- violations ----------------------------------------------------------------------------------


class Raw:
    """A client that sends whatever bytes it likes."""

    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def end(self):
        """All that came back until the connection was closed: the code of the GOAWAY, or None."""
        received = b""
        with contextlib.suppress(OSError):
            received = await asyncio.wait_for(self.reader.read(-1), 10)
        code = None
        while len(received) >= 9:
            length = int.from_bytes(received[:3], "big")
            if received[3] == frames.GOAWAY:
                code = int.from_bytes(received[13:17], "big")
            received = received[9 + length :]
        return code


def h2_block(method, more=()):
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{method}",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return hpack.Encoder().encode([*fields.items(), *more])


BLOCK = h2_block("ModelInfer")
HELLO = frames.PREFACE + frames.settings({})
HEADERS = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, BLOCK)
DATA, PING, SETTINGS = frames.DATA, frames.PING, frames.SETTINGS


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(DATA, 0, 5, b"x"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(DATA, 0, 2, b"x"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 4, 2, b"\x83"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 4, 0, b"\x83"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 4, 1, b"\x40"), frames.COMPRESSION_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 0x24, 1, b"\0"), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 0x0C, 1, b"\x09\x83"), frames.PROTOCOL_ERROR),
        (HELLO + HEADERS + HEADERS, frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 0, 1, b"\x83") + frames.frame(PING, 0, 0, bytes(8)),
         frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.CONTINUATION, 4, 1, b"\x83"), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.HEADERS, 0, 1, b"\x83")
         + 65 * frames.frame(frames.CONTINUATION, 0, 1, b""), frames.ENHANCE_YOUR_CALM),
        (HELLO + frames.frame(frames.HEADERS, 0, 1, b"")
         + 5 * frames.frame(frames.CONTINUATION, 0, 1, bytes(16_000)), frames.ENHANCE_YOUR_CALM),
        (HELLO + frames.frame(SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(SETTINGS, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(SETTINGS, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
        (HELLO + frames.settings({frames.MAX_FRAME_SIZE: 100}), frames.PROTOCOL_ERROR),
        (HELLO + frames.settings({frames.ENABLE_PUSH: 2}), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.GOAWAY, 0, 0, b"x"), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.RST_STREAM, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
        (HELLO + HEADERS + frames.frame(frames.RST_STREAM, 0, 1, b"x"), frames.FRAME_SIZE_ERROR),
        (HELLO + frames.frame(frames.PUSH_PROMISE, 0, 1, b""), frames.PROTOCOL_ERROR),
        (HELLO + frames.frame(frames.PRIORITY, 0, 1, b""), frames.PROTOCOL_ERROR),
        (HELLO + frames.window_update(0, 0), frames.PROTOCOL_ERROR),
        (HELLO + frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
        (HELLO + frames.window_update(1, 1), frames.PROTOCOL_ERROR),
        (HELLO + b"\x00\x40\x01" + bytes(6), frames.FRAME_SIZE_ERROR),
        (HELLO + 11_000 * frames.frame(PING, 0, 0, bytes(8)), frames.ENHANCE_YOUR_CALM),
        (HELLO + 11_000 * frames.settings({}), frames.ENHANCE_YOUR_CALM),
        (HELLO + 11_000 * frames.frame(77, 0, 0), frames.ENHANCE_YOUR_CALM),
        (HELLO + b"".join(
            frames.frame(frames.HEADERS, frames.END_HEADERS, n, b"\x83\x86\x84")
            + frames.rst_stream(n, frames.CANCEL) for n in range(1, 25_000, 2)),
         frames.ENHANCE_YOUR_CALM),
    ],
)  # fmt: skip
async def test_violations_end_the_connection_and_nothing_else(sent, code):
    async with running_relay() as world, H2Client(world.port) as bystander:
        async with Raw(world.port) as raw:
            raw.writer.write(sent)
            assert await raw.end() == code
        assert_echoed(await ask(bystander, request()), request())
        await world.at_rest()


async def test_data_beyond_the_window_is_a_violation():
    async with running_relay() as world:
        world.effects.gate.clear()
        block = h2_block("ModelInfer")
        data = framed(request(size=100_000).SerializeToString())
        sent = HELLO + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        for at in range(0, len(data), 16_000):
            sent += frames.frame(DATA, 0, 1, data[at : at + 16_000])
        async with Raw(world.port) as raw:
            raw.writer.write(sent)
            assert await raw.end() == frames.FLOW_CONTROL_ERROR
        world.effects.gate.set()
        await world.at_rest()


@st.composite
def odd_bytes(draw):
    """Frames that are nearly right, and bytes that are not frames at all."""
    block = h2_block("ModelInfer")
    good = framed(request().SerializeToString())
    parts = [
        st.binary(max_size=40),
        st.builds(
            frames.frame,
            st.integers(0, 12),
            st.integers(0, 255),
            st.integers(0, 5),
            st.binary(max_size=20) | st.just(block) | st.just(good),
        ),
        st.just(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)),
        st.just(frames.frame(DATA, 1, 1, good)),
    ]
    return b"".join(draw(st.lists(st.one_of(parts), max_size=8)))


@few
@given(st.lists(odd_bytes(), min_size=1, max_size=6), st.integers(1, 50))
def test_no_bytes_break_more_than_their_own_connection(attacks, step):
    async def history():
        async with running_relay(request_timeout=20.0) as world:
            async with H2Client(world.port) as bystander:
                for attack in attacks:
                    async with Raw(world.port) as raw:
                        sent = HELLO + attack
                        for at in range(0, len(sent), step):
                            raw.writer.write(sent[at : at + step])
                            await asyncio.sleep(0)
                assert_echoed(await ask(bystander, request()), request())
            await world.at_rest()

    asyncio.run(history())


# -- the connection ------------------------------------------------------------------------------


async def test_too_many_streams_are_refused_one_by_one(monkeypatch):
    monkeypatch.setattr(server, "MAX_STREAMS", 3)
    async with running_relay() as world:
        world.effects.gate.clear()
        block = h2_block("ModelInfer")
        async with Raw(world.port) as raw:
            raw.writer.write(HELLO)
            for stream_id in (1, 3, 5, 7):
                raw.writer.write(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block))
            await eventually(
                lambda: any(c.last_peer_stream == 7 for c in world.relay._door.connections)
            )
            refused = frames.rst_stream(7, frames.REFUSED_STREAM)
            received = b""
            while refused not in received:
                received += await asyncio.wait_for(raw.reader.read(65_536), 10)


async def test_a_stop_lets_running_calls_end_and_takes_no_new_ones():
    async with (
        running_relay() as world,
        grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel,
    ):
        going_on = asyncio.Event()

        async def linger(number, context):
            await going_on.wait()

        world.triton.fate = linger
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        running = asyncio.ensure_future(call(request().SerializeToString()))
        await eventually(lambda: world.triton.running == 1)
        stopping = asyncio.create_task(world.relay._door.close(60))
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", world.port)
        assert not running.done()
        going_on.set()
        assert pb.ModelInferRequest.FromString(await running) == as_triton_sees(request())
        await asyncio.wait_for(stopping, 30)


async def test_a_stop_cuts_off_what_does_not_end():
    async with running_relay() as world, H2Client(world.port) as client:

        async def linger(number, context):
            await asyncio.sleep(30)

        world.triton.fate = linger
        running = client.open()
        await client.send(running, framed(request().SerializeToString()), end=True)
        await eventually(lambda: world.triton.running == 1)
        await asyncio.wait_for(world.relay._door.close(0.1), 20)
        await client.answer(running)
        assert client.closed
        await world.at_rest()


async def test_pings_are_answered():
    async with running_relay() as world, H2Client(world.port) as client:
        client.h2.ping(b"12345678")
        client.flush()
        assert_echoed(await ask(client, request()), request())


def test_under_uvloop():
    import uvloop

    async def history():
        async with running_relay() as world, H2Client(world.port) as client:
            for size in (10, 1_000_000):
                assert_echoed(await ask(client, request(size=size)), request(size=size))
            await world.at_rest()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(history())
    finally:
        loop.close()


# -- streams -------------------------------------------------------------------------------------


def echoed(data):
    """The messages of an echoed stream."""
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


@few
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 10, 30_000])), max_size=6),
    st.integers(1, 20_000),
    st.booleans(),
)
def test_a_stream_of_requests_keeps_its_order(requests, cut, held):
    """Model 3 is unknown: its error stands among the answers."""

    async def history():
        async with running_relay() as world, H2Client(world.port) as client:
            if held:
                world.effects.gate.clear()
            messages = [request(f"org/{n if n < 3 else 'unknown'}", size) for n, size in requests]
            data = b"".join(framed(message.SerializeToString()) for message in messages)
            stream_id = client.open("ModelStreamInfer")

            async def send():
                for at in range(0, len(data), cut):
                    await client.send(stream_id, data[at : at + min(cut, 16_000)])
                    if cut > 16_000:
                        await client.send(stream_id, data[at + 16_000 : at + cut])
                client.h2.end_stream(stream_id)
                client.flush()

            sending = asyncio.create_task(send())
            await asyncio.sleep(0.01)
            world.effects.gate.set()
            await sending
            answer = await client.answer(stream_id)
            assert answer.status == 0
            known = [m for m in messages if m.model_name != "org/unknown"]
            errors, served = [], []
            for message in echoed(answer.data):
                if b"is not registered" in message:
                    errors.append(message)
                else:
                    served.append(pb.ModelInferRequest.FromString(message))
            assert served == [as_triton_sees(message) for message in known]
            assert len(errors) == len(messages) - len(known)
            await world.at_rest()

    asyncio.run(history())
