"""Memory that processes hold on NVIDIA GPUs, by the driver's own library (NVML).

The library's Python binding (`nvidia-ml-py`, module `pynvml`) is optional: the extra `gpu` of this
distribution brings it. It is imported only where the driver is there.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Collection

log = structlog.get_logger(__name__)

_MB = 1024 * 1024
_DRIVER = Path("/dev/nvidiactl")


class GpuMemory:
    """Asks NVML. Figures are those of all GPUs together."""

    def __init__(self, nvml: Any) -> None:
        """`nvml` is the module `pynvml`, or what has its functions; it is initialised here.

        Raises:
            Exception: NVML's own, when there is no driver to talk to.
        """
        self._nvml = nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def used_mb(self, pids: Collection[int]) -> float | None:
        """Memory of these processes in MB; None when none of them is known to use a GPU.

        In a container with process ids of its own the driver's ids are not ours: None then too.
        """
        try:
            sizes = [size for device in self._devices for size in self._sizes(device, pids)]
        except Exception as error:  # noqa: BLE001 NVML's errors, of whichever binding
            log.debug("NVML does not answer", reason=str(error))
            return None
        if not sizes or None in sizes:
            return None
        return sum(size for size in sizes if size is not None) / _MB

    def _sizes(self, device: Any, pids: Collection[int]) -> list[int | None]:
        """Bytes of each of the processes on one GPU; None where the driver keeps it to itself."""
        running = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
        return [process.usedGpuMemory for process in running if process.pid in pids]


def find_gpus() -> GpuMemory | None:
    """NVML, where there are a driver and its binding; None elsewhere."""
    if not _DRIVER.exists():
        return None
    try:
        return GpuMemory(importlib.import_module("pynvml"))
    except Exception as error:  # noqa: BLE001 no binding, no library, no GPU: no figures
        log.warning(
            "memory on GPUs is not measured: install modelmora[gpu] to have it", reason=str(error)
        )
        return None
