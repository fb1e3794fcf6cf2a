"""How long one large inference over REST keeps everybody else waiting.

A coroutine on the gateway's event loop sleeps a millisecond at a time and notes the longest pause
while another process sends a file of 40 MB as base64. Once as ModelMora sends it to Triton, and
once through tritonclient, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from benchmarks import setting
from controlplane.registry.repository import ModelRepository
from controlplane.triton import large_requests
from controlplane.triton.client import TritonClient
from tests import task_models
from tests.conftest import BackgroundTriton
from tests.gateway import running_gateway

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.gateway import Gateway

TASK = "img2embed"
FILE_BYTES = 40_000_000
# In a process of its own: its work must not count as a pause of the gateway's.
CLIENT = """
import http.client, pathlib, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=120)
body = pathlib.Path(sys.argv[3]).read_bytes()
connection.request("POST", sys.argv[2], body, {"Content-Type": "application/json"})
answer = connection.getresponse()
sys.exit(0 if answer.status == 200 else answer.read().decode())
"""


async def longest_pause(gateway: Gateway, body: Path) -> float:
    """Milliseconds between two turns of the event loop, at most, during one request."""
    path = f"/api/v1/infer/org/{TASK}"
    command = [sys.executable, "-c", CLIENT, gateway.http_address, path, str(body)]
    process = await asyncio.create_subprocess_exec(*command)
    done = asyncio.ensure_future(process.wait())
    loop = asyncio.get_running_loop()
    longest, before = 0.0, loop.time()
    while not done.done():
        await asyncio.sleep(0.001)
        now = loop.time()
        longest, before = max(longest, now - before), now
    assert await done == 0
    return longest * 1000


async def measure(triton: BackgroundTriton, body: Path, rounds: int) -> None:
    """Print the longest pauses of each way, over all rounds."""
    client = TritonClient(triton.endpoints)
    ours: list[float] = []
    through_library: list[float] = []
    async with running_gateway(triton.server, client) as gateway:
        manifest = task_models.manifest(TASK)
        gateway.add_model(f"org/{TASK}", task_type=TASK, manifest=manifest)
        await longest_pause(gateway, body)
        for _ in range(rounds):
            ours.append(await longest_pause(gateway, body))
            with mock.patch.object(large_requests, "is_large", return_value=False):
                through_library.append(await longest_pause(gateway, body))
    await client.close()
    header = ["sent to Triton", "longest pause, ms: median", "least", "most"]
    rows = [
        [name, *(f"{figure:.0f}" for figure in (statistics.median(f), min(f), max(f)))]
        for name, f in (("as encoded bytes", ours), ("by tritonclient", through_library))
    ]
    setting.print_table("A file of 40 MB in JSON", header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.large_input`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    setting.print_machine()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        patch.syspath_prepend(package := task_models.installed_backend(home / "package"))
        task_models.publish(ModelRepository(home / "repository"), TASK)
        content = base64.b64encode(os.urandom(FILE_BYTES)).decode()
        (home / "body").write_text(json.dumps({"input_data": {"image": content}}))
        triton = BackgroundTriton(home, package / "speaker")
        try:
            asyncio.run(measure(triton, home / "body", options.rounds))
        finally:
            triton.stop()


if __name__ == "__main__":
    main()
