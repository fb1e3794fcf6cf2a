"""Artefacts of the real converters, published into the session's Triton and asked."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.registry.model import ModelId
from controlplane.registry.repository import ModelRepository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton


def convert(task: str, source: Path, output: Path, *options: str) -> dict[str, Any]:
    """Convert as the control plane does, in this process; the manifest.

    AssertionError holds the error line.
    """
    from converters.__main__ import main

    out = io.StringIO()
    command = ["convert", "--task", task, "--source", str(source), "--output", str(output)]
    code = main([*command, "--model-id", "org/name", *options], out)
    last: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    assert code == 0, last
    manifest: dict[str, Any] = last["manifest"]
    return manifest


def refusal(task: str, source: Path, output: Path, *options: str) -> dict[str, Any]:
    """The error line of a conversion that must fail."""
    try:
        convert(task, source, output, *options)
    except AssertionError as error:
        line: dict[str, Any] = error.args[0]
        return line
    raise AssertionError("it was converted")


def byte_rows(items: Iterable[str | bytes], *, batch: bool) -> np.ndarray[Any, Any]:
    """A BYTES tensor, [n, 1] for a model that batches, else [1]."""
    raw = [item.encode() if isinstance(item, str) else item for item in items]
    array = np.empty((len(raw), 1) if batch else (len(raw),), dtype=np.object_)
    array.reshape(-1)[:] = raw
    return array


class Served:
    """One model in the server."""

    def __init__(self, name: str, artefact: Path, triton: BackgroundTriton, client: TritonClient):
        self.id = ModelId.parse(f"pipeline-tests/{name}")
        self.name = self.id.triton_name
        self.client = client
        self.triton = triton
        self.repository = ModelRepository(triton.repository)
        copy = artefact.parent / f"published-{name}"
        shutil.copytree(artefact, copy)
        self.repository.publish(self.id, 1, copy)
        self.manifest = self.repository.manifest(self.name, 1)
        self.batch = self.manifest["max_batch_size"] > 0

    async def load(self) -> None:
        await self.client.load(self.name, self.repository.load_config(self.name, 1), timeout=120)

    async def infer(
        self, inputs: dict[str, list[str | bytes]], **parameters: Any
    ) -> dict[str, np.ndarray[Any, Any]]:
        """One request to a model with one response."""
        return await self.client.infer(
            self.name,
            1,
            {name: byte_rows(items, batch=self.batch) for name, items in inputs.items()},
            [tensor["name"] for tensor in self.manifest["outputs"]],
            timeout=60,
            parameters=parameters,
        )

    def stream(
        self, inputs: dict[str, list[str | bytes]], **parameters: Any
    ) -> AsyncIterator[dict[str, np.ndarray[Any, Any]]]:
        """One request to a decoupled model; its responses."""
        rows = {name: byte_rows(items, batch=self.batch) for name, items in inputs.items()}
        return self.client.stream(self.name, 1, rows, timeout=60, parameters=parameters)

    def pid(self) -> int:
        (pid,) = self.triton.server.stub_pids(self.name, 1)
        return pid


@contextlib.asynccontextmanager
async def served(
    name: str, artefact: Path, triton: BackgroundTriton, client: TritonClient
) -> AsyncIterator[Served]:
    """A model that is loaded, and gone afterwards: its process too.

    Unloaded as the product does it: Triton 2.51 at times keeps a response of a cancelled stream,
    and with it the model, until its process is killed.
    """
    from controlplane.lifecycle.memory import alive
    from controlplane.lifecycle.unloading import Unloading

    model = Served(name, artefact, triton, client)
    unloading = Unloading(client, triton.server, model.repository)
    try:
        await model.load()
        unloading.note_process((model.name, 1))
        pid = model.pid()
        yield model
    finally:
        await unloading.unload(model.name, 1, timeout=10)
        model.repository.remove(model.id)
    assert not alive(pid)
