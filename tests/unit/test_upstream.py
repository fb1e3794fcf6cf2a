"""The connections to the private server, against a server that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.gateway.upstream import Upstream
from controlplane.gateway.upstream_connection import WHOLE, UpstreamLost, UpstreamTimeout
from tests.waiting import eventually

HEAD = b"POST /x HTTP/1.1\r\nhost: triton\r\ncontent-length: 4\r\n\r\n"
BODY = b"body"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with what `script` holds for it: bytes, `None` to hang, or `CLOSE`."""

    CLOSE = object()

    def __init__(self, *script):
        self.script = list(script)
        self.received = []
        self.connections = 0
        self.gone = 0
        self.tasks = set()

    async def serve(self, reader, writer):
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.received.append(head + await reader.readexactly(4))
                await self.answer(self.script.pop(0) if self.script else OK, writer, reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()

    async def answer(self, step, writer, reader):
        if step is self.CLOSE:
            raise ConnectionError
        if step is None:
            await reader.read()
            raise ConnectionError
        for part in step if isinstance(step, tuple) else (step,):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def pool_before(server):
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    pool = Upstream(lambda: f"http://127.0.0.1:{port}")
    try:
        yield pool
    finally:
        pool.close()
        listening.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the next turn


def in_a_second(seconds=30.0):
    return asyncio.get_running_loop().time() + seconds


def ask(pool, *, seconds=30.0, again=True, **options):
    return pool.request(HEAD, BODY, deadline=in_a_second(seconds), again=again, **options)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_is_used_again_on_either_event_loop(new_loop):
    """uvloop's transports are no subclasses of asyncio's."""

    async def main():
        server = Server()
        async with pool_before(server) as pool:
            for _ in range(3):
                answer = await ask(pool)
                assert (answer.status, await answer.read()) == (200, b"ok")
        assert server.connections == 1
        assert server.received == [HEAD + BODY] * 3

    loop = new_loop()
    loop.run_until_complete(main())
    loop.close()


async def test_a_kept_connection_that_was_closed_is_replaced():
    server = Server(OK, Server.CLOSE, OK)
    async with pool_before(server) as pool:
        await ask(pool)
        assert await (await ask(pool)).read() == b"ok"
        assert server.connections == 2


async def test_what_must_not_run_twice_is_sent_once():
    server = Server(OK, Server.CLOSE, OK)
    async with pool_before(server) as pool:
        await ask(pool)
        with pytest.raises(UpstreamLost) as caught:
            await ask(pool, again=False)
        assert not caught.value.begun
        assert len(server.received) == 2


async def test_a_new_connection_that_is_lost_is_not_tried_again():
    server = Server(Server.CLOSE)
    async with pool_before(server) as pool:
        with pytest.raises(UpstreamLost):
            await ask(pool)
        assert len(server.received) == 1


async def test_nobody_listens():
    pool = Upstream(lambda: "http://127.0.0.1:1")
    with pytest.raises(UpstreamLost, match="cannot be reached"):
        await ask(pool)


async def test_an_answer_cut_short_says_that_it_had_begun():
    server = Server()

    async def closing(step, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
        await writer.drain()
        raise ConnectionError

    server.answer = closing
    async with pool_before(server) as pool:
        with pytest.raises(UpstreamLost) as caught:
            await ask(pool)
        assert caught.value.begun


async def test_the_deadline_and_cancellation_close_the_connection():
    server = Server(None, None)
    async with pool_before(server) as pool:
        with pytest.raises(UpstreamTimeout):
            await ask(pool, seconds=0.05)
        task = asyncio.create_task(ask(pool))
        await eventually(lambda: len(server.received) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: server.gone == 2)


@pytest.mark.parametrize(
    "more",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"garbage",
    ],
)
async def test_bytes_that_nobody_asked_for_never_answer_the_next_request(more):
    server = Server(OK + more, OK)
    async with pool_before(server) as pool:
        assert await (await ask(pool)).read() == b"ok"
        assert await (await ask(pool)).read() == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"Content-Length: +2\r\n\r\nok",
    ],
)
async def test_answers_of_two_lengths_are_refused(framing):
    async with pool_before(Server(b"HTTP/1.1 200 OK\r\n" + framing)) as pool:
        with pytest.raises(UpstreamLost):
            await ask(pool)


async def test_connection_close_and_interim_answers():
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    server = Server(interim + closing)
    async with pool_before(server) as pool:
        assert (await ask(pool)).status == 200
        await ask(pool)
        assert server.connections == 2


async def test_a_large_answer_is_taken_with_back_pressure():
    size = 40 * WHOLE
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    written = 0

    async def large(step, writer, reader):
        nonlocal written
        writer.write(head)
        for _ in range(40):
            writer.write(bytes(WHOLE))
            await writer.drain()
            written += WHOLE

    server = Server()
    server.answer = large
    async with pool_before(server) as pool:
        answer = await ask(pool)
        assert not answer.complete
        for _ in range(200):
            await asyncio.sleep(0)
        assert written < size / 2
        total = 0
        async for chunk in answer.chunks():
            total += len(chunk)
        assert total == size
        assert answer.complete


