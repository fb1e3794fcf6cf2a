"""Code of a model's repository: refused by default and by halves, and where it runs at last.

The model is a real one with a `modeling_own.py` that writes down which process imported it, what
that process could read of the environment, and whether it had a network.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from controlplane.errors import RemoteCodeRefused, SourceRefused, ValidationFailed
from controlplane.event_log import EventFilter
from controlplane.registry import lock_file
from controlplane.registry.conversion import convert
from controlplane.registry.lock_store import LockStore
from controlplane.registry.locking import Locking
from controlplane.registry.model import NewModel, VersionStatus
from controlplane.registry.registration import register
from controlplane.registry.remote_code import refuse_untrusted
from controlplane.registry.sync import bring
from tests.integration.test_install import MODEL, QUICK, Registry, hub, registry, script

if TYPE_CHECKING:
    from tests.hub import LocalHub

__all__ = ["hub", "registry"]

_CODE = """
import json, os, pathlib, socket, sys
from transformers import BertConfig, BertModel

def network():
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
    except OSError:
        return False
    return True

with pathlib.Path({marker!r}).open("a") as file:
    file.write(json.dumps({{
        "pid": os.getpid(),
        "command": pathlib.Path("/proc/self/cmdline").read_text().split("\\0"),
        "token": os.environ.get("HF_TOKEN"), "key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "network": network(), "file": __file__,
    }}) + "\\n")

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


class Own:
    """The model's folder, and what its code has written down."""

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder = folder
        self._marker = marker

    @property
    def runs(self) -> list[dict[str, Any]]:
        if not self._marker.exists():
            return []
        return [json.loads(line) for line in self._marker.read_text().splitlines()]

    def copies(self) -> list[str]:
        """What is left of the files that were really imported."""
        return [run["file"] for run in self.runs if Path(run["file"]).exists()]


@pytest.fixture
def own(tiny: Path, tmp_path: Path, hub: LocalHub) -> Own:
    folder, marker = tmp_path / "own", tmp_path / "marker"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    port = int(hub.url.rpartition(":")[2])
    (folder / "modeling_own.py").write_text(_CODE.format(port=port, marker=str(marker)))
    return Own(folder, marker)


def restart(registry: Registry, *, allow: bool) -> None:
    registry.start(allow_remote_code=allow)


async def test_by_default_it_is_refused_before_the_weights_come(
    registry: Registry, hub: LocalHub, own: Own
) -> None:
    hub.add(MODEL, own.folder)
    with pytest.raises(RemoteCodeRefused, match="brings its own code"):
        await register(registry.installer.shop, NewModel(model_id=MODEL), limits=QUICK)
    registry.register()
    version = (await registry.install()).current
    assert version.status is VersionStatus.FAILED
    assert "--trust-remote-code" in (version.error_message or "")
    assert hub.asked("model.safetensors") == hub.asked("modeling_own.py") == 0
    assert own.runs == []


async def test_the_administrator_s_word_alone_is_not_enough(
    registry: Registry, hub: LocalHub, own: Own
) -> None:
    hub.add(MODEL, own.folder)
    restart(registry, allow=True)
    registry.register()
    version = (await registry.install()).current
    assert version.status is VersionStatus.FAILED
    assert "runs only where somebody has said so" in (version.error_message or "")
    assert hub.asked("model.safetensors") == 0
    assert own.runs == []


async def test_the_user_s_word_alone_is_not_enough(
    registry: Registry, hub: LocalHub, own: Own
) -> None:
    hub.add(MODEL, own.folder)
    new = NewModel(model_id=MODEL, task_type="txt2embed", trust_remote_code=True)
    with pytest.raises(RemoteCodeRefused, match="MODELMORA_ALLOW_REMOTE_CODE"):
        await register(registry.installer.shop, new)
    registry.store.register(new)  # as a database may say that comes from elsewhere
    with pytest.raises(RemoteCodeRefused, match="MODELMORA_ALLOW_REMOTE_CODE"):
        registry.installer.request(MODEL)
    assert hub.requests == []
    assert own.runs == []


