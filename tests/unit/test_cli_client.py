"""The client's contract: both clients send the same requests and read the same answers."""

from __future__ import annotations

import inspect
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.client import (
    AsyncModelMoraClient,
    InstallFailed,
    ModelMoraApiError,
    ModelMoraClient,
    Progress,
    ServerUnreachable,
    WaitTimeout,
    server_url,
)
from tests import rest_server as rest
from tests.client_calls import CALLS
from tests.rest_server import (
    INFER_PATH,
    MINILM,
    MODEL_PATH,
    OPERATION_ID,
    OPERATION_PATH,
    OPERATIONS_PATH,
    RestServer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def server() -> Iterator[RestServer]:
    running = RestServer()
    yield running
    running.close()


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


OPERATIONS = [
    ("get", (MINILM,), {}, ("GET", MODEL_PATH, {}, None)),
    ("get", ("sentence-transformers--all-MiniLM-L6-v2",), {}, ("GET", MODEL_PATH, {}, None)),
    (
        "list",
        (),
        {"task_type": "txt2embed", "page": 2},
        (
            "GET",
            "/api/v1/models",
            {"task_type": "txt2embed", "page": "2", "page_size": "20"},
            None,
        ),
    ),
    (
        "register",
        (MINILM,),
        {"display_name": "Mini"},
        (
            "POST",
            "/api/v1/models",
            {},
            {"model_id": MINILM, "display_name": "Mini"},
        ),
    ),
    (
        "update",
        (MINILM,),
        {"description": None},
        ("PUT", MODEL_PATH, {}, {"description": None}),
    ),
    ("delete", (MINILM,), {}, ("DELETE", MODEL_PATH, {}, None)),
    ("delete", (MINILM,), {"force": True}, ("DELETE", MODEL_PATH, {"force": "true"}, None)),
    ("download", (MINILM, "v2"), {}, ("POST", f"{MODEL_PATH}/download", {}, {"version": "v2"})),
    (
        "list_operations",
        (),
        {"model_id": MINILM, "status": "active"},
        (
            "GET",
            OPERATIONS_PATH,
            {"model_id": MINILM, "status": "active", "page": "1", "page_size": "20"},
            None,
        ),
    ),
    ("get_operation", (OPERATION_ID,), {}, ("GET", OPERATION_PATH, {}, None)),
    ("cancel_operation", (OPERATION_ID,), {}, ("DELETE", OPERATION_PATH, {}, None)),
    ("follow_operation", (OPERATION_ID,), {}, ("GET", f"{OPERATION_PATH}/events", {}, None)),
    (
        "sync_catalog",
        ([{"model_id": MINILM}],),
        {"dry_run": True},
        (
            "POST",
            "/api/v1/catalog/sync",
            {},
            {"models": [{"model_id": MINILM}], "dry_run": True},
        ),
    ),
    ("load", (MINILM,), {}, ("POST", f"{MODEL_PATH}/load", {}, {})),
    ("unload", (MINILM,), {}, ("POST", f"{MODEL_PATH}/unload", {}, None)),
    ("keep", (MINILM,), {}, ("PUT", MODEL_PATH, {}, {"keep_loaded": True})),
    ("release", (MINILM,), {}, ("PUT", MODEL_PATH, {}, {"keep_loaded": False})),
    ("warm_up", (MINILM,), {"samples": 3}, ("POST", f"{MODEL_PATH}/warmup", {}, {"samples": 3})),
    (
        "plan",
        ([MINILM, ("org/huge", "v1")],),
        {},
        (
            "POST",
            "/api/v1/lifecycle/plan",
            {},
            {"models": [{"model_id": MINILM}, {"model_id": "org/huge", "version": "v1"}]},
        ),
    ),
    (
        "infer",
        (MINILM, {"text": "a"}),
        {"priority": "high", "timeout_seconds": 5},
        (
            "POST",
            INFER_PATH,
            {},
            {"input_data": {"text": "a"}, "priority": "high", "timeout_seconds": 5},
        ),
    ),
    (
        "embed",
        (MINILM, "one"),
        {"normalize": True},
        (
            "POST",
            INFER_PATH,
            {},
            {"input_data": {"text": ["one"]}, "parameters": {"normalize": True}},
        ),
    ),
    ("status", (), {}, ("GET", "/api/v1/status", {}, None)),
    ("settings", (), {}, ("GET", "/api/v1/settings", {}, None)),
    ("health", (), {}, ("GET", "/health", {}, None)),
    ("ready", (), {}, ("GET", "/health/ready", {}, None)),
    ("models_health", (), {}, ("GET", "/health/models", {}, None)),
]


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "request_sent"), OPERATIONS, ids=lambda value: str(value)[:40]
)
def test_operation_sends_its_request(
    server: RestServer,
    call: Callable[..., Any],
    operation: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    request_sent: tuple[Any, ...],
) -> None:
    call(server.url, operation, *args, **kwargs)
    assert server.requests == [request_sent]


