"""The database's history: one module per step, `m{number}_{name}`, with `up(db)` and `down(db)`.

A step that was released is never edited: a change of the schema is a new step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.migrations import (
    m0001_registry,
    m0002_locks,
    m0003_operations,
    m0004_event_index,
    m0005_pinned,
    m0007_current_status,
    m0008_memory_history,
    m0009_model_policy,
    m0010_custom_task,
    m0011_remote_code,
    m0012_lock_operations,
    m0013_engine_choice,
    m0014_plugin_tasks,
)

if TYPE_CHECKING:
    from types import ModuleType

# In the order of application.
STEPS: tuple[ModuleType, ...] = (
    m0001_registry,
    m0002_locks,
    m0003_operations,
    m0004_event_index,
    m0005_pinned,
    m0007_current_status,
    m0008_memory_history,
    m0009_model_policy,
    m0010_custom_task,
    m0011_remote_code,
    m0012_lock_operations,
    m0013_engine_choice,
    m0014_plugin_tasks,
)
