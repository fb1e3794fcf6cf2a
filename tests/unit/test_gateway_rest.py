"""The REST API's contract: bodies, statuses, and one error envelope for everything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from dataclasses import replace

import httpx
import pytest

from controlplane.db import open_db
from controlplane.errors import InsufficientMemory, ModelAlreadyLoaded
from controlplane.gateway.rest import create_app
from controlplane.registry.blobs import BlobCache
from controlplane.registry.files import Progress
from controlplane.settings import Settings
from tests.gateway import make_ready
from tests.rest_services import rest_services

MODEL = "org/tiny"
NEW = {"model_id": MODEL, "task_type": "txt2embed"}


@pytest.fixture
def services(tmp_path):
    with contextlib.closing(open_db(":memory:")) as db:
        settings = Settings(max_request_bytes=4096)
        yield rest_services(
            db, tmp_path, settings, check_database=lambda: db.execute("SELECT 1").fetchone()
        )


@contextlib.asynccontextmanager
async def client_of(services):
    app = create_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.close()
    await services.scheduler.close()


@pytest.fixture
async def http(services):
    async with client_of(services) as client:
        yield client


@pytest.fixture
async def registered(http):
    assert (await http.post("/api/v1/models", json=NEW)).status_code == 201


@pytest.fixture
def ready(services, registered):
    make_ready(services.store, MODEL, "main")


def error_of(response):
    """The envelope's error, after checking that it is one."""
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) <= {"code", "message", "details", "trace_id"}
    assert error["trace_id"] == response.headers["X-Trace-Id"] == str(uuid.UUID(error["trace_id"]))
    return response.status_code, error["code"], error.get("details", {})


def has_null(value):
    if isinstance(value, dict):
        return any(has_null(item) for item in value.values())
    if isinstance(value, list):
        return any(has_null(item) for item in value)
    return value is None


# -- plugins -----------------------------------------------------------------------------------