@pytest.mark.torch
async def test_with_both_it_runs_in_the_converter_alone(
    registry: Registry, hub: LocalHub, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HF_MODULES_CACHE", str(registry.home / "modules"))
    hub.add(MODEL, own.folder)
    restart(registry, allow=True)
    new = NewModel(model_id=MODEL, trust_remote_code=True, created_by="ann", version="main")
    await register(registry.installer.shop, new, limits=QUICK)
    version = (await registry.install()).current
    assert version.error_message is None
    assert version.status is VersionStatus.READY
    assert own.runs
    for run in own.runs:
        assert run["pid"] != os.getpid()
        assert {"converters", "--trust-remote-code"} <= set(run["command"])
        assert run["token"] is run["key"] is None
        assert run["network"] is not await _takes_networks_away(urlsplit(hub.url).port or 0)
    assert own.copies() == []
    files = {file.path: file for file in registry.store.source_files(version)}
    assert files["modeling_own.py"].size == (own.folder / "modeling_own.py").stat().st_size
    events = registry.store.event_log.page(EventFilter(event_type="model.version.code_trusted"))
    assert [event.payload["trusted_by"] for event in events.items] == ["ann"]
    _locked_and_brought(registry)


async def _takes_networks_away(port: int) -> bool:
    """Whether this system lets us."""
    code = f"""
import socket
try:
    reached = bool(socket.create_connection(("127.0.0.1", {port}), timeout=5).close() or 1)
except OSError:
    reached = False
print(json.dumps({{"event": "result", "manifest": {{"reached": reached}}}}))
"""
    said = await convert(script(code), timeout=30, on_progress=lambda _: None, alone=True)
    return not said["reached"]


def _locked_and_brought(registry: Registry) -> None:
    """The lock says that code belongs to the version, and another machine takes that over."""
    locking = Locking(registry.store, LockStore(registry.db, registry.store._bus), registry.home)
    locking.create("default", "production")
    text = locking.export("default")
    assert "trust_remote_code: true" in text
    (entry,) = lock_file.parse(text).locked_models
    assert "modeling_own.py" in {file.path for file in entry.files}
    bring(registry.store, entry, "copy")
    assert registry.store.version(MODEL, "copy").trust_remote_code


async def test_a_setting_that_is_withdrawn_stops_what_it_had_allowed(
    registry: Registry, hub: LocalHub, own: Own
) -> None:
    hub.add(MODEL, own.folder)
    restart(registry, allow=True)
    registry.register(trust_remote_code=True)
    hub.stall("model.safetensors", after=10)
    registry.installer.request(MODEL)
    await registry.installer.close()
    restart(registry, allow=False)
    registry.installer.resume()
    (operation,) = registry.installer.operations.page().items
    assert operation.status.value == "failed"
    assert "MODELMORA_ALLOW_REMOTE_CODE" in operation.error.message
    assert own.runs == []


def test_trust_is_for_versions_that_are_not_yet_anything(registry: Registry) -> None:
    registry.register()
    assert not registry.store.version(MODEL).trust_remote_code
    registry.store.trust_code(MODEL, "main")
    assert registry.store.version(MODEL).trust_remote_code
    registry.store.add_version(MODEL, "v2", checksum="sha256:" + "1" * 64)
    with pytest.raises(ValidationFailed, match="stands for files without code"):
        registry.store.trust_code(MODEL, "v2")


@pytest.mark.parametrize(
    ("auto_map", "refusal"),
    [
        ({"AutoModel": "other/repo--modeling.Own"}, "another repository"),
        ({"AutoTokenizer": [None, "other/repo--t.T"]}, "another repository"),
        ("other/repo--modeling.Own", "another repository"),
    ],
)
def test_code_of_another_repository_is_refused_always(auto_map: Any, refusal: str) -> None:
    config = json.dumps({"auto_map": auto_map}).encode()
    with pytest.raises(SourceRefused, match=refusal):
        refuse_untrusted(config, "config.json", "org/name", trusted=True)
    with pytest.raises(RemoteCodeRefused):
        refuse_untrusted(config, "config.json", "org/name", trusted=False)


@pytest.mark.parametrize("config", [b"", b"[]", b'{"auto_map": {}}', b"no json", b'{"a": 1}'])
def test_a_configuration_without_code_needs_no_trust(config: bytes) -> None:
    refuse_untrusted(config, "config.json", "org/name", trusted=False)
