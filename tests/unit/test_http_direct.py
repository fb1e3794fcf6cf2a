"""Infer requests below ASGI: the same bytes come out of the short way and of the ordinary one."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.gateway import http_direct
from controlplane.gateway.http_heads import read_head
from controlplane.gateway.upstream_connection import WHOLE
from tests.http_ways import (
    JSON_BODY,
    MODEL,
    PATH,
    Close,
    Hang,
    Result,
    Ways,
    answer,
    connection_of,
    echo,
    exchange,
    request,
    running_ways,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TRACE = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"
HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
async def ways() -> AsyncIterator[Ways]:
    async with running_ways() as running:
        await running.warm()
        yield running


async def both(ways: Ways, pieces: list[bytes | None]) -> Result:
    """What comes of the bytes, which is the same on both ways."""
    ordinary = await exchange(ways, ways.ordinary, pieces)
    if not ways.triton.connections:
        await ways.warm()
    direct = await exchange(ways, ways.direct, pieces)
    assert direct == ordinary
    assert ways.leases() == 0
    return direct


# -- requests ----------------------------------------------------------------------------------


def binary(text: bytes = b"abc", **more: Any) -> tuple[bytes, str]:
    """A body with a binary tensor, and the header that says where it begins."""
    tensor = len(text).to_bytes(4, "little") + text
    size = {"binary_data_size": len(tensor)}
    inputs = [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "parameters": size}]
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tensor, f"{HEADER_LENGTH}: {len(head)}"


async def test_a_whole_request_goes_the_short_way(ways: Ways) -> None:
    body, header = binary()
    for sent in (request(), request(body, header), request(path="/v2/models/org%2F0/infer")):
        result = await exchange(ways, ways.direct, [sent])
        assert result.status == 200
        assert result.counted == [(MODEL, "txt2embed", "v2_http", "success", None, 1)]
    assert ways.direct.asgi == []


async def test_its_body_may_come_later(ways: Ways) -> None:
    sent = request()
    head = len(sent) - len(JSON_BODY)
    for cut in (head, head + 1, len(sent) - 1):
        assert (await both(ways, [sent[:cut], sent[cut:]])).status == 200
    assert ways.direct.asgi == []


async def test_a_body_that_does_not_come_is_left_to_the_ordinary_way(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_direct, "GATHER_SECONDS", 0.01)
    sent = request()
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    writer.write(sent[:-5])
    await soon(lambda: ways.direct.asgi)
    writer.write(sent[-5:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize(
    "headers",
    [
        (f"X-Trace-Id: {TRACE}",),
        (f"X-Trace-Id: {TRACE}", "X-Trace-Id: 2b4e28ba-2fa1-4d2b-883f-0016d3cca427"),
        (f"traceparent: 00-{TRACE.replace('-', '')}-00f067aa0ba902b7-01",),
    ],
)
async def test_the_trace_id_comes_back(ways: Ways, headers: tuple[str, ...]) -> None:
    result = await both(ways, [request(JSON_BODY, *headers)])
    assert result.traces == [TRACE.encode()]
    assert ways.direct.asgi == []


async def test_each_answer_has_a_trace_id_of_its_own(ways: Ways) -> None:
    result = await exchange(ways, ways.direct, [request(), None, request()])
    assert len(set(result.traces)) == 2


async def test_what_may_not_be_forwarded_is_not(ways: Ways) -> None:
    result = await both(
        ways, [request(JSON_BODY, "X-Secret: s", "Connection: X-Hop", "X-Hop: 1", "X-End: 2")]
    )
    assert b"x-end: 2" in result.seen[0]
    assert not any(name in result.seen[0].lower() for name in (b"x-hop", b"x-secret", b"host: x"))


async def test_json_is_checked_for_every_body_though_heads_and_json_repeat(ways: Ways) -> None:
    """A body that kills Triton follows one with the same head, and the same JSON otherwise."""
    body, header = binary()
    bad = body.replace(b"[1, 1]", b"[9, 9]")
    short = body.replace(b'_size": 7', b'_size": 6')
    pieces = [request(body, header), request(bad, header), request(short, header)]
    for piece in (*pieces, *pieces):
        expected = 200 if piece is pieces[0] else 400
        result = await both(ways, [piece])
        assert (result.status, len(result.seen)) == (expected, expected == 200)


bodies = st.sampled_from(
    [
        JSON_BODY,
        JSON_BODY,
        b"{}",
        b"{",
        b"\xff",
        JSON_BODY.replace(b"[1, 1]", b"[1, 4611686018427387904]"),
        JSON_BODY.replace(b'"inputs"', b'"id": "7", "parameters": {"priority": 1}, "inputs"'),
        JSON_BODY.replace(b'"inputs"', b'"parameters": {"priority": "high"}, "inputs"'),
        gzip.compress(JSON_BODY, mtime=0),
    ]
)
headers = st.lists(
    st.sampled_from(
        [
            "Accept-Encoding: gzip, deflate",
            "Connection: close",
            "Connection: keep-alive",
            "Connection: X-Hop",
            "Content-Encoding: gzip",
            "Content-Encoding: identity",
            "Expect: 100-continue",
            "Transfer-Encoding: chunked",
            "Upgrade: h2c",
            f"{HEADER_LENGTH}: 0",
            f"{HEADER_LENGTH}: 10",
            f"X-Trace-Id: {TRACE}",
            "X-Hop: a\t b",
            "X-Long: " + "a" * 5000,
        ]
    ),
    max_size=3,
    unique=True,
)
paths = st.sampled_from(
    [
        *([PATH] * 12),
        *("/v2/models/org/0/infer", "/v2/models/org%2F0/infer/", PATH + "?a=1"),
        *("/v2/models/org--0/versions/1/infer", "/v2/models/org--99/infer", "/v2/models/infer"),
        *("/v2/models/org--0/generate", "/v2/models/org--0", "/v2/health/live", "/v2/models//"),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests of which most are what the short way is made for."""
    kind = draw(st.integers(0, 3))
    if kind < 2:
        body, header = binary(draw(st.binary(max_size=20)))
        return request(*((body, header) if kind else (JSON_BODY,)), path=draw(paths))
    given_headers = draw(headers)
    chunked = draw(st.booleans()) and not any("Transfer" in name for name in given_headers)
    method = draw(st.sampled_from(["POST", "POST", "POST", "HEAD", "GET", "PUT"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
    return request(
        draw(bodies),
        *given_headers,
        path=draw(paths),
        method=method,
        version=version,
        chunked=chunked,
    )


malformed = st.sampled_from(
    [
        b"",
        request(JSON_BODY, "Content-Length: 1"),
        request(JSON_BODY, "Content-Length : 1"),
        request().replace(b"\r\n", b"\n"),
        request().replace(b"Host", b"Ho st"),
        request(path=PATH + "\xff"),
        b"POST /v2/models/ HTTP/2.0\r\n\r\n",
        PATH.encode() + b"\r\n\r\n",
        b"\r\n\r\n" + request(),
        request() + b"\r\n",
    ]
)


@pytest.fixture(scope="module")
def module_ways() -> Iterator[tuple[asyncio.AbstractEventLoop, Ways]]:
    loop = asyncio.new_event_loop()
    world = running_ways()
    running = loop.run_until_complete(world.__aenter__())
    loop.run_until_complete(running.warm())
    yield loop, running
    loop.run_until_complete(world.__aexit__(None, None, None))
    loop.close()


@settings(max_examples=120)
@given(
    sent=st.lists(requests(), min_size=1, max_size=4),
    last=malformed,
    cuts=st.lists(st.sampled_from([1, 30, 75, 120, 150, 400]), min_size=1, max_size=9),
    manner=st.sampled_from(["one by one", "one by one", "cut", "without waiting", "as a stream"]),
)
def test_the_same_bytes_have_the_same_answer_wherever_they_are_cut(
    module_ways: tuple[asyncio.AbstractEventLoop, Ways],
    sent: list[bytes],
    last: bytes,
    cuts: list[int],
    manner: str,
) -> None:
    loop, ways = module_ways
    pieces: list[bytes | None] = []
    if manner == "as a stream":
        pieces += cut_up(b"".join(sent), cuts)
    for one in sent if manner != "as a stream" else ():
        pieces += cut_up(one, cuts) if manner == "cut" else [one]
        pieces += [] if manner == "without waiting" else [None]
    loop.run_until_complete(both(ways, [*pieces, None, last]))


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces = []
    while data:
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


# -- heads -------------------------------------------------------------------------------------


def test_a_plain_head() -> None:
    head = read_head(request(b"12345", "X-A: b").removesuffix(b"12345"))
    assert head is not None
    assert (head.method, head.path, head.length) == (b"POST", PATH.encode(), 5)
    assert head.headers[-1] == (b"x-a", b"b")


@pytest.mark.parametrize(
    "raw",
    [
        request(b""),
        request(JSON_BODY),
        request(b"", "Connection: close"),
        request(b"", version="1.0"),
        request(chunked=True),
        request(b"12345", "Expect: 100-continue").removesuffix(b"12345"),
        request(b"12345", "Content-Length: 5").removesuffix(b"12345"),
        request(b"12345", path=PATH + "?a").removesuffix(b"12345"),
        request(b"12345").removesuffix(b"12345").replace(b": 5", b": 5, 5"),
        request(b"12345").removesuffix(b"12345").replace(b": 5", b": +5"),
        request(b"12345").removesuffix(b"12345").replace(b": 5", b": " + b"9" * 30),
        request(b"12345").removesuffix(b"12345").replace(b"\r\nHost", b"\n\nHost"),
        b"\r\n\r\n",
        b"",
    ],
)
def test_heads_that_are_not_plain(raw: bytes) -> None:
    assert read_head(raw) is None


# -- what Triton does --------------------------------------------------------------------------

GZIP = "Content-Encoding: gzip"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
LOST = {"error": "Stub process 'org--0_0_0' is not healthy."}


@pytest.mark.parametrize(
    ("fate", "status", "code", "suspects"),
    [
        (answer(b'{"error":"no"}', status=400), 400, "INVALID_INPUT", 0),
        (answer(b'{"error":"no"}', status=500), 500, "INFERENCE_FAILED", 1),
        (answer(b'{"error":"decoupled"}', status=501), 400, "INVALID_INPUT", 0),
        (answer(b'{"a": NaN}'), 422, "NOT_REPRESENTABLE", 0),
        (answer(b"{}\0\0", f"{HEADER_LENGTH}: 2"), 200, None, 0),
        (answer(gzip.compress(b"{}NaN"), f"{HEADER_LENGTH}: 2", GZIP), 200, None, 0),
        (answer(gzip.compress(b"[NaN]"), f"{HEADER_LENGTH}: 5", GZIP), 422, "NOT_REPRESENTABLE", 0),
        (answer(b"", "Connection: close"), 200, None, 0),
        (answer(bytes(WHOLE - 1), f"{HEADER_LENGTH}: 0"), 200, None, 0),
        (answer(bytes(3 * WHOLE), f"{HEADER_LENGTH}: 0"), 200, None, 0),
        (answer(b'"' + b"a" * 2 * WHOLE + b'"'), 200, None, 0),
        (CHUNKED, 200, None, 0),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"{}"), 200, None, 0),
        (answer(b"{}") + b"unasked", 200, None, 0),
    ],
)  # fmt: skip
async def test_answers_of_triton(
    ways: Ways, fate: bytes, status: int, code: str | None, suspects: int
) -> None:
    ways.triton.fate = lambda _, __: fate
    result = await both(ways, [request()])
    assert result.status == status
    assert [counted[4] for counted in result.counted] == [code]
    assert len(result.suspects) == suspects
    assert len(result.seen) == 1  # also where the ordinary way finished it


def then_echo(*first: Any) -> Any:
    """Fates of the next requests; those after them are answered."""
    left = list(first)
    return lambda _, sent: left.pop(0) if left else echo(sent)


@pytest.mark.parametrize("fate", [Close, answer(json.dumps(LOST).encode(), status=500)])
async def test_a_process_that_died_is_not_seen_by_the_client(ways: Ways, fate: Any) -> None:
    for way in (ways.ordinary, ways.direct):
        ways.triton.fate = then_echo(fate)
        noticed = asyncio.get_running_loop().call_later(0.01, _lose_server, ways)
        result = await exchange(ways, way, [request(JSON_BODY, f"X-Trace-Id: {TRACE}")])
        noticed.cancel()
        assert (result.status, len(result.seen)) == (200, 2)
        assert result.counted == [(MODEL, "txt2embed", "v2_http", "success", None, 1)]
        assert result.traces == [TRACE.encode()]
        assert result.suspects == ([] if fate is Close else [MODEL])
        assert ways.leases() == 0
    assert len(ways.direct.asgi) == 1


def _lose_server(ways: Ways) -> None:
    """Have it look as if the death had been seen by those who watch."""
    ways.services.server.state = "lost"


@pytest.mark.parametrize("fate", [Close, answer(json.dumps(LOST).encode(), status=500)])
async def test_one_of_a_sequence_is_not_sent_again(ways: Ways, fate: Any) -> None:
    body = JSON_BODY.replace(b'"inputs"', b'"parameters": {"sequence_id": 5}, "inputs"')
    ways.triton.fate = lambda _, __: fate
    result = await both(ways, [request(body)])
    assert (result.status, len(result.seen)) == (503, 1)
    assert result.suspects == [MODEL]
    assert ways.direct.asgi == []


async def test_an_answer_that_breaks_off(ways: Ways) -> None:
    def break_off(_: int, __: bytes) -> Any:
        (connection,) = ways.triton.connections
        connection.transport.write(answer(b"12345678")[:-1])
        connection.transport.close()
        return Hang

    ways.triton.fate = break_off
    result = await both(ways, [request()])
    assert (result.status, len(result.seen)) == (503, 1)
    assert b"retry-after" in result.received


async def test_no_answer_in_time(ways: Ways) -> None:
    ways.triton.fate = lambda _, __: Hang
    body = JSON_BODY.replace(b'"inputs"', b'"parameters": {"timeout": 30000}, "inputs"')
    result = await both(ways, [request(body)])
    assert result.status == 504
    assert result.counted[0][4] == "INFERENCE_TIMEOUT"
    await soon(lambda: not ways.triton.connections)  # which ends it there
    assert ways.direct.asgi == []


async def test_an_error_of_ours_is_an_answer(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("controlplane.gateway.v2_answers.check_answer", broken)
    result = await both(ways, [request()])
    assert (result.status, result.counted[0][4]) == (500, "INTERNAL_ERROR")
    assert b"a mistake" not in result.received


# -- what the client does ----------------------------------------------------------------------


@pytest.mark.parametrize("half", [True, False])
async def test_a_client_that_leaves_ends_its_request(ways: Ways, half: bool) -> None:
    for way in (ways.ordinary, ways.direct):
        await ways.warm()
        ways.triton.fate = lambda _, __: Hang
        before = len(ways.triton.seen)
        _, writer = await asyncio.open_connection("127.0.0.1", way.port)
        with structlog.testing.capture_logs() as logs:
            writer.write(request(JSON_BODY, f"X-Trace-Id: {TRACE}"))
            await soon(lambda n=before: len(ways.triton.seen) > n)
            assert ways.leases() == 1
            writer.write_eof() if half else writer.close()
            await soon(lambda w=way: not w.draining.running)
            writer.close()
        assert ways.leases() == 0
        assert ways.finished[-1].error_code == "CANCELLED"
        await soon(lambda: not ways.triton.connections)
        assert [(line["path"], line["status"]) for line in logs if line["event"] == "http"] == [
            (PATH, 499)
        ]
        ways.triton.fate = lambda _, sent: echo(sent)


async def test_a_client_that_leaves_in_the_middle_of_its_body(ways: Ways) -> None:
    for way in (ways.ordinary, ways.direct):
        with structlog.testing.capture_logs() as logs:
            await exchange(ways, way, [request()[:-5]], leave=True)
        assert [line["event"] for line in logs] == ["client gone", "http"]


async def test_requests_that_come_before_the_answer_wait_for_it(ways: Ways) -> None:
    ways.triton.fate = lambda _, __: Hang
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    seen = len(ways.triton.seen)
    writer.write(request())
    await soon(lambda: len(ways.triton.seen) > seen)
    writer.write(request(binary(b"second")[0], binary(b"second")[1]) + request())
    await soon(lambda: connection_of(ways.direct)._later)
    assert len(ways.triton.seen) == seen + 1
    ways.triton.fate = lambda _, sent: echo(sent)
    (held,) = [c for c in ways.triton.connections if not c._bytes]
    held.transport.write(echo(b"first"))
    for text in (b"first", b"second", b'"data"'):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        assert text in (await reader.readexactly(length)).replace(b"\\", b"")
    writer.close()


# -- the service stops -------------------------------------------------------------------------


async def test_what_runs_is_waited_for_and_what_is_new_refused(ways: Ways) -> None:
    ways.triton.fate = lambda _, __: Hang
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    writer.write(request())
    await soon(lambda: ways.direct.draining.running)
    ways.direct.draining.begin()
    assert not await ways.direct.draining.idle(0.01)
    ways.triton.connections[-1].transport.write(echo(b""))
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert await ways.direct.draining.idle(5.0)
    writer.write(request())
    rest = await reader.read()
    assert b"HTTP/1.1 503" in rest
    assert b"connection: close" in rest
    writer.close()


async def test_one_that_goes_on_in_its_task_is_waited_for(ways: Ways) -> None:
    ways.triton.fate = then_echo(Close, Hang)
    _, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    seen = len(ways.triton.seen)
    writer.write(request())
    await soon(lambda: ways.direct.draining.running)
    ways.direct.draining.begin()  # it is not new: it had begun
    await soon(lambda: len(ways.triton.seen) == seen + 2)
    assert ways.direct.draining.running == 1
    writer.close()
    assert await ways.direct.draining.idle(5.0)


@pytest.mark.parametrize("goes_on", [False, True])
async def test_the_last_answer_of_a_connection_says_so(ways: Ways, goes_on: bool) -> None:
    ways.triton.fate = lambda _, __: Hang
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    writer.write(request())
    await soon(lambda: ways.direct.draining.running)
    connection_of(ways.direct).shutdown()
    if goes_on:  # in a task, on another connection to Triton
        ways.triton.fate = lambda _, sent: echo(sent)
        ways.triton.connections[-1].transport.abort()
    else:
        ways.triton.connections[-1].transport.write(echo(b""))
    with contextlib.suppress(OSError):
        assert b"\r\nconnection: close\r\n" in await reader.read()
    writer.close()
    await soon(lambda: not ways.direct.connections)


async def test_a_connection_that_waits_is_closed(ways: Ways) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.direct.port)
    writer.write(request())
    await reader.readline()
    connection_of(ways.direct).shutdown()
    await reader.read()
    writer.close()
