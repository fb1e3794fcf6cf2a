"""Vectors of pictures per second: CLIP ViT-B/32 in Triton beside transformers in this process.

The model has the published one's size and random weights, so that nothing is downloaded; pictures
are JPEG files of 640 x 480. Building and converting it take minutes, once: `--folder` keeps both.
Clients run in this process, on the same cores as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import structlog
import tritonclient.grpc as tensors
import tritonclient.grpc.aio as triton_grpc
from PIL import Image

from benchmarks import setting
from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from tests import image_models
from tests.awkward_images import encoded, pixels
from tests.served import convert

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = ModelId.parse("benchmarks/clip-vit-base-patch32")
ENGINES = ("onnxruntime", "openvino")
IN_FLIGHT = (1, 4, 16, 64)
BATCH = 32
SIZE = (640, 480)


def prepare(folder: Path, engine: str) -> Path:
    """The artefact for an engine, built where it is not there yet."""
    source, artefact = folder / "source", folder / engine
    if not source.exists():
        image_models.clip_of_published_size(source)
    if not artefact.exists():
        manifest = convert("img2embed", source, artefact, "--engine", engine)
        for entry in manifest["candidates"]:
            print(entry)
    return artefact


def jpegs(count: int) -> list[bytes]:
    """Different pictures."""
    made = (Image.fromarray(pixels(*SIZE, seed=seed)) for seed in range(count))
    return [encoded(image, "JPEG", quality=85) for image in made]


class Transformers:
    """The processor and the model, as their documentation uses them, in fp32."""

    def __init__(self, source: Path) -> None:
        import transformers

        self._processor = transformers.AutoImageProcessor.from_pretrained(source)
        self._model = transformers.CLIPModel.from_pretrained(source).eval()

    def vectors(self, files: Sequence[bytes]) -> np.ndarray[Any, Any]:
        """Vectors of one batch."""
        import torch

        images = [Image.open(io.BytesIO(file)) for file in files]
        with torch.inference_mode():
            given = self._processor(images=images, return_tensors="pt")
            found: np.ndarray[Any, Any] = self._model.get_image_features(**given).pooler_output
        return np.asarray(found)

    def per_second(self, files: Sequence[bytes], batch: int, seconds: float) -> float:
        """Pictures per second in batches of that size."""
        self.vectors(files[:batch])
        count, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            self.vectors(files[:batch])
            count += batch
        return count / passed


class Served:
    """The model in a Triton of its own."""

    def __init__(self, artefact: Path, home: Path) -> None:
        self._home, self._server = home, EmbeddedTriton(home / "repository", home / "state")
        self._repository = ModelRepository(home / "repository")
        copy = home / "copy"
        shutil.copytree(artefact, copy, copy_function=os.link)
        self._repository.publish(MODEL, 1, copy)

    async def __aenter__(self) -> Served:
        await self._server.start()
        client = TritonClient(self._server.endpoints)
        config = self._repository.load_config(MODEL.triton_name, 1)
        await client.load(MODEL.triton_name, config, timeout=120)
        await client.close()
        self._client = triton_grpc.InferenceServerClient(self._server.endpoints.grpc_url)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()
        await self._server.stop()

    async def vectors(self, files: Sequence[bytes]) -> np.ndarray[Any, Any]:
        """Vectors of one request."""
        tensor = tensors.InferInput("image_input", [len(files), 1], "BYTES")
        rows = np.empty((len(files), 1), dtype=np.object_)
        rows[:, 0] = files
        tensor.set_data_from_numpy(rows)
        answer = await self._client.infer(MODEL.triton_name, [tensor])
        found: np.ndarray[Any, Any] = answer.as_numpy(setting.OUTPUT)
        return found

    async def per_second(
        self, files: Sequence[bytes], in_flight: int, seconds: float, batch: int = 1
    ) -> tuple[float, list[float]]:
        """Pictures per second with so many requests in flight, and each one's seconds."""
        await asyncio.gather(*(self.vectors(files[:batch]) for _ in range(min(4, in_flight))))
        latencies: list[float] = []
        begun = time.perf_counter()

        async def ask(number: int) -> None:
            while time.perf_counter() - begun < seconds:
                asked = time.perf_counter()
                await self.vectors([files[(number + i) % len(files)] for i in range(batch)])
                latencies.append(time.perf_counter() - asked)

        await asyncio.gather(*map(ask, range(in_flight)))
        return len(latencies) * batch / (time.perf_counter() - begun), latencies

    def memory_mb(self) -> float:
        """Of the model's process."""
        (pid,) = self._server.stub_pids(MODEL.triton_name, 1)
        return setting.pss_mb(psutil.Process(pid))


async def measure(engine: str, artefact: Path, own: Transformers, options: Any) -> None:
    """Print an engine's table. Both take turns, so that whatever else the machine does meets
    both; ratios are of one round."""
    files, workloads = jpegs(BATCH), [*((n, 1) for n in IN_FLIGHT), (1, BATCH)]
    rows = []
    with tempfile.TemporaryDirectory(dir=artefact.parent) as home:
        async with Served(artefact, Path(home)) as served:
            for in_flight, batch in workloads:
                # Who asks for one after another has no batch to give to transformers either.
                compared = 1 if in_flight * batch == 1 else BATCH
                rounds = []
                for _ in range(options.rounds):
                    base = own.per_second(files, compared, options.seconds)
                    found, times = await served.per_second(files, in_flight, options.seconds, batch)
                    rounds.append((found, base, times))
                rows.append([_name(in_flight, batch), *_row(rounds)])
            memory = served.memory_mb()
    header = ["workload", "pictures/s", "transformers", "ratio", "p50 ms", "p99 ms"]
    setting.print_table(f"{engine}; stub {memory:.0f} MB", header, rows)


def _name(in_flight: int, batch: int) -> str:
    return f"{in_flight} in flight" if batch == 1 else f"one request of {batch}"


def _row(rounds: Sequence[tuple[float, float, list[float]]]) -> list[str]:
    times = [time for _, _, of_round in rounds for time in of_round]
    return [
        f"{statistics.median(found for found, _, _ in rounds):.1f}",
        f"{statistics.median(base for _, base, _ in rounds):.1f}",
        f"{statistics.median(found / base for found, base, _ in rounds):.2f}",
        *(f"{setting.percentile_ms(times, percent):.0f}" for percent in (50, 99)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keeps the model and its artefacts")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="build and convert only")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="modelmora-bench-") as scratch:
        folder = options.folder or Path(scratch)
        artefacts = {engine: prepare(folder, engine) for engine in ENGINES}
        if options.prepare:
            return
        setting.print_machine()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        own = Transformers(folder / "source")
        for engine, artefact in artefacts.items():
            asyncio.run(measure(engine, artefact, own, options))


if __name__ == "__main__":
    main()
