"""Memory of one engine under many different mixed requests: the very backend code, in this process.

`benchmarks.engines --soak` does the same through the gateway, with the machine to itself. This one
needs no server, so that it can run for hours below everything else (`nice -n 19`), be stopped and
continued by signals, and says at marks where it is. Run one process per engine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from backends.text_embedding.embedder import Embedder
from backends.text_embedding.requests import EmbeddingRequest
from benchmarks import setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LARGEST = 32


def mixed_requests(random: np.random.Generator) -> Iterator[EmbeddingRequest]:
    """Requests of 1 to 32 mixed texts, as many small ones as large ones (log-uniform)."""
    while True:
        count = int(np.exp(random.uniform(0, np.log(_LARGEST + 1))))
        yield EmbeddingRequest(tuple(setting.mixed_texts(random, count)), normalize=False)


def served_by(artefact: Path, engine: str, precision: str, folder: Path) -> Path:
    """A copy of the artefact as if that engine had been chosen."""
    shutil.copytree(artefact, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = manifest | {"engine": engine, "precision": precision}
    (folder / "manifest.json").write_text(json.dumps(changed))
    return folder


def soak(embedder: Embedder, count: int, marks: int) -> None:
    """Run `count` requests; one row per mark."""
    process = psutil.Process()
    header = ["requests", "texts", "processor s", "RSS MB", "largest RSS MB"]
    setting.print_table("Resident memory after mixed requests", header, [])
    texts, largest, begun = 0, 0.0, time.process_time()
    setting.print_row([0, 0, 0, f"{setting.rss_mb(process):.0f}", ""])
    requests = mixed_requests(np.random.default_rng(1))
    for number in range(1, count + 1):
        request = next(requests)
        embedder.embed([request])
        texts += len(request.texts)
        now = setting.rss_mb(process)
        largest = max(largest, now)
        # after 1, 2, 5, 10, ... too: where it grows, it does so at first
        if number % max(1, count // marks) == 0 or number in (10, 100, 300, 1000):
            busy = time.process_time() - begun
            setting.print_row([number, texts, f"{busy:.0f}", f"{now:.0f}", f"{largest:.0f}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.soak`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path, help="a version folder of a text-embedding model")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--marks", type=int, default=10)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="modelmora-soak-") as place:
        folder = served_by(
            options.artefact, options.engine, options.precision, Path(place) / "version"
        )
        print(f"{options.engine} {options.precision}")
        soak(Embedder.open(folder), options.requests, options.marks)


if __name__ == "__main__":
    main()
