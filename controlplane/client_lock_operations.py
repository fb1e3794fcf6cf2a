"""The client's operations on locks; as those of `client_operations`, without an HTTP library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from controlplane.client_background import OnOperation, follow_operation
from controlplane.client_lock_types import Lock, LockComparison, LockList, LockRevisions
from controlplane.client_operation_types import Operation
from controlplane.client_steps import Steps, ask, given

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/api/v1/locks"
_YAML = "application/yaml"

T = TypeVar("T")


def _one(name: str, action: str = "") -> str:
    return f"{_PATH}/{quote(name, safe='')}{action}"


def _file(action: str, text: str, result: type[T], **more: Any) -> Steps[T]:
    content = text.encode()
    return ask("POST", f"{_PATH}/{action}", result, content=content, content_type=_YAML, **more)


def create_lock(
    name: str,
    environment: str = "production",
    *,
    description: str | None = None,
    models: Sequence[str] | None = None,
    upgrade: Sequence[str] = (),
) -> Steps[Lock]:
    """Lock the current versions of all ready models, or of `models`; of `upgrade` the newest."""
    body = given(name=name, environment=environment, description=description, models=models)
    return ask("POST", _PATH, Lock, json=body | {"upgrade": list(upgrade)})


def update_lock(name: str, **changes: Any) -> Steps[Lock]:
    """Change a lock: refresh, models, upgrade, environment, description, active."""
    return ask("PUT", _one(name), Lock, json=changes)


def locks(environment: str | None = None) -> Steps[LockList]:
    """All locks, or those of one environment."""
    return ask("GET", _PATH, LockList, params=given(environment=environment))


def get_lock(name: str) -> Steps[Lock]:
    """One lock with its entries."""
    return ask("GET", _one(name), Lock)


def delete_lock(name: str) -> Steps[None]:
    """Forget a lock; its models stay."""
    return ask("DELETE", _one(name), type(None))


def lock_revisions(name: str) -> Steps[LockRevisions]:
    """What the lock said at each of its versions."""
    return ask("GET", _one(name, "/revisions"), LockRevisions)


def rollback_lock(name: str, version: int) -> Steps[Lock]:
    """Have the lock say again what it said at that version."""
    return ask("POST", _one(name, "/rollback"), Lock, json={"version": version})


def export_lock(name: str, version: int | None = None) -> Steps[str]:
    """The text of the lock's file, now or as it was at a version."""
    content = yield from ask("GET", _one(name, "/export"), bytes, params=given(version=version))
    return content.decode()


def import_lock(text: str) -> Steps[Lock]:
    """Keep the lock whose file has this text, under its name."""
    return _file("import", text, Lock)


def compare_lock(
    text: str,
    *,
    models: Sequence[str] | None = None,
    upgrade: Sequence[str] = (),
    prune: bool = False,
) -> Steps[LockComparison]:
    """How the lock with this text and the catalog differ; changes nothing."""
    params: dict[str, Any] = {"upgrade": list(upgrade), "prune": str(prune).lower()}
    return _file("compare", text, LockComparison, params=params | given(model=models))


def plan_sync(name: str, *, prune: bool = False) -> Steps[LockComparison]:
    """What `sync_lock` would do; changes nothing."""
    body = {"dry_run": True, "prune": prune}
    return ask("POST", _one(name, "/sync"), LockComparison, json=body)


def sync_lock(
    name: str,
    *,
    frozen: bool = False,
    prune: bool = False,
    on_operation: OnOperation | None = None,
    timeout: float | None = None,
) -> Steps[Operation]:
    """Make the server's machine equal the lock, wait until it is; the operation at its end.

    Its `status` says whether it succeeded, `steps` and `drift` why not.

    Args:
        frozen: change nothing; any difference is a failure.
        prune: remove models that are not in the lock.
        on_operation, timeout: as for `follow_operation`.
    """
    body = {"frozen": frozen, "prune": prune}
    begun = yield from ask("POST", _one(name, "/sync"), Operation, json=body)
    return (yield from follow_operation(begun.id, on_operation, timeout))


def verify_lock(
    name: str, *, on_operation: OnOperation | None = None, timeout: float | None = None
) -> Steps[Operation]:
    """Hash everything that the lock names, wait until it is done; the operation at its end."""
    begun = yield from ask("POST", _one(name, "/verify"), Operation)
    return (yield from follow_operation(begun.id, on_operation, timeout))


def verify_lock_file(
    text: str, *, on_operation: OnOperation | None = None, timeout: float | None = None
) -> Steps[Operation]:
    """As `verify_lock`, for the text of a lock's file, which is not kept."""
    begun = yield from _file("verify", text, Operation)
    return (yield from follow_operation(begun.id, on_operation, timeout))
