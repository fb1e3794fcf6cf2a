"""Which converters, backends and engines are installed: entry points' names, nothing imported.

ModelMora's own are entry points like those of other distributions (docs/extending.md). A name
belongs to one distribution: ours keep theirs whoever else claims them, and what two others offer
is neither's, so that what runs does not hang on the order of `sys.path`. The rule is written once
more in `converters/plugins.py` and `backends/plugins.py`, which may not import this package.
"""

from __future__ import annotations

import re
import sys
from importlib import invalidate_caches, machinery, metadata
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import PluginUnavailable
from controlplane.registry.names import TaskType, know_plugin_tasks, plugin_task_fault
from controlplane.triton.ready_config import READY_MADE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OURS = "modelmora"
CONVERTER, BACKEND, ENGINE = "converter", "backend", "engine"
GROUPS = {
    CONVERTER: "modelmora.converters",
    BACKEND: "modelmora.backends",
    ENGINE: "modelmora.engines",
}
_TARGET = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_CODE = tuple(machinery.all_suffixes())


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One entry point.

    Attributes:
        kind: converter, backend or engine.
        name: a converter's is its task.
        target: `module:attribute`.
        distribution, version: who installed it.
        fault: why it is not used; None for one that is.
    """

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    fault: str | None = None

    @property
    def own(self) -> bool:
        """True for ModelMora's own."""
        return _normal(self.distribution) == OURS

    @property
    def offered_by(self) -> str:
        return f"{self.distribution} {self.version}"


def installed() -> tuple[Plugin, ...]:
    """All that the distributions of this Python environment declare, by kind and name."""
    found = [plugin for kind in GROUPS for plugin in _declared(kind)]
    return tuple(
        plugin
        for _, claims in groupby(found, key=lambda one: (one.kind, one.name))
        for plugin in _judged(list(claims))
    )


def learn() -> tuple[Plugin, ...]:
    """All that are installed, whose tasks can be registered from now on.

    What pip has installed since the process started is seen too, except for editable
    installations of new packages: Python reads the files that name these when it starts.
    """
    invalidate_caches()
    found = installed()
    know_plugin_tasks(plugin_tasks(found))
    return found


def plugin_tasks(plugins: Iterable[Plugin]) -> dict[str, str | None]:
    """Tasks that have a converter and are not built in: why one cannot be served, or None."""
    built_in = {task.value for task in TaskType}
    return {
        one.name: one.fault for one in plugins if one.kind == CONVERTER and one.name not in built_in
    }


def require(kind: str, name: str) -> Plugin:
    """The one that is used under a name.

    Raises:
        PluginUnavailable: there is none, or it cannot be used; saying why.
    """
    claims = [plugin for plugin in _declared(kind) if plugin.name == name]
    if not claims:
        raise PluginUnavailable(kind, name, "no installed distribution offers it")
    usable = [plugin for plugin in _judged(claims) if plugin.fault is None]
    if not usable:
        raise PluginUnavailable(kind, name, _judged(claims)[0].fault or "")
    return usable[0]


def missing_backend(manifest: Mapping[str, Any]) -> str | None:
    """Why the backend of an artefact cannot be used in this environment; None when it can."""
    backend = manifest.get("backend")
    if READY_MADE in manifest or not isinstance(backend, str):
        return None
    try:
        require(BACKEND, backend)
    except PluginUnavailable as error:
        return error.message
    return None


def target_of(plugin: Plugin) -> tuple[str, str]:
    """Module and attribute of a plugin that is used."""
    match = _TARGET.fullmatch(plugin.target)
    assert match is not None, plugin  # else it had a fault
    return match["module"], match["attribute"]


def _declared(kind: str) -> list[Plugin]:
    """By name; of one name, ours first."""
    found = [
        Plugin(
            kind=kind,
            name=entry.name,
            target=entry.value,
            distribution=_text(entry.dist, "name"),
            version=_text(entry.dist, "version"),
        )
        for entry in metadata.entry_points(group=GROUPS[kind])
    ]
    return sorted(found, key=lambda one: (one.name, not one.own, one.offered_by, one.target))


def _text(distribution: metadata.Distribution | None, name: str) -> str:
    """Its name or version; a distribution with damaged metadata has none."""
    try:
        return str(getattr(distribution, name, None) or "unknown")
    except (KeyError, TypeError):
        return "unknown"


def _judged(claims: list[Plugin]) -> list[Plugin]:
    """All that claim one name, each with what keeps it from being used."""
    own = any(plugin.own for plugin in claims)
    return [msgspec.structs.replace(one, fault=_fault(one, claims, own=own)) for one in claims]


def _fault(plugin: Plugin, claims: list[Plugin], *, own: bool) -> str | None:
    if own and not plugin.own:
        return _taken(plugin)
    if not own and len(claims) > 1:
        offers = " and ".join(dict.fromkeys(one.offered_by for one in claims))
        return f"it is offered by {offers}; uninstall all but one"
    if plugin.own:
        return None if _is_there(plugin.target) else "it is not part of this build"
    return _own_fault(plugin)


def _taken(plugin: Plugin) -> str:
    return f"{plugin.name!r} is the name of one of ModelMora's own, which stays in use"


def _own_fault(plugin: Plugin) -> str | None:
    if plugin.kind == CONVERTER and (fault := plugin_task_fault(plugin.name)):
        return fault
    if not _NAME.fullmatch(plugin.name):
        return "a name is 1 to 50 lower-case letters, digits and '_', beginning with a letter"
    if not _TARGET.fullmatch(plugin.target):
        return f"{plugin.target!r} is not MODULE:ATTRIBUTE"
    if not _is_there(plugin.target):
        return f"{plugin.offered_by} has no module {plugin.target.partition(':')[0]}"
    return None


def _is_there(target: str) -> bool:
    """Whether a module's file is there; its packages are found, and not imported."""
    module = target.partition(":")[0]
    path: list[str] | None = None
    *packages, last = module.split(".")
    for name in packages:
        spec = machinery.PathFinder.find_spec(name, path) or _found_otherwise(name, path)
        if spec is None or spec.submodule_search_locations is None:
            return False
        path = list(spec.submodule_search_locations)
    found = machinery.PathFinder.find_spec(last, path) or _found_otherwise(last, path)
    return found is not None


def _found_otherwise(name: str, path: list[str] | None) -> machinery.ModuleSpec | None:
    """By the finders of editable installations, for top-level packages."""
    if path is not None:
        return None
    finders = [finder for finder in sys.meta_path if finder is not machinery.PathFinder]
    found = (getattr(finder, "find_spec", lambda *_: None)(name, None) for finder in finders)
    return next((spec for spec in found if spec is not None), None)


def _normal(name: str) -> str:
    """As packaging.python.org has names compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