def test_answers_are_typed_and_unknown_fields_ignored(server: RestServer) -> None:
    with ModelMoraClient(server.url) as client:
        model = client.get(MINILM)
        assert (model.status, model.triton_version) == ("ready", 1)
        assert model.created_at is not None
        assert model.created_at.isoformat() == "2026-01-02T03:04:05.678901+00:00"
        assert client.list().pagination.total_items == 1
        assert client.status().loaded_models[0].health_status.healthy
        assert client.delete(MINILM) is None
        assert client.embed(MINILM, ["a", "b"]) == rest.INFERRED["output_data"]["embeddings"]
        assert client.models_health().models[0].healthy


def test_one_embedding_is_a_list_of_one(server: RestServer, call: Callable[..., Any]) -> None:
    single = {**rest.INFERRED, "output_data": {"embedding": [1.0, 2.0], "dimension": 2}}
    server.set("POST", INFER_PATH, (200, single))
    assert call(server.url, "embed", MINILM, "a") == [[1.0, 2.0]]


def test_envelope_is_raised(server: RestServer, call: Callable[..., Any]) -> None:
    server.set("GET", MODEL_PATH, (404, rest.NOT_FOUND))
    with pytest.raises(ModelMoraApiError, match="is not registered") as caught:
        call(server.url, "get", MINILM)
    error = caught.value
    assert (error.code, error.status) == ("MODEL_NOT_FOUND", 404)
    assert error.details == {"model_id": MINILM}
    assert error.trace_id == "7f1d6a9c-5f0e-4b8e-9f43-0d8f2e6f5a10"


@pytest.mark.parametrize("name", ["no-slash", "../settings", "a/b/c", "a/..", "a/b?x=1", ""])
def test_malformed_model_id_is_refused_before_it_is_sent(
    server: RestServer, call: Callable[..., Any], name: str
) -> None:
    with pytest.raises(ModelMoraApiError, match="is not a model id") as caught:
        call(server.url, "get", name)
    assert caught.value.code == "INVALID_MODEL_ID"
    assert server.requests == []


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"detail": "x"}', b'{"error": "x"}', b"[1]"])
@pytest.mark.parametrize("status", [200, 404, 500])
def test_another_program_on_the_port_is_named(
    server: RestServer, call: Callable[..., Any], status: int, body: bytes
) -> None:
    server.set("GET", MODEL_PATH, (status, body))
    with pytest.raises(ModelMoraApiError, match="does another program use this port") as caught:
        call(server.url, "get", MINILM)
    assert caught.value.code == "UNEXPECTED_RESPONSE"


def test_not_ready_is_an_answer(server: RestServer, call: Callable[..., Any]) -> None:
    server.set("GET", "/health/ready", (503, rest.NOT_READY))
    assert call(server.url, "ready").checks == {"database": "ok", "triton": "lost"}


