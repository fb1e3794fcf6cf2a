"""What a version needs of a machine (domain §2.8). Rules only, no I/O."""

from __future__ import annotations

import msgspec


class ResourceCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine has to give; memory in MB."""

    memory_mb: int
    gpu_vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int = 0


class ResourceRequirements(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a version needs to run (domain §2.8); memory and disk in MB."""

    memory_mb: int
    gpu_vram_mb: int = 0
    cpu_threads: int = 1
    gpu_count: int | None = None
    min_memory_mb: int | None = None
    disk_space_mb: int | None = None

    def __post_init__(self) -> None:
        if self.gpu_count is None:
            msgspec.structs.force_setattr(self, "gpu_count", 1 if self.gpu_vram_mb > 0 else 0)

    def errors(self, path: str = "resource_requirements") -> dict[str, list[str]]:
        """Broken rules, as a map of field path to messages; empty when valid."""
        rules = {
            "memory_mb": (self.memory_mb > 0, "must be above 0"),
            "gpu_vram_mb": (self.gpu_vram_mb >= 0, "must be 0 or more"),
            "cpu_threads": (self.cpu_threads > 0, "must be above 0"),
            "gpu_count": ((self.gpu_count or 0) >= 0, "must be 0 or more"),
            "min_memory_mb": (
                self.min_memory_mb is None or 0 < self.min_memory_mb <= self.memory_mb,
                "must be above 0 and at most memory_mb",
            ),
            "disk_space_mb": (
                self.disk_space_mb is None or self.disk_space_mb > 0,
                "must be above 0",
            ),
        }
        return {f"{path}.{name}": [text] for name, (holds, text) in rules.items() if not holds}

    def warnings(self) -> list[str]:
        """Values that are allowed but unlikely (domain §2.8)."""
        unlikely = [
            (self.memory_mb > 100_000, "memory_mb is above 100,000"),
            (self.gpu_vram_mb > 80_000, "gpu_vram_mb is above 80,000"),
            (self.cpu_threads > 64, "cpu_threads is above 64"),
            (self.gpu_vram_mb > 0 and not self.gpu_count, "gpu_vram_mb is set but gpu_count is 0"),
        ]
        return [text for holds, text in unlikely if holds]

    def fits_in(self, capacity: ResourceCapacity) -> bool:
        """True when every need is covered by `capacity`."""
        return (
            self.memory_mb <= capacity.memory_mb
            and self.gpu_vram_mb <= capacity.gpu_vram_mb
            and self.cpu_threads <= capacity.cpu_threads
            and (self.gpu_count or 0) <= capacity.gpu_count
        )

    @classmethod
    def estimate(cls, artefact_bytes: int, *, uses_gpu: bool = False) -> ResourceRequirements:
        """Requirements guessed from the artefact's size: 1.5 times it (domain §2.8)."""
        size_mb = max(1, -(-artefact_bytes // 2**20))
        memory = max(1, -(-artefact_bytes * 3 // (2 * 2**20)))
        return cls(
            memory_mb=memory,
            gpu_vram_mb=memory if uses_gpu else 0,
            cpu_threads=4,
            disk_space_mb=size_mb,
        )

    def __str__(self) -> str:
        gpu = f"{self.gpu_vram_mb} MB VRAM" if self.gpu_vram_mb else "CPU-only"
        return f"{self.memory_mb} MB RAM, {gpu}, {self.cpu_threads} threads"