async def test_plugins_are_listed_with_what_is_wrong_with_them(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/api/v1/plugins")).json()
    ours = {p["name"]: p for p in answer["data"] if p["kind"] == "converter"}
    assert ours["txt2embed"] == {
        "kind": "converter",
        "name": "txt2embed",
        "target": "converters.text_embedding:convert",
        "distribution": "modelmora",
        "version": ours["txt2embed"]["version"],
        "ok": True,
    }
    assert {"txt2embed", "custom"} <= set(answer["tasks"])


# -- cache -------------------------------------------------------------------------------------


async def test_the_cache_is_listed_verified_and_pruned(http, services, tmp_path):
    cache = services.installer.cache = BlobCache(tmp_path / "cache", tmp_path / "downloads")
    empty = (await http.get("/api/v1/cache")).json()
    assert (empty["blobs"], empty["bytes"], empty["partials"]) == ([], 0, 0)
    with cache.reserve("key", lambda: None) as part:
        part.write_bytes(b"content")
        digest = hashlib.sha256(b"content").hexdigest()
        (tmp_path / "downloads").mkdir()
        cache.adopt(part, digest, tmp_path / "downloads" / "file")
    listed = (await http.get("/api/v1/cache?limit=1")).json()
    assert listed["blobs"] == [{"sha256": digest, "size": 7, "users": []}]
    assert listed["unused_bytes"] == 7
    assert (await http.get("/api/v1/cache?limit=0")).json()["blobs"] == []
    verified = (await http.post("/api/v1/cache/verify")).json()
    assert verified == {"blobs": 1, "bytes": 7, "damaged": []}
    assert (await http.post("/api/v1/cache/prune")).json()["blobs"] == 0  # linked elsewhere
    (tmp_path / "downloads" / "file").unlink()
    dry = await http.post("/api/v1/cache/prune", json={"dry_run": True})
    assert dry.json() == {"dry_run": True, "blobs": 1, "partials": 0, "freed_bytes": 7}
    assert (await http.post("/api/v1/cache/prune", json={})).json()["freed_bytes"] == 7
    assert (await http.get("/api/v1/cache")).json()["blob_count"] == 0
    answer = await http.post("/api/v1/cache/prune", json={"dry": True})
    assert error_of(answer)[:2] == (400, "VALIDATION_ERROR")


# -- models ------------------------------------------------------------------------------------


async def test_register_and_read(http, registered):
    model = (await http.get(f"/api/v1/models/{MODEL}")).json()
    assert model["model_id"] == MODEL
    assert model["status"] == "registered"
    assert model["versions"] == ["main"]
    assert model["triton_name"] == "org--tiny"
    assert model["created_at"].endswith("Z")
    assert model["config"] == {}
    assert not has_null(model)


@pytest.mark.parametrize("spelling", ["org/tiny", "org%2Ftiny", "org%2ftiny", "org--tiny"])
async def test_every_spelling_of_an_id(http, services, ready, spelling):
    path = f"/api/v1/models/{spelling}"
    assert (await http.get(path)).json()["model_id"] == MODEL
    assert (await http.put(path, json={"description": "d"})).json()["description"] == "d"
    assert (await http.post(f"{path}/load")).json()["state"] == "loaded"
    assert (await http.post(f"{path}/unload")).json()["unloaded"] is True
    infer = await http.post(f"/api/v1/infer/{spelling}", json={"input_data": {"text": "x"}})
    assert infer.json()["model_id"] == MODEL
    assert (await http.delete(path)).status_code == 204


async def test_ready_model_tells_of_its_artefact(http, ready):
    model = (await http.get(f"/api/v1/models/{MODEL}")).json()
    assert model["status"] == "ready"
    assert model["artefact"]["dimension"] == 4
    assert model["artefact"]["parity"]["min_cosine"] == 1.0
    assert model["resource_requirements"]["memory_mb"] == 1


async def test_progress_is_shown_while_installing(http, services, registered):
    services.installer.running[MODEL] = Progress(
        phase="downloading", step="model.safetensors", message="1 of 2 MB", fraction=0.5
    )
    model = (await http.get(f"/api/v1/models/{MODEL}")).json()
    assert model["progress"] == {
        "phase": "downloading",
        "step": "model.safetensors",
        "message": "1 of 2 MB",
        "fraction": 0.5,
    }


async def test_list_pages_and_filters(http):
    for number in range(3):
        await http.post("/api/v1/models", json=NEW | {"model_id": f"org/m{number}"})
    page = (await http.get("/api/v1/models?page=2&page_size=2")).json()
    assert [m["model_id"] for m in page["data"]] == ["org/m2"]
    assert page["pagination"] == {"page": 2, "page_size": 2, "total_items": 3, "total_pages": 2}
    assert (await http.get("/api/v1/models?search_text=M1")).json()["pagination"][
        "total_items"
    ] == 1
    assert (await http.get("/api/v1/models?status=ready")).json()["data"] == []


async def test_update_with_optimistic_lock(http, registered):
    path = f"/api/v1/models/{MODEL}"
    first = await http.put(path, json={"display_name": "Tiny", "version_number": 1})
    assert first.json()["display_name"] == "Tiny"
    again = await http.put(path, json={"display_name": "Other", "version_number": 1})
    assert error_of(again)[:2] == (409, "CONCURRENT_MODIFICATION")
    cleared = await http.put(path, json={"display_name": None})
    assert "display_name" not in cleared.json()


async def test_download_answers_at_once(http, services, registered):
    answer = await http.post(f"/api/v1/models/{MODEL}/download")
    assert answer.status_code == 202
    operation = answer.json()
    assert (operation["status"], operation["kind"]) == ("pending", "install")
    assert operation["links"]["model"] == f"/api/v1/models/{MODEL}"
    assert answer.headers["Location"] == operation["links"]["self"]
    assert services.installer.asked == [(MODEL, None)]
    assert (await http.get(operation["links"]["self"])).json() == operation


async def test_delete_of_a_loaded_model_wants_force(http, ready):
    path = f"/api/v1/models/{MODEL}"
    await http.post(f"{path}/load")
    assert error_of(await http.delete(path))[:2] == (409, "MODEL_ALREADY_LOADED")
    assert (await http.delete(f"{path}?force=true")).status_code == 204
    assert error_of(await http.get(path))[:2] == (404, "MODEL_NOT_FOUND")
    assert (await http.get("/api/v1/status")).json()["loaded_models"] == []


# -- lifecycle and inference -------------------------------------------------------------------


async def test_load_status_and_unload(http, ready):
    path = f"/api/v1/models/{MODEL}"
    loaded = (await http.post(f"{path}/load", json={"version": "main"})).json()
    assert loaded["state"] == "loaded"
    assert loaded["memory_usage_mb"] == 12.3
    assert loaded["process_id"] == 4711
    assert loaded["health_status"]["healthy"] is True
    assert not has_null(loaded)
    assert error_of(await http.post(f"{path}/load"))[:2] == (409, "MODEL_ALREADY_LOADED")
    assert (await http.get("/health")).json()["models_loaded"] == 1
    assert (await http.get("/health/models")).json()["healthy_count"] == 1
    status = (await http.get("/api/v1/status")).json()
    assert [m["model_id"] for m in status["loaded_models"]] == [MODEL]
    assert status["memory"]["threshold_mb"] == 500
    assert status["models"] == {"registered": 1, "ready": 1}
    assert status["triton"]["kind"] == "embedded"
    assert (await http.post(f"{path}/unload")).json() == {
        "model_id": MODEL,
        "unloaded": True,
        "freed_mb": 12.3,
    }
    assert error_of(await http.post(f"{path}/unload"))[:2] == (404, "MODEL_NOT_LOADED")


async def test_load_of_what_is_not_installed(http, registered):
    code = error_of(await http.post(f"/api/v1/models/{MODEL}/load"))
    assert code[:2] == (409, "MODEL_NOT_READY")


async def test_infer_hands_the_request_on(http):
    body = {
        "input_data": {"text": ["a"]},
        "parameters": {"normalize": False},
        "priority": "high",
        "timeout_seconds": 5,
        "version": "v2",
    }
    answer = (await http.post(f"/api/v1/infer/{MODEL}", json=body)).json()
    assert answer["version"] == "v2"
    assert answer["metadata"]["batch_size"] == 1
    assert answer["output_data"] == {k: v for k, v in body.items() if k != "version"}


async def test_retry_after_is_a_header(http, services):
    services.inference.error = InsufficientMemory(MODEL, 100, 50)
    answer = await http.post(f"/api/v1/infer/{MODEL}", json={"input_data": {"text": "a"}})
    assert error_of(answer)[:2] == (503, "INSUFFICIENT_MEMORY")
    assert answer.headers["Retry-After"] == "1"


async def test_unforeseen_failures_say_nothing(http, services):
    services.inference.error = ZeroDivisionError("secret /etc/path")
    answer = await http.post(f"/api/v1/infer/{MODEL}", json={"input_data": {"text": "a"}})
    assert error_of(answer)[:2] == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text


async def test_subclasses_of_known_errors_are_mapped(http, services):
    class Nuance(ModelAlreadyLoaded):
        pass

    services.inference.error = Nuance(MODEL)
    answer = await http.post(f"/api/v1/infer/{MODEL}", json={"input_data": {"text": "a"}})
    assert error_of(answer)[:2] == (409, "MODEL_ALREADY_LOADED")


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {"body"}),
        (b"{", {"body"}),
        (b"\xff\xfe", {"body"}),
        (b"[]", {"body"}),
        (b"null", {"body"}),
        (b"[" * 100_0 + b"]" * 100_0, {"body"}),
        (b'{"model_id": 5, "task', {"body"}),
        (b"{}", {"model_id"}),
        (json.dumps(NEW | {"modle_id": 1, "version": 2}).encode(), {"modle_id", "version"}),
        (
            json.dumps(NEW | {"resource_requirements": {"memory_mb": "12"}}).encode(),
            {"resource_requirements.memory_mb"},
        ),
        (
            json.dumps(NEW | {"resource_requirements": {"memory": 12}}).encode(),
            {"resource_requirements.memory"},
        ),
        (json.dumps(NEW | {"version": "a b"}).encode(), {"version"}),
        (json.dumps(NEW | {"display_name": "x" * 300}).encode(), {"display_name"}),
        (
            json.dumps(NEW | {"resource_requirements": {"memory_mb": 0}}).encode(),
            {"resource_requirements.memory_mb"},
        ),
    ],
)
async def test_bad_bodies_name_their_fields(http, body, fields):
    answer = await http.post(
        "/api/v1/models", content=body, headers={"Content-Type": "application/json"}
    )
    status, code, details = error_of(answer)
    assert (status, code) == (400, "VALIDATION_ERROR")
    assert set(details["fields"]) == fields
    assert all(isinstance(m, list) and m for m in details["fields"].values())


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/api/v1/nowhere", 404, "NOT_FOUND"),
        ("GET", "/api/v1/models/a/b/c", 404, "NOT_FOUND"),
        ("GET", "/docs/nowhere", 404, "NOT_FOUND"),
        ("PATCH", "/api/v1/models", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/models/org/unknown", 404, "MODEL_NOT_FOUND"),
        ("DELETE", "/api/v1/models/org/unknown", 404, "MODEL_NOT_FOUND"),
        ("POST", "/api/v1/models/org/unknown/load", 404, "MODEL_NOT_FOUND"),
        ("GET", "/api/v1/models/gpt2", 400, "INVALID_MODEL_ID"),
        ("DELETE", "/api/v1/models/gpt2", 400, "INVALID_MODEL_ID"),
        ("GET", "/api/v1/models/org/..x", 400, "INVALID_MODEL_ID"),
        ("GET", "/api/v1/cache?limit=-1", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/models?page=0", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/models?page=x", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/models?page_size=101", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/models?status=odd", 400, "VALIDATION_ERROR"),
        ("GET", "/api/v1/models?task_type=odd", 400, "INVALID_TASK_TYPE"),
        ("DELETE", "/api/v1/models/org/unknown?force=perhaps", 400, "VALIDATION_ERROR"),
    ],
)
async def test_errors_have_one_form(http, method, path, status, code):
    assert error_of(await http.request(method, path))[:2] == (status, code)


