"""Plugins: which entry point a name means, which tasks there are, what of a source they are given.

Contract:
- ModelMora's own names stay its own, whoever claims them.
- What two other distributions offer is refused, naming both, in whatever order they are found.
- Control plane, converters and backends decide alike; the control plane imports nothing of them.
- A model's task may be one whose plugin is gone: it is read, and refused where it would be served.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import plugins as of_backends
from controlplane.errors import (
    ArtifactNotAccessible,
    ExportFailed,
    InvalidTaskType,
    PluginUnavailable,
    SourceRefused,
    UnsafeWeights,
)
from controlplane.registry import artefact_rules, plugins, selection_any
from controlplane.registry.files import SourceRules
from controlplane.registry.names import TaskType, servable_tasks
from converters import plugins as of_converters
from tests.plugins import distribution, knowing

if TYPE_CHECKING:
    from pathlib import Path

TASK = re.compile(r"[a-z][a-z0-9_]{0,49}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for distributions, behind the real ones."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for module in ("alpha", "beta"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("raise SystemExit('imported')")
        (tmp_path / module / "work.py").write_text("raise SystemExit('imported')")
    return tmp_path


def faults(kind: str) -> dict[tuple[str, str], str | None]:
    return {
        (p.distribution, p.name): p.fault
        for p in plugins.installed()
        if p.kind == kind and p.distribution in ("alpha", "beta")
    }


# -- what a name means -----------------------------------------------------------------------------


def test_what_is_installed_is_used_and_not_imported(site: Path) -> None:
    distribution(site, "alpha", "2.1", converters="smell = alpha.work:convert")
    found = plugins.require(plugins.CONVERTER, "smell")
    assert (found.offered_by, plugins.target_of(found)) == ("alpha 2.1", ("alpha.work", "convert"))
    assert plugins.plugin_tasks(plugins.installed()) == {"smell": None}
    assert of_converters.find("modelmora.converters", "smell").value == "alpha.work:convert"
    assert "alpha" not in sys.modules


def test_what_is_installed_meanwhile_is_known_when_it_is_asked_for(site: Path) -> None:
    with knowing({}):
        plugins.learn()
        assert "smell" not in servable_tasks()
        distribution(site, "alpha", "2.1", converters="smell = alpha.late:convert")
        (site / "alpha" / "late.py").write_text("raise SystemExit('imported')")
        (found,) = [plugin for plugin in plugins.learn() if plugin.name == "smell"]
        assert found.fault is None
        assert "smell" in servable_tasks()


@pytest.mark.parametrize(
    ("kind", "group", "name"),
    [
        ("converter", "converters", "smell"),
        ("backend", "backends", "smell"),
        ("engine", "engines", "smell"),
    ],
)
def test_two_offers_are_refused_by_all_naming_both(
    site: Path, kind: str, group: str, name: str
) -> None:
    for module in ("beta", "alpha"):
        distribution(site, module, **{group: f"{name} = {module}.work:it"})
    words = "offered by alpha 1.0 and beta 1.0; uninstall all but one"
    assert all(words in (fault or "") for fault in faults(kind).values())
    with pytest.raises(PluginUnavailable, match=words):
        plugins.require(kind, name)
    for find in (of_converters.find, of_backends.find):
        with pytest.raises(LookupError, match=words):
            find(f"modelmora.{group}", name)


@pytest.mark.parametrize(
    ("kind", "group", "name", "target"),
    [
        ("converter", "converters", "txt2embed", "converters.text_embedding:convert"),
        (
            "backend",
            "backends",
            "text_embedding",
            "backends.text_embedding.model:TritonPythonModel",
        ),
        ("engine", "engines", "onnxruntime", "backends.engines.onnxruntime:open_graph"),
    ],
)
def test_names_of_ours_stay_ours(site: Path, kind: str, group: str, name: str, target: str) -> None:
    distribution(site, "alpha", **{group: f"{name} = alpha.work:it"})
    assert plugins.require(kind, name).target == target
    assert "ModelMora's own" in (faults(kind)[("alpha", name)] or "")
    for find in (of_converters.find, of_backends.find):
        assert find(f"modelmora.{group}", name).value == target
    assert plugins.plugin_tasks(plugins.installed()) == {}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("Smell = alpha.work:it", "lower-case letters"),
        ("custom = alpha.work:it", "'custom' is taken"),
        ("plugin = alpha.work:it", "'plugin' is taken"),
        (f"{'a' * 51} = alpha.work:it", "1 to 50"),
        ("smell = alpha.work", "is not MODULE:ATTRIBUTE"),
        ("smell = alpha.work:it.that", "is not MODULE:ATTRIBUTE"),
        ("smell = alpha.gone:it", "alpha 1.0 has no module alpha.gone"),
        ("smell = gone.work:it", "alpha 1.0 has no module gone.work"),
        ("smell = alpha.work.deep:it", "has no module alpha.work.deep"),
    ],
)
def test_what_cannot_be_used_says_why(site: Path, entry: str, words: str) -> None:
    distribution(site, "alpha", converters=entry)
    (fault,) = faults("converter").values()
    assert words in (fault or "")
    with pytest.raises(PluginUnavailable, match=re.escape(words)):
        plugins.require("converter", entry.partition(" =")[0])
    assert "alpha" not in sys.modules


def test_what_nobody_offers() -> None:
    with pytest.raises(PluginUnavailable, match="no installed distribution offers it"):
        plugins.require("backend", "smell")
    with pytest.raises(LookupError, match=r"there are: .*onnxruntime"):
        of_backends.find("modelmora.engines", "smell")
    assert "smell" in (plugins.missing_backend({"backend": "smell"}) or "")
    assert plugins.missing_backend({"backend": "text_embedding"}) is None
    assert plugins.missing_backend({}) is None
    assert plugins.missing_backend({"backend": "onnxruntime", "ready_made": {}}) is None


# -- tasks -----------------------------------------------------------------------------------------


@given(st.from_regex(TASK, fullmatch=True))
def test_every_name_is_one_task(name: str) -> None:
    if name in ("plugin", "unspecified"):
        return
    task = TaskType(name)
    assert task is TaskType(name)
    assert (task.value, str(task), task.of_plugin) == (name, name, name not in list(TaskType))
    assert msgspec.json.decode(msgspec.json.encode(task), type=TaskType) is task
    assert msgspec.convert(name, TaskType) is task


@given(st.text())
def test_other_names_are_no_tasks(name: str) -> None:
    if TASK.fullmatch(name):
        return
    with pytest.raises(ValueError, match="is not a valid TaskType"):
        TaskType(name)


def test_only_what_is_installed_can_be_registered() -> None:
    with pytest.raises(InvalidTaskType, match="'smell' is not a supported task type"):
        TaskType.parse("smell")
    assert "no plugin" in (TaskType("smell").refusal or "")
    with knowing({"smell": None, "taste": "it is offered by a 1 and b 1"}):
        assert TaskType.parse(" Smell ") is TaskType("smell")
        assert servable_tasks()[-2:] == ["custom", "smell"]
        assert TaskType("smell").refusal is None
        with pytest.raises(InvalidTaskType, match="'taste' cannot be served: it is offered by a"):
            TaskType.parse("taste")
        assert TaskType("taste").refusal == "it is offered by a 1 and b 1"
    assert TaskType.TXT2EMBED.refusal is None
    assert "smell" not in servable_tasks()
    assert list(TaskType)[-1] is TaskType.CUSTOM


# -- files of a source -----------------------------------------------------------------------------

TREE = ("README", "a/b/c.txt", "model.safetensors", "x.PKL", "m.bin", "run.py", "lib.so", "i.sh")
HIDDEN = (".git/config", "a/.env", "__pycache__/x.txt")


@pytest.mark.parametrize(
    ("rules", "more"),
    [
        ({}, set()),
        ({"allow_pickle": True}, {"x.PKL", "m.bin"}),
        ({"trust_code": True}, {"run.py"}),
    ],
)
def test_a_plugin_is_given_all_but_code_and_pickles(rules: dict[str, bool], more: set[str]) -> None:
    taken = selection_any.choose((*TREE, *HIDDEN), where="it", rules=SourceRules(**rules))
    assert set(taken) == {"README", "a/b/c.txt", "model.safetensors"} | more
    assert list(taken) == sorted(taken)


def test_sources_that_give_a_plugin_nothing() -> None:
    with pytest.raises(UnsafeWeights, match=r"m\.bin"):
        selection_any.choose(["m.bin", "run.py"], where="it", rules=SourceRules())
    for names in ([], ["run.py"], [".hidden"]):
        with pytest.raises(ArtifactNotAccessible, match="it holds no files"):
            selection_any.choose(names, where="it", rules=SourceRules())
    many = [f"{n}.txt" for n in range(selection_any.MOST_FILES + 1)]
    with pytest.raises(SourceRefused, match="10001 files"):
        selection_any.choose(many, where="it", rules=SourceRules())


# -- manifests -------------------------------------------------------------------------------------

TEXT = {"name": "text_input", "datatype": "BYTES", "shape": [1]}
MANIFEST = {"inputs": [TEXT], "outputs": [TEXT], "max_batch_size": 0}


def test_manifests_that_can_be_served() -> None:
    artefact_rules.check(MANIFEST)
    probe = {"inputs": {"text_input": {"base64": "aGk="}}, "parameters": {"n": 1, "x": "y"}}
    artefact_rules.check(MANIFEST | {"decoupled": True, "probe": probe, "echo": {"own": [1]}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": []}, "inputs"),
        ({"outputs": None}, "outputs"),
        ({"inputs": [TEXT, TEXT]}, "two of its inputs have the same name"),
        ({"inputs": [TEXT | {"name": ""}]}, r"inputs\[0\]\.name"),
        ({"inputs": [TEXT | {"name": "a b"}]}, r"inputs\[0\]\.name"),
        ({"inputs": [TEXT | {"datatype": "BF16"}]}, r"inputs\[0\]\.datatype"),
        ({"outputs": [TEXT | {"shape": [0]}]}, "size of 0"),
        ({"outputs": [TEXT | {"shape": [-2]}]}, r"shape\[0\]|shape\[...\]"),
        ({"outputs": [TEXT | {"shape": "1"}]}, "shape"),
        ({"max_batch_size": -1}, "max_batch_size"),
        ({"max_batch_size": True}, "max_batch_size"),
        ({"decoupled": "yes"}, "decoupled"),
        ({"probe": None}, "probe"),
        ({"probe": {"inputs": {"image": "x"}}}, "'image', which the model has not"),
        ({"probe": {"inputs": {"text_input": {"base64": "?"}}}}, "is not base64"),
        ({"probe": {"parameters": {"x": []}}}, "parameters"),
    ],
)
def test_manifests_that_cannot_be_served(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportFailed, match=words):
        artefact_rules.check(MANIFEST | changes)
