"""A real HTTP server that gives recorded REST answers, for tests of the client and the CLI.

The bodies are as the API's OpenAPI document describes them; `tests/integration/test_cli_real.py`
runs the same commands against ModelMora itself, so that this file cannot drift away from it.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MODEL_PATH = f"/api/v1/models/{MINILM}"
INFER_PATH = f"/api/v1/infer/{MINILM}"


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any


def model(status: str = "ready", **changes: Any) -> dict[str, Any]:
    """A ModelResponse; a field that the client does not know is among them on purpose."""
    ready = {
        "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "checksum": "sha256:" + "ab" * 32,
        "backend": "text_embedding",
        "engine": "onnxruntime",
        "artefact_bytes": 91_000_000,
        "measured_memory_mb": 205.4,
        "artefact": {
            "dimension": 384,
            "max_seq_length": 256,
            "parity": {"min_cosine": 0.9999999, "max_abs_diff": 2e-7},
        },
    }
    return {
        "id": "0b6fbe6e-3a3d-4a57-9d1c-6a2f3c1d2e4f",
        "model_id": MINILM,
        "task_type": "txt2embed",
        "version": "main",
        "current_version": "main",
        "versions": ["main"],
        "status": status,
        "triton_name": "sentence-transformers--all-MiniLM-L6-v2",
        "triton_version": 1,
        "created_at": "2026-01-02T03:04:05.678901Z",
        "updated_at": "2026-01-02T03:05:06Z",
        "version_number": 3,
        "pinned": False,
        "keep_loaded": False,
        "trust_remote_code": False,
        "a_field_of_tomorrow": True,
        **(ready if status == "ready" else {}),
        **changes,
    }


def progress(phase: str, fraction: float | None, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "step": "", "fraction": fraction, "message": "", **more}


def page(*models: dict[str, Any], total_pages: int = 1) -> dict[str, Any]:
    return {
        "data": list(models),
        "pagination": {
            "page": 1,
            "page_size": 100,
            "total_items": len(models) * total_pages,
            "total_pages": total_pages,
        },
    }


def error(code: str, message: str, **details: Any) -> dict[str, Any]:
    trace_id = "7f1d6a9c-5f0e-4b8e-9f43-0d8f2e6f5a10"
    return {"error": {"code": code, "message": message, "details": details, "trace_id": trace_id}}


NOT_FOUND = error("MODEL_NOT_FOUND", f"Model '{MINILM}' is not registered.", model_id=MINILM)
LOADED = {
    "model_id": MINILM,
    "version": "main",
    "state": "loaded",
    "memory_usage_mb": 205.4,
    "device": "cpu",
    "loaded_at": "2026-01-02T03:06:00Z",
    "last_used_at": "2026-01-02T03:07:00Z",
    "request_count": 12,
    "active_requests": 1,
    "load_seconds": 0.84,
    "health_status": {"healthy": True, "consecutive_failures": 0, "response_time_ms": 2.5},
    "peak_memory_mb": 210.0,
    "waiting_requests": 2,
    "estimated_memory_mb": 210.0,
    "measured_memory_mb": 205.4,
    "memory_source": "measured",
    "state_since": "2026-01-02T03:06:00Z",
    "keep_loaded": False,
    "cache_hits": 11,
    "cache_misses": 1,
    "coalesced_requests": 0,
    "evictions": 2,
    "unhealthy_count": 0,
    "loads": {
        "count": 3,
        "failures": 0,
        "last_seconds": 0.84,
        "mean_seconds": 0.9,
        "max_seconds": 1.0,
    },
}
WARM = {
    "model_id": MINILM,
    "version": "main",
    "wait_seconds": 0.8,
    "times_ms": [9.5, 3.0, 3.5],
    "first_ms": 9.5,
    "median_ms": 3.5,
    "slowest_ms": 9.5,
}
PLAN = {
    "fits": False,
    "budget_mb": 500.0,
    "max_models": 10,
    "used_mb_before": 400.0,
    "used_mb_after": 405.0,
    "models": [
        {
            "model_id": MINILM,
            "version": "main",
            "need_mb": 205.0,
            "need_source": "measured",
            "verdict": "evicts",
            "evictions": [
                {
                    "model_id": "org/old",
                    "version": "v1",
                    "memory_mb": 200.0,
                    "reason": "least recently used, idle for 90 s",
                }
            ],
            "used_mb_before": 400.0,
            "used_mb_after": 405.0,
        },
        {
            "model_id": "org/huge",
            "version": "main",
            "need_mb": 900.0,
            "need_source": "estimated",
            "verdict": "never",
            "evictions": [],
            "used_mb_before": 405.0,
            "used_mb_after": 405.0,
            "reason": "it needs more than the whole budget of 500 MB",
        },
    ],
}
UNLOADED = {"model_id": MINILM, "unloaded": True, "freed_mb": 205.4}
INFERRED = {
    "model_id": MINILM,
    "version": "main",
    "output_data": {"embeddings": [[0.25, -0.5, 0.125, 1.0, 0.0], [0.0] * 5], "dimension": 5},
    "metadata": {
        "inference_time_ms": 2.5,
        "total_time_ms": 3.25,
        "batch_size": 2,
        "device": "cpu",
    },
}
VERSION = {
    "model_id": MINILM,
    "version": "main",
    "current": True,
    "loaded": True,
    "status": "ready",
    "triton_name": "sentence-transformers--all-MiniLM-L6-v2",
    "triton_version": 2,
    "metadata": {},
    "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    "measured_memory_mb": 205.4,
    "created_at": "2026-01-02T03:04:05.678901Z",
    "updated_at": "2026-01-02T03:05:06Z",
    "version_number": 3,
}
OLDER = VERSION | {"version": "v1", "triton_version": 1, "current": False, "loaded": False}
VERSIONS = {
    "model_id": MINILM,
    "current_version": "main",
    "latest": "main",
    "pinned": False,
    "data": [OLDER, VERSION],
}
SWITCHED = {
    "model_id": MINILM,
    "version": "v1",
    "previous_version": "main",
    "switch": "drained",
}
OUTDATED = {
    "data": [
        {
            "model_id": MINILM,
            "version": "main",
            "outdated": True,
            "pinned": False,
            "newer_versions": [],
            "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            "branch": "main",
            "branch_revision": "0123456789abcdef0123456789abcdef01234567",
        }
    ]
}
STATUS = {
    "version": "0.1.0",
    "uptime_seconds": 3725.0,
    "memory": {
        "total_mb": 16_000,
        "used_mb": 205.4,
        "available_mb": 12_000,
        "threshold_mb": 13_600,
    },
    "gpu": {"available": False, "devices": []},
    "triton": {"state": "ready", "kind": "embedded", "grpc_url": "127.0.0.1:41234"},
    "loaded_models": [LOADED],
    "models": {"registered": 2, "ready": 1},
    "queue_depth": {"critical_priority": 0, "medium_priority": 1},
}
LIFECYCLE = {
    "time": "2026-01-02T03:07:05Z",
    "uptime_seconds": 3725.0,
    "device": "cpu",
    "memory": {
        "budget_mb": 13_600.0,
        "used_mb": 905.4,
        "reserved_mb": 500.0,
        "leaving_mb": 200.0,
        "free_mb": 12_694.6,
        "models": 3,
        "max_models": 10,
    },
    "triton": {"state": "ready", "kind": "embedded", "grpc_url": "127.0.0.1:41234", "restarts": 1},
    "models": [LOADED],
    "waiting": [
        {
            "model_id": "org/other",
            "version": "main",
            "priority": 3,
            "waits_for": "room",
            "waited_seconds": 1.25,
        }
    ],
    "waiting_count": 1,
    "queue_depth": {"medium_priority": 1},
    "last_event": 9,
}
METRICS = b"""\
# HELP modelmora_requests_total Inference requests, by how they ended.
# TYPE modelmora_requests_total counter
modelmora_requests_total{model_id="sentence-transformers/all-MiniLM-L6-v2",status="success"} 12.0
"""
HEALTH = {"status": "ok", "version": "0.1.0", "uptime_seconds": 3725.0, "models_loaded": 1}
READY = {"status": "ready", "checks": {"database": "ok", "triton": "ok"}}
NOT_READY = {"status": "not_ready", "checks": {"database": "ok", "triton": "lost"}}
MODELS_HEALTH = {
    "healthy_count": 1,
    "unhealthy_count": 0,
    "models": [{"model_id": MINILM, "healthy": True, "last_check_at": "2026-01-02T03:07:00Z"}],
}
OPERATION_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
OPERATIONS_PATH = "/api/v1/operations"
OPERATION_PATH = f"{OPERATIONS_PATH}/{OPERATION_ID}"


def operation(status: str = "succeeded", **changes: Any) -> dict[str, Any]:
    """An OperationResponse."""
    finished = {} if status in ("pending", "running") else {"finished_at": "2026-01-02T03:05:06Z"}
    return {
        "id": OPERATION_ID,
        "kind": "install",
        "model_id": MINILM,
        "version": "main",
        "status": status,
        "message": "",
        "attempts": 1,
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:05:06Z",
        "started_at": "2026-01-02T03:04:06Z",
        "links": {"self": OPERATION_PATH, "events": f"{OPERATION_PATH}/events"},
        **finished,
        **changes,
    }


class EventStream(bytes):
    """A body that is sent as server-sent events."""


def stored_events(*events: dict[str, Any], after: int = 0) -> EventStream:
    """The stream of the event store."""
    lines = ["retry: 2000", f"id: {after}", "", ": still here", ""]
    for one in events:
        name, number = one["event_type"], one["sequence"]
        lines += [f"id: {number}", f"event: {name}", f"data: {json.dumps(one)}", ""]
    return EventStream("\n".join([*lines, ""]).encode())


def events(*operations: dict[str, Any]) -> EventStream:
    """The stream that tells of these states, one after the other."""
    lines = ["retry: 2000", "", ": still at it", ""]
    for number, one in enumerate(operations):
        name = "end" if "finished_at" in one else "progress"
        lines += [f"id: {number}", f"event: {name}", f"data: {json.dumps(one)}", ""]
    return EventStream("\r\n".join([*lines, ""]).encode())


CATALOG_SYNC = {
    "dry_run": False,
    "in_sync": False,
    "results": [
        {
            "model_id": MINILM,
            "version": "main",
            "actions": ["register", "install"],
            "status": "installing",
            "operation": operation("running"),
        }
    ],
}

BLOB = {"sha256": "ab" * 32, "size": 90_868_376, "users": ["org--name/1", "org--name/2"]}
CACHE = {
    "blobs": [BLOB],
    "blob_count": 2,
    "bytes": 90_869_000,
    "unused_bytes": 624,
    "saved_bytes": 90_868_376,
    "partials": 1,
    "partial_bytes": 1024,
}
PLUGINS = {
    "data": [
        {
            "kind": "converter",
            "name": name,
            "target": "smell.work:convert",
            "distribution": "smell",
            "version": "2.1",
            **state,
        }
        for name, state in {
            "smell": {"ok": True},
            "taste": {"ok": False, "reason": "smell 2.1 has no module smell.work"},
        }.items()
    ],
    "tasks": ["txt2embed"],
}
PRUNED = {"dry_run": False, "blobs": 1, "partials": 1, "freed_bytes": 1648}
RECORDED: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/api/v1/models"): (200, page(model())),
    ("POST", "/api/v1/models"): (201, model("registered")),
    ("GET", MODEL_PATH): (200, model()),
    ("PUT", MODEL_PATH): (200, model(display_name="Mini")),
    ("DELETE", MODEL_PATH): (204, None),
    ("POST", f"{MODEL_PATH}/download"): (202, operation()),
    ("GET", OPERATIONS_PATH): (200, page(operation())),
    ("GET", OPERATION_PATH): (200, operation()),
    ("DELETE", OPERATION_PATH): (200, operation("cancelled")),
    ("GET", f"{OPERATION_PATH}/events"): (200, events(operation("running"), operation())),
    ("POST", "/api/v1/catalog/sync"): (200, CATALOG_SYNC),
    ("POST", f"{MODEL_PATH}/load"): (200, LOADED),
    ("POST", f"{MODEL_PATH}/unload"): (200, UNLOADED),
    ("POST", f"{MODEL_PATH}/warmup"): (200, WARM),
    ("POST", "/api/v1/lifecycle/plan"): (200, PLAN),
    ("GET", f"{MODEL_PATH}/versions"): (200, VERSIONS),
    ("GET", f"{MODEL_PATH}/versions/v1"): (200, OLDER),
    ("POST", f"{MODEL_PATH}/versions/v1"): (200, SWITCHED),
    ("DELETE", f"{MODEL_PATH}/versions/v1"): (204, None),
    ("POST", f"{MODEL_PATH}/upgrade"): (
        202,
        {
            "model_id": MINILM,
            "version": "v1",
            "previous_version": "main",
            "status": "downloading",
            "up_to_date": False,
        },
    ),
    ("PUT", f"{MODEL_PATH}/pin"): (200, model(pinned=True)),
    ("DELETE", f"{MODEL_PATH}/pin"): (200, model()),
    ("GET", "/api/v1/models/outdated"): (200, OUTDATED),
    ("POST", INFER_PATH): (200, INFERRED),
    ("GET", "/api/v1/status"): (200, STATUS),
    ("GET", "/api/v1/lifecycle"): (200, LIFECYCLE),
    ("GET", f"{MODEL_PATH}/status"): (200, LOADED),
    ("GET", "/metrics"): (200, METRICS),
    ("GET", "/api/v1/settings"): (200, {"port": 8000, "preload": []}),
    ("GET", "/api/v1/plugins"): (200, PLUGINS),
    ("GET", "/api/v1/cache"): (200, CACHE),
    ("POST", "/api/v1/cache/prune"): (200, PRUNED),
    ("POST", "/api/v1/cache/verify"): (200, {"blobs": 2, "bytes": 1200, "damaged": []}),
    ("GET", "/health"): (200, HEALTH),
    ("GET", "/health/ready"): (200, READY),
    ("GET", "/health/models"): (200, MODELS_HEALTH),
}


def _body(content: bytes, content_type: str) -> Any:
    if not content:
        return None
    return content.decode() if "yaml" in content_type else json.loads(content)


class RestServer:
    """Gives the recorded answers; a test may set others. `requests` is what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers = {key: [answer] for key, answer in RECORDED.items()}
        self._asked = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def set(self, method: str, path: str, *answers: tuple[int, Any]) -> None:
        """Give these answers (status, body) one after the other; the last one stays."""
        self._answers[method, path] = list(answers)

    def wait_for(self, method: str, path: str) -> None:
        """Wait until that request has come."""

        def came() -> bool:
            return any((r.method, r.path) == (method, path) for r in self.requests)

        with self._asked:
            assert self._asked.wait_for(came, 60), f"no {method} {path} came"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: Request) -> tuple[int, Any]:
        with self._asked:
            self.requests.append(request)
            self._asked.notify_all()
        missing = [(404, error("NOT_FOUND", f"There is no {request.path} here."))]
        answers = self._answers.get((request.method, request.path), missing)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length)
                address = urlsplit(self.path)
                request = Request(
                    self.command,
                    address.path,
                    dict(parse_qsl(address.query)),
                    _body(content, self.headers.get("Content-Type") or ""),
                )
                status, body = outer._answer(request)
                text = body if isinstance(body, bytes) else json.dumps(body).encode()
                payload = b"" if body is None else text
                self.send_response(status)
                streamed = isinstance(body, EventStream)
                kind = "text/event-stream" if streamed else "application/json"
                self.send_header("Content-Type", kind)
                if status != 204:
                    self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
