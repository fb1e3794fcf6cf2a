"""Locks: `lock --check` of many models as a whole command, `verify` at the speed of sha256."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import setting
from controlplane.db import open_db
from controlplane.events import EventBus
from controlplane.registry.files import SourceFile, source_checksum
from controlplane.registry.model import NewModel
from controlplane.registry.store import ModelStore
from controlplane.triton import model_config
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMIT = "c" * 40
_FILES_PER_MODEL = 12  # as many as a sentence-transformers model has
_PARTS = 4
_MB = 2**20


def manifest(made: Sequence[SourceFile]) -> dict[str, Any]:
    """As much of a converter's as locks and Triton want."""
    return {
        "backend": "text_embedding",
        "engine": "onnxruntime",
        "precision": "fp32",
        "max_batch_size": 8,
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [384]}],
        "converter": {"modelmora": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in made],
    }


def publish(folder: Path, made: Sequence[SourceFile]) -> None:
    """What a published version has beside its files; the files are there already."""
    facts = manifest(made)
    (folder / "manifest.json").write_text(json.dumps(facts))
    config = model_config.build_model_config(folder.parent.name, int(folder.name), facts)
    for place in (folder, folder.parent):
        (place / "config.pbtxt").write_text(model_config.to_pbtxt(config))


def add_ready(
    store: ModelStore, model_id: str, files: Sequence[SourceFile], made: Sequence[SourceFile]
) -> None:
    """Take a model for installed from these files."""
    store.register(NewModel(model_id=model_id, task_type="txt2embed"))
    store.set_status(model_id, "main", "downloading")
    uri = f"https://huggingface.co/{model_id}/tree/{_COMMIT}"
    checksum = source_checksum(files)
    store.pin(model_id, "main", revision=_COMMIT, checksum=checksum, artifact_uri=uri, files=files)
    store.set_status(model_id, "main", "exporting")
    store.mark_ready(
        model_id,
        "main",
        manifest=manifest(made),
        artefact_bytes=sum(file.size for file in made),
        artefact_checksum=source_checksum(made),
    )


def fill(service: Service, count: int) -> None:
    """`count` ready models with the digests of their files; the files are not there."""
    db = open_db(service.data_dir / "modelmora.db")
    store = ModelStore(db, EventBus())
    for number in range(count):
        names = [f"file-{n:02}.json" for n in range(_FILES_PER_MODEL)]
        files = [
            SourceFile(name, 1000 + n, hashlib.sha256(f"{number} {name}".encode()).hexdigest())
            for n, name in enumerate(names)
        ]
        add_ready(store, f"org-{number % 10}/model-{number}", files, files[:3])
        folder = service.model_repository / f"org-{number % 10}--model-{number}" / "1"
        folder.mkdir(parents=True)
        for file in files[:3]:
            (folder / file.path).write_bytes(b"x" * file.size)
        publish(folder, files[:3])
    db.close()


def write_model(service: Service, megabytes: int) -> None:
    """One ready model of that size: half of it source, half artefact, each in several files."""
    place = Path("org--large") / "1"
    size = megabytes * _MB // (2 * _PARTS)
    found: list[list[SourceFile]] = []
    for root in (service.data_dir / "downloads", service.model_repository):
        folder = root / place
        folder.mkdir(parents=True)
        found.append([])
        for number in range(_PARTS):
            content = os.urandom(_MB) * (size // _MB)
            path = f"part-{number}.safetensors"
            (folder / path).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            found[-1].append(SourceFile(path, len(content), digest))
    publish(service.model_repository / place, found[1])
    db = open_db(service.data_dir / "modelmora.db")
    add_ready(ModelStore(db, EventBus()), "org/large", *found)
    db.close()


def seconds_of(service: Service, *arguments: str) -> float:
    """A command from its start to its end."""
    environment = {**os.environ, "MODELMORA_URL": service.url}
    command = [sys.executable, "-m", "controlplane", *arguments]
    begun = time.perf_counter()
    subprocess.run(
        command,
        cwd=service.home,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begun


def check_rows(count: int, repeats: int) -> list[list[object]]:
    """`lock` and `lock --check`; rows of a table."""
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as home:
        service = Service(Path(home), LOG_LEVEL="WARNING")
        fill(service, count)
        try:
            service.start()
            rows: list[list[object]] = [["`lock`, written", f"{seconds_of(service, 'lock'):.2f} s"]]
            size = (service.home / "modelmora.lock").stat().st_size
            taken = sorted(seconds_of(service, "lock", "--check") for _ in range(repeats))
        finally:
            service.end()
    rows[0].append(f"{size / 1000:.0f} kB")
    median = f"{taken[len(taken) // 2]:.2f} s"
    return [
        *rows,
        ["`lock --check`, median", median, "< 1 s"],
        ["slowest", f"{taken[-1]:.2f} s", ""],
    ]


def verify_rows(megabytes: int) -> list[list[object]]:
    """`verify` beside sha256 alone; rows of a table."""
    content = os.urandom(_MB)
    digest, begun = hashlib.sha256(), time.perf_counter()
    for _ in range(512):
        digest.update(content)
    alone = 512 / (time.perf_counter() - begun)
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as home:
        service = Service(Path(home), LOG_LEVEL="WARNING")
        write_model(service, megabytes)
        try:
            service.start()
            seconds_of(service, "lock")
            whole = min(seconds_of(service, "verify") for _ in range(3))
        finally:
            service.end()
    return [
        ["sha256 of memory, one thread", f"{alone:.0f} MB/s", ""],
        [f"`verify` of {megabytes} MB, the command", f"{whole:.2f} s", ""],
        ["that is", f"{megabytes / whole:.0f} MB/s", f"{os.cpu_count()} cores hash"],
    ]


def tables(count: int, megabytes: int, repeats: int) -> None:
    """Measure and print."""
    rows = check_rows(count, repeats)
    setting.print_table(f"A lock of {count} models", ["what", "found", "aim"], rows)
    setting.print_table(
        "Verifying files in the page cache", ["what", "found", ""], verify_rows(megabytes)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.locks`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    setting.print_machine()
    tables(options.models, options.megabytes, options.repeats)


if __name__ == "__main__":
    main()