async def test_query_errors_name_the_parameter(http):
    answer = await http.get("/api/v1/models?page=x")
    assert "page" in error_of(answer)[2]["fields"]


async def test_405_names_what_is_allowed(http):
    answer = await http.patch("/api/v1/models")
    assert "GET" in answer.headers["Allow"]


async def test_unsupported_media_type(http):
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}):
        answer = await http.post("/api/v1/models", content=b"{}", headers=headers)
        assert error_of(answer)[:2] == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_body_limit(http):
    body = json.dumps(NEW | {"description": "x" * 5000}).encode()

    async def chunks():
        yield body

    for content in (body, chunks()):
        answer = await http.post(
            "/api/v1/models", content=content, headers={"Content-Type": "application/json"}
        )
        assert error_of(answer)[:2] == (413, "PAYLOAD_TOO_LARGE")


async def test_twice_registered(http, registered):
    answer = await http.post("/api/v1/models", json=NEW)
    assert error_of(answer)[:2] == (409, "MODEL_ALREADY_EXISTS")


# -- trace ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Trace-Id": "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"}, True),
        ({"X-Trace-Id": "1B4E28BA2FA14D2B883F0016D3CCA427"}, True),
        ({"traceparent": "00-1b4e28ba2fa14d2b883f0016d3cca427-00f067aa0ba902b7-01"}, True),
        ({"X-Trace-Id": "x\x07y"}, False),
        ({"X-Trace-Id": "0" * 32}, False),
        ({"traceparent": "ff-1b4e28ba2fa14d2b883f0016d3cca427-00f067aa0ba902b7-01"}, False),
        ({}, False),
    ],
)
async def test_trace_ids(http, headers, expected):
    for path in ("/health/live", "/nowhere", "/v2/health/live", "/v2/nowhere"):
        found = (await http.get(path, headers=headers)).headers["X-Trace-Id"]
        assert str(uuid.UUID(found)) == found
        assert (found == "1b4e28ba-2fa1-4d2b-883f-0016d3cca427") is expected


