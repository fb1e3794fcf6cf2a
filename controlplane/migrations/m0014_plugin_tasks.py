"""Tasks of plugins: any word that can be a task's name, where there was a list of all.

Which words are tasks that can be served is known when the service runs, from the distributions
that are installed; a row outlives them. The column is replaced as in m0010.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

# As `plugin_task_fault` (registry/names.py) has it, and as the older version knew them.
_ANY = "length({0}) BETWEEN 1 AND 50 AND {0} GLOB '[a-z]*' AND {0} NOT GLOB '*[^a-z0-9_]*'"
_KNOWN = """
    'txt2embed', 'txt2txt', 'txt2img', 'img2txt', 'img2embed', 'img2img', 'audio2txt',
    'txt2audio', 'classification', 'object_detection', 'question_answering', 'custom'
"""
_INDEXES = {
    "idx_model_task_type": "task_type",
    "idx_model_task_type_model_id": "task_type, model_id",
    "idx_model_task_type_current_status": "task_type, current_status, model_id",
}


def up(db: Database) -> None:
    """Allow all names of tasks; no row changes."""
    _replace_column(db, _ANY)


def down(db: Database) -> None:
    """Allow the older version's tasks only: models of others go, since it could not read them.

    Their folders in the model repository are swept by that version's next start.
    """
    db.execute(f"DELETE FROM model WHERE task_type NOT IN ({_KNOWN})")
    _replace_column(db, f"{{0}} IN ({_KNOWN})")


def _replace_column(db: Database, rule: str) -> None:
    for name in _INDEXES:
        db.execute(f"DROP INDEX {name}")
    # A column that is added NOT NULL must have a default; no row keeps it.
    db.execute(
        "ALTER TABLE model ADD COLUMN new_task_type TEXT NOT NULL DEFAULT 'txt2embed'"
        f" CHECK ({rule.format('new_task_type')})"
    )
    db.execute("UPDATE model SET new_task_type = task_type")
    db.execute("ALTER TABLE model DROP COLUMN task_type")
    db.execute("ALTER TABLE model RENAME COLUMN new_task_type TO task_type")
    for name, columns in _INDEXES.items():
        db.execute(f"CREATE INDEX {name} ON model ({columns})")