async def test_an_answer_that_is_dropped_ends_the_request():
    server = Server((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", b"", b""))
    async with pool_before(server) as pool:
        answer = await ask(pool, enough=0)
        answer.drop()
        await eventually(lambda: server.gone)


async def test_a_body_in_parts_and_an_answer_that_comes_before_its_end():
    server = Server(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
    async with pool_before(server) as pool:
        connection = await pool.connect()
        answer = connection.begin(HEAD, b"bo", in_a_second(), unsent=2 * WHOLE)
        assert await connection.more(b"dy", answer)
        await connection.wait(answer.deadline, enough=WHOLE)
        assert not await connection.more(b"rest", answer)
        assert (answer.status, await answer.read()) == (413, b"no")
        await ask(pool)
        assert server.connections == 2  # half a request was sent on the first


# -- listening instead of waiting --------------------------------------------------------------


async def listened(pool, seconds=30.0):
    """A request on a kept connection; its answer, and what the listener is told."""
    connection, told = pool.take(), asyncio.get_running_loop().create_future()
    answer = connection.begin(HEAD, BODY, in_a_second(seconds))
    connection.listen(told.set_result, answer.deadline)
    return connection, answer, told


async def test_a_listener_is_told_once_and_the_connection_is_kept():
    server = Server(OK, OK, (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"o", b"k"))
    async with pool_before(server) as pool:
        await ask(pool)
        for _ in range(2):
            assert pool.kept == 1
            _, answer, told = await listened(pool)
            assert pool.kept == 0
            assert await told is None
            assert (answer.complete, answer.whole) == (True, b"ok")
        assert (pool.kept, server.connections) == (1, 1)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_listener_is_told_of_a_loss(begun):
    server = Server(OK, Server.CLOSE)
    async with pool_before(server) as pool:
        await ask(pool)
        if begun:

            async def closing(step, writer, reader):
                writer.write(OK[:-1])
                await writer.drain()
                raise ConnectionError

            server.answer = closing
        _, answer, told = await listened(pool)
        error = await told
        assert isinstance(error, UpstreamLost)
        assert (error.begun, answer.complete, pool.kept) == (begun, False, 0)


async def test_a_listener_is_told_when_the_deadline_comes_or_the_pool_closes():
    server = Server(OK, None, OK, None)
    async with pool_before(server) as pool:
        await ask(pool)
        _, _, told = await listened(pool, seconds=0.02)
        assert isinstance(await told, UpstreamTimeout)
        await ask(pool)
        _, _, told = await listened(pool)
        pool.close()
        assert isinstance(await told, UpstreamLost)


async def test_a_listener_that_gave_up_is_told_nothing():
    server = Server(OK, None)
    async with pool_before(server) as pool:
        await ask(pool)
        connection, _, told = await listened(pool)
        connection.give_up()
        await eventually(lambda: server.gone)
        assert not told.done()


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=20),
)
def test_answers_cut_anywhere_come_out_whole(bodies, chunked, cuts):
    def framed(body):
        if not chunked:
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded + b"0\r\n\r\n"

    async def main():
        async def cut_up(step, writer, reader):
            rest, at = framed(step), 0
            while rest:
                size = cuts[at % len(cuts)]
                writer.write(rest[:size])
                await writer.drain()
                await asyncio.sleep(0)
                rest, at = rest[size:], at + 1

        server = Server(*bodies)
        server.answer = cut_up
        async with pool_before(server) as pool:
            for body in bodies:
                assert await (await ask(pool)).read() == body
            assert server.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(8))
async def test_who_leaves_while_the_connection_is_made_is_let_go(turns, monkeypatch):
    """Also in the very moment at which it is there."""
    server, loop = Server(), asyncio.get_running_loop()
    async with pool_before(server) as pool:
        made, make = asyncio.Event(), loop.create_connection

        async def create_connection(*given):
            found = await make(*given)
            await made.wait()
            return found

        monkeypatch.setattr(loop, "create_connection", create_connection)
        asking = asyncio.create_task(ask(pool))
        await eventually(lambda: server.connections == 1)
        made.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        await eventually(lambda: server.gone == 1)


async def test_a_server_that_takes_no_connection_is_not_waited_for_long(monkeypatch):
    async with pool_before(Server()) as pool:

        async def create_connection(*_):
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
        monkeypatch.setattr("controlplane.gateway.upstream.CONNECT_TIMEOUT", 0.01)
        with pytest.raises(UpstreamLost, match=r"cannot be reached within 0\.01 s"):
            await pool.connect()
