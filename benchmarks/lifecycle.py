"""How long starting, installing and loading take, and what the processes weigh."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import psutil

from benchmarks import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.client import ModelMoraClient
    from tests.service import Service

ML_MODULES = ("torch", "onnxruntime", "tokenizers", "safetensors")


def timings(client: ModelMoraClient, repeats: int) -> list[list[object]]:
    """Install, lazy loads after an unload, and requests to a loaded model; rows of a table."""
    begun = time.perf_counter()
    client.install(setting.MODEL, source_url=setting.SOURCE.as_uri(), timeout=600)
    installed = time.perf_counter() - begun
    lazy, warm = [], []
    client.embed(setting.MODEL, "first")
    for _ in range(repeats):
        client.unload(setting.MODEL)
        lazy.append(_timed(client))
        warm.append(_timed(client))
    return [
        ["install from a local directory", f"{installed:.1f} s", "≤ 25 s"],
        [
            "first request after unload (lazy load)",
            f"{statistics.median(lazy):.2f} s, worst {max(lazy):.2f} s",
            "≤ 1.5 s",
        ],
        ["request to the loaded model, REST", f"{statistics.median(warm) * 1000:.1f} ms", ""],
    ]


def _timed(client: ModelMoraClient) -> float:
    begun = time.perf_counter()
    client.embed(setting.MODEL, "one short text")
    return time.perf_counter() - begun


def pressure(repeats: int) -> list[list[object]]:
    """Two models with room for one: each request evicts the other's and loads its own; rows."""
    other = "benchmarks/another"
    running = setting.running_service(install=False, MAX_MODELS="1")
    with running as service, service.client() as client:
        for model in (setting.MODEL, other):
            client.install(model, source_url=setting.SOURCE.as_uri(), timeout=600)
            client.embed(model, "first")
        taken = []
        for _ in range(repeats):
            client.embed(other, "takes the room")
            taken.append(_timed(client))
    found = f"{statistics.median(taken):.2f} s, worst {max(taken):.2f} s"
    return [["eviction of another, load, first answer", found, "≤ 2.5 s"]]


def ready_seconds() -> float:
    """From the start of `modelmora serve` to a ready answer, on fresh folders."""
    begun = time.perf_counter()
    with setting.running_service(install=False) as service, service.client() as client:
        client.wait_until_ready(60)
        return time.perf_counter() - begun


def weights(service: Service, client: ModelMoraClient) -> list[list[object]]:
    """Memory of the control plane, Triton and the model's stub, after work; rows of a table."""
    client.embed(setting.MODEL, ["river " * 200] * 32)
    process = setting.control_plane(service)
    stub = psutil.Process(client.status().loaded_models[0].process_id)
    mapped = " ".join(region.path for region in process.memory_maps())
    found = [name for name in ML_MODULES if name in mapped]
    rss, pss = setting.rss_mb(process), setting.pss_mb(process)
    return [
        ["control plane, resident (RSS / PSS)", f"{rss:.0f} / {pss:.0f} MB", "≤ 150 MB"],
        ["ML libraries mapped by the control plane", ", ".join(found) or "none", "none"],
        ["model stub (PSS)", f"{setting.pss_mb(stub):.0f} MB", "≤ 260 MB"],
        ["Triton without stubs (PSS)", f"{setting.pss_mb(setting.triton(service)):.0f} MB", ""],
    ]


def cycles(service: Service, client: ModelMoraClient, count: int) -> list[list[object]]:
    """Memory after unloading, in cycle 2 and in the last; rows of a table.

    Resident, not proportional: what other servers on this machine share must not show here.
    """
    processes = {"control plane": setting.control_plane(service), "Triton": setting.triton(service)}
    history: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(count):
        client.embed(setting.MODEL, ["a text", "another " * 50])
        client.unload(setting.MODEL)
        for name, process in processes.items():
            history[name].append(setting.rss_mb(process))
    return [
        [
            name,
            f"{seen[1]:.1f} MB",
            f"{seen[-1]:.1f} MB",
            f"{(seen[-1] / seen[1] - 1) * 100:+.1f} %",
        ]
        for name, seen in history.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m benchmarks.lifecycle`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="of lazy loads and of starts")
    options = parser.parse_args(arguments)
    setting.print_machine()
    ready = [ready_seconds() for _ in range(options.repeats)]
    rows: list[list[object]] = [
        [
            "`serve` ready",
            f"{statistics.median(ready):.2f} s, worst {max(ready):.2f} s",
            "≤ 5 s",
        ]
    ]
    rows += pressure(options.repeats)
    with setting.running_service(install=False) as service, service.client() as client:
        rows += timings(client, options.repeats)
        rows += weights(service, client)
        setting.print_table("Times and memory", ["what", "found", "aim"], rows)
        setting.print_table(
            f"Memory over {options.cycles} load/unload cycles (RSS, unloaded; aim: within 3 %)",
            ["process", "cycle 2", f"cycle {options.cycles}", "change"],
            cycles(service, client, options.cycles),
        )


if __name__ == "__main__":
    main()
