"""The registry at 10,000 models with 3 versions each: store, REST and start-up; locks."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from benchmarks import locks, setting
from controlplane.db import append_event, open_db, transaction
from controlplane.event_log import EventFilter
from controlplane.events import EventBus, ModelUnregistered, utc_now
from controlplane.migrations.m0001_registry import DEFAULT_CATALOG_ID
from controlplane.moments import to_text
from controlplane.registry.model import ModelChange, ModelId
from controlplane.registry.recovery import recover
from controlplane.registry.repository import ModelRepository
from controlplane.registry.store import ModelStore
from controlplane.triton import model_config
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlite_utils import Database

VERSIONS = ("main", "v1.0.0", "v2.0.0")
EVENTS_PER_MODEL = 10
CHECKSUM = "sha256:" + "0" * 64
STORE_AIM, REST_AIM = "< 5 ms", "< 10 ms"
_WORDS = ("sentence", "mini", "bert", "large", "multilingual", "tiny", "distil", "base", "qa", "e5")


def model_name(number: int) -> str:
    """Names spread over 100 organizations, as a hub's are."""
    words = (_WORDS[number % 10], _WORDS[number // 10 % 10], _WORDS[number // 100 % 10])
    return f"org-{number % 100}/{'-'.join(words)}-{number}"


def manifest(name: str) -> dict[str, Any]:
    """As long as a converter's."""
    files = [{"path": f"file-{n}.json", "size": 0, "sha256": "0" * 64} for n in range(3)]
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1]}
    embedding = {"name": "embedding", "datatype": "FP32", "shape": [384]}
    return {
        "format": 1, "model_id": name, "version": "main", "revision": "c" * 40,
        "source_checksum": CHECKSUM, "task_type": "txt2embed", "backend": "text_embedding",
        "engine": "onnxruntime", "precision": "fp32", "inputs": [tensor], "outputs": [embedding],
        "max_batch_size": 32, "files": files,
        "text_embedding": {"dimension": 384, "max_seq_length": 256, "prompts": {}},
        "parity": {"reference": "pytorch fp32", "texts": 40, "min_cosine": 0.9999999},
        "parameters": 22713216, "dtype": "float32",
        "converter": {"modelmora": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }  # fmt: skip


def fill(db: Database, count: int) -> None:
    """`count` models, the current version of each ready, in one transaction."""
    now = to_text(utc_now())
    ids = [str(uuid.uuid4()) for _ in range(count)]
    models = (
        (ids[n], DEFAULT_CATALOG_ID, model_name(n), "txt2embed", "main", f"Model {n}", now, now)
        for n in range(count)
    )
    versions = (
        _version(ids[n], model_name(n), number, now)
        for n, number in itertools.product(range(count), range(len(VERSIONS)))
    )
    events = (
        (str(uuid.uuid4()), f"model.kind{k}", DEFAULT_CATALOG_ID, "model_catalog",
         json.dumps({"model_id": model_name(n), "version": "main"}), now)
        for n, k in itertools.product(range(count), range(EVENTS_PER_MODEL))
    )  # fmt: skip
    with transaction(db):
        _insert(db, "model", "id, catalog_id, model_id, task_type, current_version, display_name,"
                " created_at, updated_at", models)  # fmt: skip
        _insert(db, "model_version", "id, model_id, version, status, triton_version, checksum,"
                " artifact_uri, backend, engine, resource_requirements, artefact, created_at,"
                " updated_at", versions)  # fmt: skip
        _insert(db, "event_store", "event_id, event_type, aggregate_id, aggregate_type, payload,"
                " timestamp", events)  # fmt: skip


def _version(row_id: str, name: str, number: int, now: str) -> tuple[Any, ...]:
    ready = number == 0
    return (
        str(uuid.uuid4()), row_id, VERSIONS[number], "ready" if ready else "registered", number + 1,
        CHECKSUM if ready else None, "file:///m" if ready else None,
        "text_embedding" if ready else None, "onnxruntime" if ready else None,
        '{"memory_mb":300,"gpu_vram_mb":0,"cpu_threads":4,"gpu_count":0}' if ready else None,
        json.dumps(manifest(name)) if ready else None, now, now,
    )  # fmt: skip


def _insert(db: Database, table: str, columns: str, rows: Iterator[tuple[Any, ...]]) -> None:
    marks = ", ".join("?" for _ in columns.split(","))
    db.conn.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


def make_files(root: Path, count: int) -> None:
    """The folders of the ready versions, as the repository writes them, without weights."""
    for number in range(count):
        name = ModelId.parse(model_name(number)).triton_name
        folder = root / name / "1"
        folder.mkdir(parents=True)
        content = manifest(model_name(number))
        (folder / "manifest.json").write_text(json.dumps(content))
        for entry in content["files"]:
            (folder / entry["path"]).touch()
        text = model_config.to_pbtxt(model_config.build_model_config(name, 1, content))
        (folder / "config.pbtxt").write_text(text)
        (folder.parent / "config.pbtxt").write_text(text)


def samples(call: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls with 0, 1, …; some before are not counted."""
    found = []
    for number in range(-5, repeats):
        begun = time.perf_counter()
        call(number + 5)
        if number >= 0:
            found.append(time.perf_counter() - begun)
    return found


def row(what: str, seconds: Sequence[float], aim: str) -> list[object]:
    median, p99 = (setting.percentile_ms(seconds, percent) for percent in (50, 99))
    return [what, f"{median:.2f} ms", f"{p99:.2f} ms", aim]


def store_rows(store: ModelStore, db: Database, count: int, repeats: int) -> list[list[object]]:
    """The store's operations; rows of a table."""
    pick = np.random.default_rng(7).integers(0, count, repeats + 10).tolist()
    log, pages = store.event_log, count // 20

    def append(_: int) -> None:
        with transaction(db):
            append_event(db, ModelUnregistered(aggregate_id=DEFAULT_CATALOG_ID, model_id="a/b"))

    calls: dict[str, Callable[[int], object]] = {
        "list, page of 20": lambda _: store.list(),
        "list, page of 100": lambda _: store.list(page_size=100),
        "list, some page of 20": lambda n: store.list(page=1 + pick[n] % pages),
        "list, status=ready": lambda _: store.list(status="ready"),
        "list, task and status": lambda _: store.list(task_type="txt2embed", status="failed"),
        "get": lambda n: store.get(model_name(pick[n])),
        "search, many hits": lambda _: store.list(search_text="bert"),
        "search, one hit": lambda n: store.list(search_text=f"-{pick[n]}"),
        "search, no hit": lambda _: store.list(search_text="nothing of this"),
        "update": lambda n: store.update(
            model_name(pick[n]), ModelChange(description=f"changed {n}")
        ),
        "event append": append,
        "record memory": lambda n: store.record_memory(
            store.get(model_name(pick[n])).current.id, 1.0 + n
        ),
        "events, latest 20": lambda _: log.page(EventFilter()),
        "events of a model": lambda n: log.page(EventFilter(model_id=model_name(pick[n]))),
        "events of a type": lambda _: log.page(EventFilter(event_type="model.kind3")),
        "events of model.*": lambda _: log.page(EventFilter(event_type="model.*")),
        "events after a cursor": lambda n: log.after(pick[n], EventFilter(event_type="model.*")),
    }
    return [row(name, samples(call, repeats), STORE_AIM) for name, call in calls.items()]


def rest_rows(url: str, count: int, repeats: int) -> list[list[object]]:
    """The same over HTTP, one request after the other; rows of a table."""
    pick = np.random.default_rng(8).integers(0, count, repeats + 10).tolist()
    with httpx.Client(base_url=f"{url}/api/v1", trust_env=False) as http:

        def get(path: str, **params: Any) -> None:
            http.get(path, params=params).raise_for_status()

        def put(number: int) -> None:
            body = {"description": f"changed over REST {number}"}
            http.put(f"/models/{model_name(pick[number])}", json=body).raise_for_status()

        calls: dict[str, Callable[[int], object]] = {
            "list, page of 20": lambda _: get("/models"),
            "list, page of 100": lambda _: get("/models", page_size=100),
            "list, status=ready": lambda _: get("/models", status="ready"),
            "get": lambda n: get(f"/models/{model_name(pick[n])}"),
            "search, many hits": lambda _: get("/models", search_text="bert"),
            "search, one hit": lambda n: get("/models", search_text=f"-{pick[n]}"),
            "update (with its event)": put,
            "events, latest 20": lambda _: get("/events"),
            "status": lambda _: get("/status"),
        }
        return [row(name, samples(call, repeats), REST_AIM) for name, call in calls.items()]


def start_rows(service: Service) -> list[list[object]]:
    """Opening and recovering in this process; rows of a table."""
    begun = time.perf_counter()
    db = open_db(service.data_dir / "modelmora.db")
    opened = time.perf_counter()
    store = ModelStore(db, EventBus())
    recover(store, ModelRepository(service.model_repository), service.data_dir / "downloads")
    recovered = time.perf_counter()
    db.close()
    return [
        ["open the database", f"{opened - begun:.2f} s", ""],
        ["compare rows and files", f"{recovered - opened:.2f} s", ""],
        ["both", f"{recovered - begun:.2f} s", "< 2 s"],
    ]


def ready_seconds(service: Service) -> float:
    begun = time.perf_counter()
    service.start()
    with service.client() as client:
        client.wait_until_ready(60)
    return time.perf_counter() - begun


@contextlib.contextmanager
def filled(count: int) -> Iterator[Service]:
    """A service that is not started, on a filled data directory."""
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as home:
        service = Service(Path(home), LOG_LEVEL="WARNING")
        db = open_db(service.data_dir / "modelmora.db")
        fill(db, count)
        db.close()
        make_files(service.model_repository, count)
        try:
            yield service
        finally:
            service.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.registry`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--no-server", action="store_true", help="store and files only")
    options = parser.parse_args(arguments)
    setting.print_machine()
    title = f"{options.models} models, {len(VERSIONS)} versions each"
    header = ["what", "median", "p99", "aim"]
    with filled(options.models) as service:
        path = service.data_dir / "modelmora.db"
        print(f"The database has {path.stat().st_size / 2**20:.0f} MB.")
        begun = time.perf_counter()
        start_rows(service)
        taken = time.perf_counter() - begun
        time.sleep(3)  # longer than the slack within which a file counts as just written
        start_rows(service)
        first = [["first start: every manifest is read", f"{taken:.2f} s", ""]]
        rows = [*first, *start_rows(service)]
        setting.print_table(f"Start: {title}", ["what", "found", "aim"], rows)
        db = open_db(path)
        store = ModelStore(db, EventBus())
        rows = store_rows(store, db, options.models, options.repeats)
        db.close()
        setting.print_table(f"Store: {title}", header, rows)
        if not options.no_server:
            seconds = ready_seconds(service)
            start = [["`serve` ready, Triton included", f"{seconds:.2f} s", ""]]
            setting.print_table("Start of the service", ["what", "found", "aim"], start)
            rows = rest_rows(service.url, options.models, options.repeats)
            setting.print_table(f"REST: {title}", header, rows)
    if not options.no_server:
        locks.tables(count=100, megabytes=2048, repeats=15)


if __name__ == "__main__":
    main()