# -- health, metrics, documents ----------------------------------------------------------------


async def test_liveness_is_quick_whatever_is_wrong(http, services):
    services.server.state = "lost"
    took = []
    for _ in range(10):
        began = time.perf_counter()
        answer = await http.get("/health/live")
        took.append(time.perf_counter() - began)
        assert answer.json() == {"status": "ok"}
    assert min(took) < 0.05  # the quickest: others use the processors too
    assert (await http.get("/v2/health/live")).status_code == 200


async def test_readiness_names_what_is_wrong(http, services):
    good = await http.get("/health/ready")
    assert good.json() == {"status": "ready", "checks": {"database": "ok", "triton": "ok"}}
    services.server.state = "lost"
    bad = await http.get("/health/ready")
    assert (bad.status_code, bad.json()["checks"]["triton"]) == (503, "is lost")
    assert (await http.get("/v2/health/ready")).status_code == 503
    assert (await http.get("/health")).json()["status"] == "degraded"


async def test_readiness_checks_the_database(services):
    def broken():
        raise OSError("disk gone")

    async with client_of(replace(services, check_database=broken)) as http:
        answer = await http.get("/health/ready")
    assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "does not answer")


async def test_metrics_at_both_paths(http):
    for path in ("/metrics", "/api/v1/metrics"):
        answer = await http.get(path)
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "modelmora_service_info{" in answer.text


async def test_settings(http):
    settings = (await http.get("/api/v1/settings")).json()
    assert settings["max_request_bytes"] == 4096
    assert not has_null(settings)


async def test_openapi_document(http):
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert document["info"]["version"] == "1.2.3"
    operations = [o for item in document["paths"].values() for o in item.values()]
    ids = [o["operationId"] for o in operations]
    assert len(ids) == len(set(ids))
    assert {"registerModel", "loadModel", "infer", "useVersion", "getStatus"} <= set(ids)
    assert all(o["tags"] and o["summary"] and o["description"] for o in operations)
    names = {p["name"] for o in operations for p in o.get("parameters", ())}
    assert names >= {
        *("org", "repo", "force", "version", "model_id"),
        *("task_type", "status", "search_text", "page", "page_size"),
        *("name", "environment", "version", "model", "upgrade", "prune"),
        *("operation_id", "model_id", "kind", "Last-Event-ID"),
        "limit",
    }
    load = document["paths"]["/api/v1/models/{org}/{repo}/load"]["post"]
    assert load["requestBody"]["required"] is False
    assert {"400", "404", "409", "503", "504"} <= set(load["responses"])


async def test_docs_page_needs_nothing_from_elsewhere(http):
    page = await http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "https://" not in page.text
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert (await http.get("/redoc")).headers["Location"] == "/docs"
