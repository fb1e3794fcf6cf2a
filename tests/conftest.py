"""Fixtures for all tests: a real embedded Triton with a repository of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from controlplane.lifecycle.unloading import Unloading
from controlplane.registry.repository import ModelRepository
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded import EmbeddedTriton
from controlplane.triton.failures import TritonTimeout
from tests import forking, measuring, prepared
from tests.triton_models import TritonModels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from controlplane.triton.server import Endpoints

# Tests of these come first, the longest of all first, and those of the folders in this order: what
# takes long must not be what one worker is left with while the others have nothing to do.
LONG = (
    *("e2e/test_chaos.py", "e2e/test_kill_9.py", "e2e/test_supervision.py"),
    *("e2e/test_faults.py", "e2e/test_ready_models.py", "integration/test_converter_process.py"),
    *("integration/test_backend_text_embedding.py", "integration/test_install.py"),
    "unit/test_scheduler_histories.py",
)
FOLDERS = ("e2e", "integration", "contract", "unit")
TESTS = Path(__file__).parent

# Hundreds of processes import the control plane: where Python is told to keep no bytecode, each
# of them would compile it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Hypothesis tries the same examples every time: what a change breaks is found by its own run, not
# by a later one's. `pytest --hypothesis-profile=search` looks for others. Machines differ too much
# for deadlines of single examples.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """One process that converters fork from, for all workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ and not config.option.collectonly:
        config.add_cleanup(forking.Parent().end)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    measuring.leave_counting_to_pytest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with measuring.first_examples_counted(item):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)  # stable: within a file nothing changes


def _turn(item: pytest.Item) -> tuple[int, int]:
    name = item.path.relative_to(TESTS).as_posix()
    return LONG.index(name) if name in LONG else len(LONG), FOLDERS.index(name.split("/")[0])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Frameworks and thousands of tests stay: no need to look through them again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Backends and converters that run in the test process set variables for their frameworks
    (that there is no hub, for one): the servers that later files start must not inherit them."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before]:
        if name != "PYTEST_CURRENT_TEST":
            del os.environ[name]
    changed = {name: value for name, value in before.items() if os.environ.get(name) != value}
    os.environ.update(changed)


@pytest.fixture(scope="session", autouse=True)
def spared_children() -> None:
    measuring.spare_children()


class BackgroundTriton:
    """An EmbeddedTriton on an event loop of its own, which runs between tests too.

    On a test's loop the server's log would be read, and its death seen, only while a test of the
    same loop runs.
    """

    def __init__(self, server_dir: Path, package: Path | None = None) -> None:
        self._package = package
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triton", daemon=True)
        self._thread.start()
        self.models = TritonModels(server_dir / "repository")
        self.server: EmbeddedTriton = self.call(self._start(server_dir))

    async def _start(self, server_dir: Path) -> EmbeddedTriton:
        more = {} if self._package is None else {"package": self._package}
        server = EmbeddedTriton(server_dir / "repository", server_dir / "state", **more)
        await server.start()
        return server

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    @property
    def endpoints(self) -> Endpoints:
        return self.server.endpoints

    @property
    def repository(self) -> Path:
        return self.models.root

    def stop(self) -> None:
        self.call(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundTriton]:
    """A real server for the whole session; `triton.models` writes models into its repository."""
    background = BackgroundTriton(tmp_path_factory.mktemp("triton"))
    yield background
    background.stop()


@pytest.fixture
async def triton_client(triton: BackgroundTriton) -> AsyncIterator[TritonClient]:
    """A client of the session's server; what a test left loaded is unloaded afterwards."""
    client = TritonClient(triton.endpoints)
    yield client
    for entry in await client.index():
        if entry.state == "READY" and entry.version is not None:
            await _unload(triton, client, entry.name, entry.version)
    await client.close()


async def _unload(triton: BackgroundTriton, client: TritonClient, name: str, version: int) -> None:
    try:
        await client.unload(name, timeout=10)
    except TritonTimeout:
        # Triton 2.51 at times keeps a response of a cancelled stream, and with it the model, until
        # its process is killed: as the product does.
        unloading = Unloading(client, triton.server, ModelRepository(triton.repository))
        await unloading.unload(name, version, timeout=30)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT, for whoever only needs some model; do not write to it."""
    return prepared.once(tmp_path_factory, "tiny-bert", prepared.make_tiny)


@pytest.fixture(scope="session")
def installed_home(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The home of a stopped server with `prepared.TINY` installed; work on a copy of it."""
    return prepared.once(
        tmp_path_factory,
        "home",
        lambda home: prepared.make_home(home, prepared.TINY, tiny, forking=True),
    )