def test_nobody_listens(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerUnreachable, match="is `modelmora serve` running") as caught:
        call(f"http://127.0.0.1:{port}", "status")
    assert "Connection refused" in str(caught.value)


def test_server_that_hangs_up(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ServerUnreachable):
            call(f"http://127.0.0.1:{port}", "status")
        thread.join()


# -- install -----------------------------------------------------------------------------------


DOWNLOADING = rest.operation(
    "running", phase="downloading", fraction=0.5, bytes_done=45, bytes_total=90, rate=9.5
)
EXPORTING = rest.operation("running", phase="exporting", fraction=0.1)
REFUSED = {"code": "ARTIFACT_NOT_ACCESSIBLE", "message": "no config.json in the source"}


def installing(server: RestServer, last: dict[str, Any], *, absent: bool = True) -> None:
    first = [(404, rest.NOT_FOUND)] if absent else [(200, rest.model("registered"))]
    server.set("GET", MODEL_PATH, *first, (200, last))
    server.set("POST", f"{MODEL_PATH}/download", (202, rest.operation("pending")))
    end = (
        rest.operation("failed", error=REFUSED) if last["status"] == "failed" else rest.operation()
    )
    states = rest.events(DOWNLOADING, EXPORTING, end)
    server.set("GET", f"{OPERATION_PATH}/events", (200, states))


def test_install_registers_downloads_and_waits(
    server: RestServer, call: Callable[..., Any]
) -> None:
    installing(server, rest.model())
    seen: list[Progress] = []
    model = call(
        server.url, "install", MINILM, "v1", source_url="file:///m", on_progress=seen.append
    )
    assert model.status == "ready"
    assert [p.phase for p in seen] == ["downloading", "exporting", "ready"]
    assert (seen[0].bytes_done, seen[0].bytes_total, seen[0].rate) == (45, 90, 9.5)
    posts = [(r.path, r.body) for r in server.requests if r.method == "POST"]
    registration = {"model_id": MINILM, "version": "v1", "source_url": "file:///m"}
    assert posts == [
        ("/api/v1/models", registration),
        (f"{MODEL_PATH}/download", {"version": "v1"}),
    ]


def test_following_polls_where_events_do_not_come_through(
    server: RestServer, call: Callable[..., Any]
) -> None:
    server.set("GET", f"{OPERATION_PATH}/events", (200, b"{}"))  # not an event stream
    server.set("GET", OPERATION_PATH, (200, DOWNLOADING), (200, rest.operation()))
    seen: list[str] = []
    ended = call(server.url, "follow_operation", OPERATION_ID, lambda one: seen.append(one.status))
    assert ended.status == "succeeded"
    assert seen == ["running", "succeeded"]
    assert [r.path for r in server.requests].count(f"{OPERATION_PATH}/events") == 1


def test_following_goes_on_when_the_stream_breaks(
    server: RestServer, call: Callable[..., Any]
) -> None:
    first, second = rest.events(DOWNLOADING), rest.events(EXPORTING, rest.operation())
    server.set("GET", f"{OPERATION_PATH}/events", (200, first), (200, second))
    server.set("GET", OPERATION_PATH, (200, DOWNLOADING))
    seen: list[str | None] = []
    ended = call(server.url, "follow_operation", OPERATION_ID, lambda one: seen.append(one.phase))
    assert ended.status == "succeeded"
    assert seen == ["downloading", "downloading", "exporting", None]


def test_an_operation_that_is_not_there_is_named(
    server: RestServer, call: Callable[..., Any]
) -> None:
    missing = (404, rest.error("OPERATION_NOT_FOUND", "There is no operation."))
    server.set("GET", f"{OPERATION_PATH}/events", missing)
    server.set("GET", OPERATION_PATH, missing)
    with pytest.raises(ModelMoraApiError, match="There is no operation"):
        call(server.url, "follow_operation", OPERATION_ID)


