"""The task type `custom`: ready-made Triton models, whose tensors fit no other task.

SQLite cannot change a CHECK; a new column takes the old one's place. That leaves all other columns
alone, whatever steps added them, and breaks no reference to the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_TASKS = """
    'txt2embed', 'txt2txt', 'txt2img', 'img2txt', 'img2embed', 'img2img', 'audio2txt',
    'txt2audio', 'classification', 'object_detection', 'question_answering'
"""
_INDEXES = {
    "idx_model_task_type": "task_type",
    "idx_model_task_type_model_id": "task_type, model_id",
    "idx_model_task_type_current_status": "task_type, current_status, model_id",
}


def up(db: Database) -> None:
    """Allow `custom`; nothing else changes."""
    _replace_column(db, f"{_TASKS}, 'custom'")


def down(db: Database) -> None:
    """Forbid it: models of that task go, since the older version could not read their rows.

    Their folders in the model repository are swept by that version's next start.
    """
    db.execute("DELETE FROM model WHERE task_type = 'custom'")
    _replace_column(db, _TASKS)


def _replace_column(db: Database, tasks: str) -> None:
    for name in _INDEXES:
        db.execute(f"DROP INDEX {name}")
    # A column that is added NOT NULL must have a default; no row keeps it.
    db.execute(
        "ALTER TABLE model ADD COLUMN new_task_type TEXT NOT NULL DEFAULT 'txt2embed'"
        f" CHECK (new_task_type IN ({tasks}))"
    )
    db.execute("UPDATE model SET new_task_type = task_type")
    db.execute("ALTER TABLE model DROP COLUMN task_type")
    db.execute("ALTER TABLE model RENAME COLUMN new_task_type TO task_type")
    for name, columns in _INDEXES.items():
        db.execute(f"CREATE INDEX {name} ON model ({columns})")
