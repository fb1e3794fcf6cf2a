"""FakeTriton: TritonClient's methods without a server.

Kept honest by tests/contract/test_triton.py, which both pass. It is its own model repository:
`fake.models` has the verbs of `tests.triton_models.TritonModels`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from controlplane.triton.client import IndexEntry
from controlplane.triton.failures import (
    ModelFailed,
    ModelUnknown,
    RequestRejected,
    TritonTimeout,
    TritonUnavailable,
)

if TYPE_CHECKING:
    from controlplane.triton.server import Endpoints

Arrays = Mapping[str, Any]
Answer = Callable[[Arrays], dict[str, Any]]


class FakeModel(msgspec.Struct):
    """What a model does, and how far Triton has got with it.

    Attributes:
        load_seconds, infer_seconds: how long each takes.
        load_error: text of the exception that its `initialize` raises.
        states: version number -> (state, reason), as the index tells them.
    """

    answer: Answer
    versions: set[int]
    load_seconds: float = 0.0
    infer_seconds: float = 0.0
    load_error: str | None = None
    dead: bool = False
    inferences: int = 0
    answered: int = 0
    states: dict[int, tuple[str, str]] = {}
    loading: asyncio.Task[None] | None = None


def echo(inputs: Arrays) -> dict[str, Any]:
    """Answers with what it was sent."""
    text = inputs["text_input"]
    number = inputs.get("number", np.zeros((len(text), 1), np.float32))
    return {"text_output": text, "number_output": number}


class FakeModels:
    """The repository of a FakeTriton."""

    def __init__(self) -> None:
        self.by_name: dict[str, FakeModel] = {}
        self._numbers = itertools.count(1)

    def add(
        self, name: str | None = None, *, version: int = 1, answer: Answer = echo, **traits: Any
    ) -> str:
        """Add a version of a model and return its name (default: one never used before)."""
        name = name or f"test--fake-{next(self._numbers)}"
        model = self.by_name.setdefault(name, FakeModel(answer=answer, versions=set(), **traits))
        model.versions.add(version)
        return name

    def echo(self, name: str | None = None, *, version: int = 1) -> str:
        return self.add(name, version=version)

    def failing(self, text: str = "no weights here") -> str:
        return self.add(load_error=text)

    def hanging(self, seconds: float = 120.0) -> str:
        return self.add(load_seconds=seconds)

    def slow(self, seconds: float = 0.5) -> str:
        return self.add(infer_seconds=seconds)


class FakeTriton:
    """Stands in for a TritonClient and the server behind it.

    Attributes:
        up: set to False, every call raises TritonUnavailable.
        calls: (method, model name) of every load, unload and infer, in order.
    """

    def __init__(self) -> None:
        self.models = FakeModels()
        self.up = True
        self.calls: list[tuple[str, str]] = []

    async def close(self) -> None:
        tasks = [m.loading for m in self.models.by_name.values() if m.loading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reconnect(self, endpoints: Endpoints) -> None:
        """Nothing to do: there is no channel."""

    async def live(self, timeout: float = 2.0) -> bool:
        return self.up

    async def ready(self, timeout: float = 2.0) -> bool:
        return self.up

    async def index(self) -> list[IndexEntry]:
        self._check_up()
        entries = []
        for name, model in self.models.by_name.items():
            if not model.states:
                entries.append(IndexEntry(name, None, "", ""))
            entries += [IndexEntry(name, v, *state) for v, state in model.states.items()]
        return entries

    async def load(self, name: str, config_json: str | None = None, *, timeout: float) -> None:
        self._enter("load", name)
        model = self.models.by_name.get(name)
        if model is None:
            raise ModelUnknown(f"failed to load '{name}', failed to poll from model repository")
        versions = _wanted_versions(model, config_json)
        ready = {v for v, (state, _) in model.states.items() if state == "READY"}
        if ready == versions:
            return  # a load of a loaded model does nothing
        model.loading = asyncio.ensure_future(self._load(model, versions))
        try:
            await asyncio.wait_for(asyncio.shield(model.loading), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise TritonTimeout(f"{name} was not loaded within {timeout:g} s") from None
        if model.load_error is not None:
            raise ModelFailed(f"load failed for model '{name}': Internal: {model.load_error}")

    async def _load(self, model: FakeModel, versions: set[int]) -> None:
        fresh = {v for v in versions if model.states.get(v, ("", ""))[0] != "READY"}
        model.states |= dict.fromkeys(fresh, ("LOADING", ""))
        await asyncio.sleep(model.load_seconds)
        state = ("READY", "")
        if model.load_error is not None:
            state = ("UNAVAILABLE", f"Internal: {model.load_error}")
        if fresh:
            model.dead = False
            model.inferences = model.answered = 0
        if model.load_error is None:  # else what served before goes on serving
            gone = {v: ("UNAVAILABLE", "unloaded") for v in model.states if v not in versions}
            model.states |= gone
        model.states |= dict.fromkeys(fresh, state)

    async def unload(self, name: str, *, timeout: float) -> None:
        self._enter("unload", name)
        model = self.models.by_name.get(name)
        if model is None:
            return
        if model.loading is not None and not model.loading.done():
            # The real server answers an unload only when the load has ended.
            await asyncio.wait({model.loading}, timeout=timeout)
            if not model.loading.done():
                raise TritonTimeout(f"no answer within {timeout:g} s")
        model.states = dict.fromkeys(model.states, ("UNAVAILABLE", "unloaded"))

    async def unload_version(
        self, name: str, version: int, rest_config_json: str, *, timeout: float
    ) -> None:
        await self.load(name, rest_config_json, timeout=timeout)

    async def ready_versions(self, name: str) -> set[int]:
        return {
            entry.version
            for entry in await self.index()
            if entry.name == name and entry.state == "READY" and entry.version is not None
        }

    async def infer(
        self,
        name: str,
        version: int,
        inputs: Arrays,
        outputs: Sequence[str],
        *,
        timeout: float,
        priority: int = 0,
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        self._enter("infer", name)
        model = self._loaded(name, version)
        if model.infer_seconds >= timeout:
            await asyncio.sleep(timeout)
            raise TritonTimeout("Deadline Exceeded")
        await asyncio.sleep(model.infer_seconds)
        self._check_up()
        if model.dead:
            raise ModelFailed(f"Stub process '{name}_0_0' is not healthy.")
        if "text_input" not in inputs:
            raise RequestRejected(f"expected 1 inputs but got 0 inputs for model '{name}'")
        if len(inputs["text_input"]) == 0:
            raise RequestRejected("expected 1 string elements for inference input 'text_input'")
        answer = model.answer(_as_received(inputs))
        if missing := [output for output in outputs if output not in answer]:
            raise RequestRejected(f"unexpected inference output '{missing[0]}' for model '{name}'")
        model.inferences += len(inputs["text_input"])
        model.answered += 1
        return {output: answer[output] for output in outputs}

    async def statistics(self, name: str, version: int) -> dict[str, Any]:
        self._check_up()
        return _statistics(name, version, self._loaded(name, version))

    async def all_statistics(self) -> dict[tuple[str, int], dict[str, Any]]:
        self._check_up()
        return {
            (name, version): _statistics(name, version, model)
            for name, model in self.models.by_name.items()
            for version, (state, _) in model.states.items()
            if state == "READY"
        }

    async def metadata(self) -> dict[str, Any]:
        self._check_up()
        return {"name": "fake", "version": "0", "extensions": []}

    def _loaded(self, name: str, version: int) -> FakeModel:
        model = self.models.by_name.get(name)
        if model is None or model.states.get(version, ("", ""))[0] != "READY":
            raise ModelUnknown(f"Request for unknown model: '{name}' version {version}")
        return model

    def _enter(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        self._check_up()

    def _check_up(self) -> None:
        if not self.up:
            raise TritonUnavailable("failed to connect to all addresses")


def _statistics(name: str, version: int, model: FakeModel) -> dict[str, Any]:
    return {
        "name": name,
        "version": str(version),
        "inference_count": str(model.inferences),
        "inference_stats": {"success": {"count": str(model.answered)}},
    }


def _wanted_versions(model: FakeModel, config_json: str | None) -> set[int]:
    if config_json is None:
        return {max(model.versions)}
    policy = msgspec.json.decode(config_json)["version_policy"]
    return {int(version) for version in policy["specific"]["versions"]}


def _as_received(inputs: Arrays) -> Arrays:
    """BYTES tensors arrive as bytes, also when they were sent as text."""
    return {
        name: _encoded(array) if array.dtype == np.object_ else array
        for name, array in inputs.items()
    }


def _encoded(array: Any) -> Any:
    items = [item.encode() if isinstance(item, str) else item for item in array.ravel()]
    return np.array(items, dtype=object).reshape(array.shape)
