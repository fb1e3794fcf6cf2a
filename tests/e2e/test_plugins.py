"""A task of somebody else's: a distribution that pip installs beside ModelMora, served by it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.client_types import InstallFailed, ModelMoraApiError
from tests.hub import LocalHub
from tests.plugins import ECHO, Environment
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

MODEL = "org/echo"
NAME = "org--echo"
FILES = {
    "echo.json": json.dumps({"times": 2, "separator": "|"}).encode(),
    "data/words.txt": b"any file, in any folder",
    "data/run.py": b"raise SystemExit",
    "weights.pkl": b"cos\nsystem\n",
}


class Plugged(Service):
    """A server in an environment that has the plugin."""

    def __init__(self, home: Path, environment: Environment) -> None:
        super().__init__(home)
        self.plugins = environment
        self.python = environment.python

    def modelmora(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI."""
        return subprocess.run(
            [self.python, "-m", "controlplane", *arguments],
            capture_output=True,
            text=True,
            env={**self.environment(), "MODELMORA_URL": self.url},
            check=False,
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugged]:
    home = tmp_path_factory.mktemp("plugged")
    environment = Environment(home / "venv")
    with pytest.MonkeyPatch.context() as patch, LocalHub() as hub:
        patch.setenv("HF_ENDPOINT", hub.url)
        hub.add(MODEL, FILES)
        running = Plugged(home / "service", environment)
        running.start()
        try:
            environment.install(ECHO)  # into the environment of a server that runs
            yield running
        finally:
            running.end()


def ask(kind: Any, url: str, *texts: bytes, **more: Any) -> list[list[Any]]:
    client = kind.InferenceServerClient(url)
    tensor = kind.InferInput("text_input", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in texts], np.object_))
    try:
        answer = client.infer(NAME, [tensor], **more)
        return [answer.as_numpy(name)[:, 0].tolist() for name in ("text_output", "characters")]
    finally:
        client.close()


def test_a_plugins_task_is_installed_from_the_hub_and_served(service: Plugged) -> None:
    with service.client() as client, pytest.raises(ModelMoraApiError) as refused:
        client.register("org/early", "echo")
    assert refused.value.code == "INVALID_TASK_TYPE"
    listed = json.loads(service.modelmora("plugins", "--json").stdout)
    theirs = [p for p in listed["data"] if p["distribution"] == "modelmora-echo"]
    assert [(p["kind"], p["name"], p["ok"]) for p in theirs] == [
        ("converter", "echo", True),
        ("backend", "echo", True),
        ("engine", "echo_engine", True),
    ]
    assert "echo" in listed["tasks"]
    assert "modelmora-echo" in service.modelmora("plugins").stdout
    done = service.modelmora("install", MODEL, "--task", "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    with service.client() as client:
        model = client.get(MODEL)
    assert (model.task_type, model.backend, model.engine) == ("echo", "echo", "echo_engine")
    assert model.unavailable is None
    downloaded = service.data_dir / "downloads" / NAME / "1"
    files = {str(path.relative_to(downloaded)) for path in downloaded.rglob("[!.]*.*")}
    assert files == {"echo.json", "data/words.txt"}  # neither code nor pickles
    for kind, url in ((triton_grpc, service.grpc_url), (triton_http, service.url[7:])):
        told = ask(kind, url, b"abc", "größe🙂".encode(), parameters={"upper": True})
        assert told == [[b"CBA|CBA", "🙂ESSÖRG|🙂ESSÖRG".encode()], [7, 15]]
    with pytest.raises(InferenceServerException, match="upper must be true or false"):
        ask(triton_grpc, service.grpc_url, b"abc", parameters={"upper": 3})
    with pytest.raises(InferenceServerException, match="must be UTF-8"):
        ask(triton_grpc, service.grpc_url, b"\xff\xfe")
    assert ask(triton_grpc, service.grpc_url, b"") == [[b"|"], [1]]


def test_a_converters_refusal_is_the_users_error(service: Plugged, tmp_path: Path) -> None:
    (tmp_path / "echo.json").write_text('{"times": 11}')
    with (
        service.client() as client,
        pytest.raises(InstallFailed, match="times must be a number from 1 to 10, got 11"),
    ):
        client.install("org/loud", task_type="echo", source_url=tmp_path.as_uri())


def test_models_outlive_their_plugin(service: Plugged) -> None:
    service.stop()
    service.plugins.uninstall("modelmora-echo")
    service.start()
    listing = service.modelmora("list")
    assert MODEL in listing.stdout
    assert "no plugin that serves it is installed" in service.modelmora("info", MODEL).stdout
    with pytest.raises(InferenceServerException, match="backend 'echo' cannot be used: no inst"):
        ask(triton_grpc, service.grpc_url, b"abc")
    with service.client() as client:
        assert [found.model_id for found in client.list(task_type="echo").data] == [
            MODEL,
            "org/loud",
        ]
        with pytest.raises(ModelMoraApiError) as refused:
            client.register("org/more", "echo")
        assert refused.value.code == "INVALID_TASK_TYPE"
        with pytest.raises(InstallFailed, match="converter 'echo' cannot be used: no installed"):
            client.install("org/loud")
    for model in (MODEL, "org/loud"):
        gone = service.modelmora("uninstall", model, "--force")
        assert gone.returncode == 0, gone.stderr
    assert service.modelmora("list", "--json").stdout.count("org/") == 0
    assert not (service.model_repository / NAME).exists()
