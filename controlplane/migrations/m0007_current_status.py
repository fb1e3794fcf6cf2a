"""The status of a model's current version, beside the model: filtering by it needs no join.

Domain §2.10 wants (task_type, status) indexed, and the status is the version's. Triggers keep the
copy, so that no writer can forget it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

_CURRENT = """
    SELECT v.status FROM model_version AS v
    WHERE v.model_id = model.id AND v.version = model.current_version
"""
_UP = f"""
ALTER TABLE model ADD COLUMN current_status TEXT NOT NULL DEFAULT 'registered'
    CHECK (current_status IN ('registered', 'downloading', 'exporting', 'ready', 'failed'));
UPDATE model SET current_status = coalesce(({_CURRENT}), 'registered');

CREATE TRIGGER model_version_status_inserted AFTER INSERT ON model_version
BEGIN
    UPDATE model SET current_status = NEW.status
    WHERE id = NEW.model_id AND current_version = NEW.version;
END;
CREATE TRIGGER model_version_status_updated AFTER UPDATE OF status ON model_version
BEGIN
    UPDATE model SET current_status = NEW.status
    WHERE id = NEW.model_id AND current_version = NEW.version;
END;
CREATE TRIGGER model_current_version_updated AFTER UPDATE OF current_version ON model
BEGIN
    UPDATE model SET current_status = coalesce(({_CURRENT}), 'registered') WHERE id = NEW.id;
END;

CREATE INDEX idx_model_current_status_model_id ON model (current_status, model_id);
CREATE INDEX idx_model_task_type_current_status ON model (task_type, current_status, model_id);
"""
_DOWN = """
DROP INDEX idx_model_current_status_model_id;
DROP INDEX idx_model_task_type_current_status;
DROP TRIGGER model_version_status_inserted;
DROP TRIGGER model_version_status_updated;
DROP TRIGGER model_current_version_updated;
ALTER TABLE model DROP COLUMN current_status;
"""


def up(db: Database) -> None:
    """Add the column, its triggers and indexes."""
    db.executescript(_UP)


def down(db: Database) -> None:
    """Drop them; the status stays where it belongs."""
    db.executescript(_DOWN)