def test_install_of_a_registered_model_does_not_register(server: RestServer) -> None:
    installing(server, rest.model(), absent=False)
    with ModelMoraClient(server.url) as client:
        client.install(MINILM)
    assert [r.path for r in server.requests if r.method == "POST"] == [f"{MODEL_PATH}/download"]


def test_install_that_fails_carries_the_reason(
    server: RestServer, call: Callable[..., Any]
) -> None:
    installing(server, rest.model("failed", error="no config.json in the source"))
    with pytest.raises(InstallFailed, match=r"no config\.json in the source") as caught:
        call(server.url, "install", MINILM)
    assert caught.value.model.status == "failed"


@pytest.mark.parametrize(
    "asked",
    [{"source_url": "file:///elsewhere"}, {"task_type": "txt2txt"}],
    ids=str,
)
def test_install_from_elsewhere_than_before_is_a_conflict(
    server: RestServer, asked: dict[str, str]
) -> None:
    with (
        ModelMoraClient(server.url) as client,
        pytest.raises(ModelMoraApiError, match="modelmora uninstall") as caught,
    ):
        client.install(MINILM, **asked)
    assert caught.value.status == 409
    assert [r.method for r in server.requests] == ["GET"]


def test_install_gives_up_waiting(server: RestServer, call: Callable[..., Any]) -> None:
    installing(server, rest.model("exporting"))
    server.set("GET", f"{OPERATION_PATH}/events", (200, rest.events(EXPORTING)))
    server.set("GET", OPERATION_PATH, (200, EXPORTING))
    with pytest.raises(WaitTimeout, match=r"is not done \(exporting\)"):
        call(server.url, "install", MINILM, timeout=0)


def test_install_passes_other_errors_on(server: RestServer, call: Callable[..., Any]) -> None:
    broken = rest.error("INTERNAL_ERROR", "Something went wrong.")
    server.set("GET", MODEL_PATH, (500, broken))
    with pytest.raises(ModelMoraApiError, match="Something went wrong"):
        call(server.url, "install", MINILM)


# -- waiting, addresses, twins -----------------------------------------------------------------


def test_wait_until_ready(server: RestServer, call: Callable[..., Any]) -> None:
    server.set("GET", "/health/ready", (503, rest.NOT_READY), (200, rest.READY))
    assert call(server.url, "wait_until_ready", 10).status == "ready"
    server.set("GET", "/health/ready", (503, rest.NOT_READY))
    with pytest.raises(WaitTimeout, match="'triton': 'lost'"):
        call(server.url, "wait_until_ready", 0)


def test_wait_until_ready_outlasts_a_server_that_is_not_there_yet(
    call: Callable[..., Any],
) -> None:
    with pytest.raises(WaitTimeout, match="it does not answer"):
        call("http://127.0.0.1:1", "wait_until_ready", 0)


def test_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELMORA_URL", raising=False)
    assert server_url() == "http://127.0.0.1:8000"
    monkeypatch.setenv("MODELMORA_URL", "http://models:9000/")
    assert server_url() == "http://models:9000"
    assert server_url("https://other") == "https://other"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://a:b"])
def test_malformed_address(url: str) -> None:
    with pytest.raises(ValueError, match="not a server's address"):
        ModelMoraClient(url)


def test_a_proxy_is_not_asked_for_loopback(
    server: RestServer, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert call(server.url, "health").status == "ok"


def test_both_clients_offer_the_same() -> None:
    def offered(cls: type) -> dict[str, list[str]]:
        public = {name: value for name, value in vars(cls).items() if name[0] != "_"}
        return {name: [*inspect.signature(value).parameters] for name, value in public.items()}

    assert offered(ModelMoraClient) == offered(AsyncModelMoraClient)
    assert ModelMoraClient.install.__doc__ == AsyncModelMoraClient.install.__doc__
    assert ModelMoraClient.list.__name__ == "list"
    assert [*inspect.signature(ModelMoraClient("http://h").delete).parameters] == [
        "model_id",
        "force",
    ]
