"""What each task takes and gives over REST (domain §4.6): a declaration per task, checks, schemas.

Rules only. `task.py` says what a declaration is; `generic.py` stands in for models without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.inference.tasks import audio, embedding, generation, images, recognition

if TYPE_CHECKING:
    from controlplane.inference.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for module in (embedding, generation, images, recognition, audio)
    for task in module.TASKS
}
