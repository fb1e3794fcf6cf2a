"""The client's operations on locks; as those of `client_operations`, without an HTTP library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from controlplane.client_lock_types import (
    Lock,
    LockActivity,
    LockComparison,
    LockList,
    LockRevisions,
)
from controlplane.client_steps import Call, Pause, Steps

_PATH = "/api/v1/locks"
_YAML = "application/yaml"
_POLL_SECONDS = 0.25

T = TypeVar("T")
OnActivity = Callable[[LockActivity], None]


def ask(method: str, path: str, result: type[T], **more: Any) -> Steps[T]:
    answer: T = yield Call(method=method, path=path, result=result, **more)
    return answer


def _one(name: str, action: str = "") -> str:
    return f"{_PATH}/{quote(name, safe='')}{action}"


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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


def sync_lock(
    name: str,
    *,
    dry_run: bool = False,
    frozen: bool = False,
    prune: bool = False,
    on_progress: OnActivity | None = None,
) -> Steps[LockActivity]:
    """Make the server's machine equal the lock, wait until it is; the activity at its end.

    Its `state` says whether it succeeded; `on_progress` is called about four times a second.
    """
    body = {"dry_run": dry_run, "frozen": frozen, "prune": prune}
    begun = yield from ask("POST", _one(name, "/sync"), LockActivity, json=body)
    return (yield from _to_its_end(begun, on_progress))


def verify_lock(name: str, *, on_progress: OnActivity | None = None) -> Steps[LockActivity]:
    """Hash everything that the lock names, wait until it is done; the activity at its end."""
    begun = yield from ask("POST", _one(name, "/verify"), LockActivity)
    return (yield from _to_its_end(begun, on_progress))


def verify_lock_file(text: str, *, on_progress: OnActivity | None = None) -> Steps[LockActivity]:
    """As `verify_lock`, for the text of a lock's file, which is not kept."""
    begun = yield from _file("verify", text, LockActivity)
    return (yield from _to_its_end(begun, on_progress))


def _to_its_end(activity: LockActivity, on_progress: OnActivity | None) -> Steps[LockActivity]:
    while True:
        if on_progress is not None:
            on_progress(activity)
        if activity.state != "running":
            return activity
        yield Pause(_POLL_SECONDS)
        activity = yield from ask("GET", f"{_PATH}/activities/{activity.id}", LockActivity)
