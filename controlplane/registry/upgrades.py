"""What the hub has that is newer than what is served, and which version an upgrade installs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import ModelMoraError, ModelPinned, ValidationFailed
from controlplane.registry.model import (
    LATEST,
    Model,
    ModelId,
    ModelVersion,
    VersionStatus,
    is_semantic,
    version_sort_key,
)
from controlplane.registry.sources import HubLimits, HubRefs, list_refs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controlplane.registry.engine_choice import EngineChoice
    from controlplane.registry.store import ModelStore

# A look at the hub, not a download: who asks sits waiting.
_LIMITS = HubLimits(answer=5.0, resolve=15.0, attempts=3, longest_pause=5.0)
_QUERIES_AT_ONCE = 8
_WITHIN = 60.0
_COMMIT_DIGITS = 12


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """How the served version of a model compares with the hub.

    Attributes:
        version, revision: the current version and its commit.
        branch: the branch that it follows; None for a tag or commit.
        branch_revision: what the branch stands for now.
        newer_versions: tags that are semantic versions above the current one, the highest first.
        error: why the hub could not be asked; nothing is known then.
    """

    model_id: str
    version: str
    pinned: bool
    revision: str | None = None
    branch: str | None = None
    branch_revision: str | None = None
    newer_versions: tuple[str, ...] = ()
    error: str | None = None

    @property
    def branch_moved(self) -> bool:
        known = self.revision is not None and self.branch_revision is not None
        return known and self.revision != self.branch_revision

    @property
    def outdated(self) -> bool:
        return self.branch_moved or bool(self.newer_versions)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The version that an upgrade installs; `branch` is kept in its metadata."""

    version: str
    revision: str
    branch: str | None = None


def compare(model: Model, refs: HubRefs) -> Update:
    """The current version against the hub's branches and tags."""
    current = model.current
    branch = current.metadata.get("branch", current.version)
    if branch not in refs.branches:
        branch = None
    return Update(
        model_id=model.model_id,
        version=current.version,
        pinned=model.pinned,
        revision=current.revision,
        branch=branch,
        branch_revision=None if branch is None else refs.branches[branch],
        newer_versions=tuple(_newer_tags(current.version, refs.tags)),
    )


def _newer_tags(version: str, tags: Iterable[str]) -> list[str]:
    """A branch or commit says nothing about tags: only semantic versions are compared."""
    if not is_semantic(version):
        return []
    than = version_sort_key(version)
    newer = [tag for tag in tags if is_semantic(tag) and version_sort_key(tag) > than]
    return sorted(newer, key=version_sort_key, reverse=True)


def target_of(update: Update, refs: HubRefs) -> Target | None:
    """What an upgrade would install; None when there is nothing newer."""
    if update.newer_versions:
        tag = update.newer_versions[0]
        return Target(version=tag, revision=refs.tags[tag])
    if update.branch_moved and update.branch_revision is not None:
        commit = update.branch_revision
        return Target(version=commit[:_COMMIT_DIGITS], revision=commit, branch=update.branch)
    return None


async def outdated(
    store: ModelStore, name: str | None = None, *, within: float = _WITHIN
) -> list[Update]:
    """Compare every model that comes from the hub, or one, with the hub; by model id.

    Several are asked about at a time. A model whose repository cannot be asked says so in its
    `error`, and so do those whose turn did not come in time.

    Args:
        within: seconds for all of them.

    Raises:
        InvalidModelId, ModelNotFound: for `name`.
    """
    models = [store.get(name)] if name is not None else store.every_model()
    loop, cancelled = asyncio.get_running_loop(), threading.Event()
    deadline = loop.time() + within
    threads = ThreadPoolExecutor(_QUERIES_AT_ONCE, thread_name_prefix="outdated")

    async def ask(model: Model) -> Update:
        call = partial(
            list_refs, ModelId.parse(model.model_id), limits=_LIMITS, cancelled=cancelled
        )
        work = loop.run_in_executor(threads, call)
        try:
            return compare(model, await asyncio.wait_for(work, deadline - loop.time()))
        except (asyncio.TimeoutError, TimeoutError):
            return _unknown(model, f"The hub did not answer for all models within {within:g} s.")
        except ModelMoraError as error:
            return _unknown(model, error.message)

    try:
        return await asyncio.gather(*(ask(model) for model in models if model.source_url is None))
    finally:
        cancelled.set()
        threads.shutdown(wait=False, cancel_futures=True)


def _unknown(model: Model, why: str) -> Update:
    current = model.current
    return Update(
        model_id=model.model_id,
        version=current.version,
        revision=current.revision,
        pinned=model.pinned,
        error=why,
    )


def ensure_version(
    store: ModelStore,
    name: str,
    version: str,
    *,
    target: Target | None = None,
    trust_remote_code: bool = False,
    engine_choice: EngineChoice | None = None,
) -> ModelVersion:
    """The version of that name, registered beside the others if it is new.

    Args:
        trust_remote_code: its repository's code may run; never passed on from another version,
            whose code somebody else may have read.
        engine_choice: for a new version.

    Raises:
        InvalidModelId, ModelNotFound.
        ValidationFailed: its name is wrong, or it stands for files without code already.
    """
    model = store.get(name)
    known = model.find_version(version)
    if known is not None:
        if trust_remote_code and known.status is not VersionStatus.READY:
            return store.trust_code(model.model_id, known.version)
        return known
    if version == LATEST:  # none is ready: what that means depends on the current one
        return model.current
    fields: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "engine_choice": engine_choice,
    }
    if target is not None:
        fields["revision"] = target.revision
        fields["metadata"] = {} if target.branch is None else {"branch": target.branch}
    return store.add_version(model.model_id, version, **fields)


async def choose_upgrade(
    store: ModelStore, name: str, version: str | None = None
) -> ModelVersion | None:
    """The version that an upgrade is to install and make current, registered if it is new.

    Args:
        version: which; None asks the hub for what is newer than the current version.

    Returns:
        None when there is nothing newer.

    Raises:
        InvalidModelId, ModelNotFound, ModelPinned.
        ValidationFailed: `version` is older than the current one, or is needed.
        ArtifactNotAccessible, DownloadFailed: the hub cannot be asked.
    """
    model = store.get(name)
    if model.pinned:
        raise ModelPinned(model.model_id, model.current_version)
    if version is not None:
        _refuse_older(model, version)
        return ensure_version(store, name, version)
    if model.source_url is not None:
        raise ValidationFailed.field("version", f"is needed: {model.source_url} tells of none")
    refs = await _refs(model)
    target = target_of(compare(model, refs), refs)
    if target is None:
        return None
    known = (v for v in store.get(name).versions if v.revision == target.revision)
    installed = next(known, None)
    return installed or ensure_version(store, name, target.version, target=target)


def _refuse_older(model: Model, version: str) -> None:
    both = is_semantic(version) and is_semantic(model.current_version)
    if both and version_sort_key(version) < version_sort_key(model.current_version):
        raise ValidationFailed.field(
            "version", f"is older than {model.current_version}; use downgrade"
        )


async def _refs(model: Model) -> HubRefs:
    return await asyncio.to_thread(list_refs, ModelId.parse(model.model_id), limits=_LIMITS)
