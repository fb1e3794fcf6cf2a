"""Ready-made Triton models: installed as they are, from then on models like all others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.client import ModelMoraApiError
from controlplane.client_types import InstallFailed
from tests import ready_folders
from tests.hub import wait_until
from tests.service import Service
from tests.triton_models import trivial_model
from tests.webserver import WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.triton]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service")).start()
    try:
        yield running
    finally:
        running.end()


def modelmora(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *arguments],
        capture_output=True,
        text=True,
        env={**service.environment(), "MODELMORA_URL": service.url},
        check=False,
    )


def installed(service: Service, model_id: str, folder: Path) -> str:
    """Install through the command line; what it said."""
    done = modelmora(service, "install", model_id, "--source", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ask(kind: Any, url: str, model: str, inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One request with tritonclient, `kind` its grpc or http module; the outputs by name."""
    client = kind.InferenceServerClient(url)
    tensors = []
    for name, (datatype, array) in inputs.items():
        tensor = kind.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    try:
        result = client.infer(model, tensors, **more)
        answer = result.get_response(as_json=True) if kind is triton_grpc else result.get_response()
        return {out["name"]: result.as_numpy(out["name"]) for out in answer["outputs"]}
    finally:
        client.close()


def both(service: Service, model: str, inputs: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The same request over gRPC and over HTTP."""
    http_url = service.url.removeprefix("http://")
    return [
        ask(triton_grpc, service.grpc_url, model, inputs, **more),
        ask(triton_http, http_url, model, inputs, **more),
    ]


def text(value: bytes) -> dict[str, Any]:
    return {"text": ("BYTES", np.array([[value]], dtype=np.object_))}


def loaded(service: Service) -> list[str]:
    """Ids of the models in memory."""
    models = httpx.get(f"{service.url}/api/v1/status").json()["loaded_models"]
    return [model["model_id"] for model in models if model["state"] == "loaded"]


# -- every kind of model --------------------------------------------------------------------------


def test_an_echo_model_is_installed_as_it_is_and_called_over_every_door(
    service: Service, tmp_path: Path
) -> None:
    said = installed(service, "own/echo", ready_folders.echo(tmp_path / "echo"))
    assert "used as it is: python backend, 1 input, 1 output" in said
    for answer in both(service, "own--echo", text(b"hello")):
        assert answer["echo"].tolist() == [[b"hello"]]
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["curl"]}]}
    answered = httpx.post(f"{service.url}/v2/models/own--echo/infer", json=body)
    assert answered.json()["outputs"][0]["data"] == ["curl"]
    assert "own/echo" in loaded(service)


def test_info_shows_the_tensors(service: Service, tmp_path: Path) -> None:
    installed(service, "own/told", ready_folders.repeat(tmp_path / "told"))
    shown = modelmora(service, "info", "own/told").stdout
    for part in ("custom", "python backend", "count INT32 [1]", "number INT32 [1]", "decoupled"):
        assert part in shown
    answer = json.loads(modelmora(service, "info", "own/told", "--json").stdout)
    assert answer["artefact"]["ready_made"]["decoupled"] is True
    assert answer["artefact"]["ready_made"]["inputs"][0]["datatype"] == "INT32"


def test_a_decoupled_model_answers_over_a_stream(service: Service, tmp_path: Path) -> None:
    installed(service, "own/repeat", ready_folders.repeat(tmp_path / "repeat"))
    numbers: list[int] = []
    errors: list[Exception] = []

    def take(result: Any, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
        elif (number := result.as_numpy("number")) is not None:
            numbers.append(int(number[0]))

    with triton_grpc.InferenceServerClient(service.grpc_url) as client:
        tensor = triton_grpc.InferInput("count", [1], "INT32")
        tensor.set_data_from_numpy(np.array([4], np.int32))
        client.start_stream(take)
        client.async_stream_infer("own--repeat", [tensor])
        wait_until(lambda: len(numbers) == 4 or bool(errors))
        client.stop_stream()
    assert not errors
    assert numbers == [0, 1, 2, 3]


def test_tensors_of_every_type_come_through(service: Service, tmp_path: Path) -> None:
    installed(service, "own/typed", ready_folders.typed(tmp_path / "typed"))
    given: dict[str, Any] = {}
    for _, datatype, numpy in ready_folders.TYPES:
        values = [b"a", b""] if numpy == "object" else [0, 1]
        given[f"in_{numpy}"] = (datatype, np.array(values, dtype=numpy))
    for answer in both(service, "own--typed", given):
        for name, (_, array) in given.items():
            assert answer[name.replace("in_", "out_")].tolist() == array.tolist(), name


def test_a_model_with_sequences_keeps_them_apart(service: Service, tmp_path: Path) -> None:
    installed(service, "own/sum", ready_folders.running_sum(tmp_path / "sum"))

    def add(sequence: int, number: int, *, start: bool = False, end: bool = False) -> int:
        given = {"number": ("INT32", np.array([[number]], np.int32))}
        answer = ask(
            triton_grpc,
            service.grpc_url,
            "own--sum",
            given,
            sequence_id=sequence,
            sequence_start=start,
            sequence_end=end,
        )
        return int(answer["sum"][0][0])

    assert [add(7, 5, start=True), add(8, 1, start=True), add(7, 6), add(8, 2, end=True)] == [
        *(5, 1, 11, 3)
    ]
    assert add(7, 1, end=True) == 12


def test_a_slow_model_and_a_choosy_one_are_healthy(service: Service, tmp_path: Path) -> None:
    installed(service, "own/slow", ready_folders.slow(tmp_path / "slow", 1.5))
    installed(service, "own/choosy", ready_folders.choosy(tmp_path / "choosy"))
    for name in ("own--slow", "own--choosy"):
        for answer in both(service, name, text(b"x")):
            assert answer["echo"].tolist() == [[b"x"]]
    with pytest.raises(InferenceServerException, match="means nothing to me"):
        ask(triton_grpc, service.grpc_url, "own--choosy", text(b""))
    assert "own/choosy" in loaded(service)


def test_a_broken_model_is_installed_and_says_why_it_does_not_load(
    service: Service, tmp_path: Path
) -> None:
    installed(service, "own/broken", ready_folders.broken(tmp_path / "broken"))
    with pytest.raises(InferenceServerException, match="no weights where I looked"):
        ask(triton_grpc, service.grpc_url, "own--broken", text(b"x"))
    with service.client() as client:
        client.delete("own/broken", force=True)


def test_files_beside_the_version_folder_and_modules_come_along(
    service: Service, tmp_path: Path
) -> None:
    folder = ready_folders.labelled(tmp_path / "labelled")
    installed(service, "own/labelled", folder)
    for answer in both(service, "own--labelled", text(b"x")):
        assert answer["echo"].tolist() == [[b"CAT\nDOG\n"]]
    home = service.model_repository / "own--labelled"
    assert (home / "labels" / "names.txt").read_text() == "cat\ndog\n"
    (folder / "labels" / "names.txt").write_text("other\n")
    failed = modelmora(service, "install", "own/labelled@v2", "--source", str(folder))
    assert failed.returncode != 0
    assert "labels/names.txt: differs from that of version main" in failed.stderr
    (folder / "labels" / "names.txt").write_text("cat\ndog\n")
    (folder / "1" / "helper.py").write_text("def shout(text):\n    return text\n")
    installed(service, "own/labelled@v2", folder)
    for answer in both(service, "own--labelled", text(b"x"), model_version="2"):
        assert answer["echo"].tolist() == [[b"cat\ndog\n"]]
    with service.client() as client:
        client.delete("own/labelled", force=True)
    assert not home.exists()


# -- its life -------------------------------------------------------------------------------------


def test_rest_inference_by_the_tensors_names(service: Service, tmp_path: Path) -> None:
    installed(service, "own/rest", ready_folders.echo(tmp_path / "rest"))
    url = f"{service.url}/api/v1/infer/own/rest"
    answer = httpx.post(url, json={"input_data": {"text": "hello"}})
    assert answer.json()["output_data"] == {"echo": "hello"}
    many = httpx.post(url, json={"input_data": {"text": ["a", {"base64": "/w=="}]}})
    assert many.json()["output_data"] == {"results": [{"echo": "a"}, {"echo": {"base64": "/w=="}}]}
    assert modelmora(service, "infer", "own/rest", "--input", "text=cli").stdout.count("cli") == 1

    installed(service, "own/repeated", ready_folders.repeat(tmp_path / "repeated"))
    url = f"{service.url}/api/v1/infer/own/repeated"
    answer = httpx.post(url, json={"input_data": {"count": 3}})
    assert answer.json()["output_data"] == {"responses": [{"number": n} for n in range(3)]}
    streamed = httpx.post(url, json={"input_data": {"count": 2}, "stream": True}).text
    assert streamed.count("event: response") == 2
    assert streamed.count("event: done") == 1


def test_rest_inference_points_to_the_protocol_where_json_cannot_ask(
    service: Service, tmp_path: Path
) -> None:
    installed(service, "own/sequence", ready_folders.running_sum(tmp_path / "sequence"))
    answer = httpx.post(f"{service.url}/api/v1/infer/own/sequence", json={"input_data": {"x": 1}})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "NO_REST_INFERENCE"
    assert "/v2/models/own--sequence/infer" in answer.json()["error"]["message"]


def test_installing_again_changes_nothing_and_another_version_takes_the_changed_folder(
    service: Service, tmp_path: Path
) -> None:
    folder = ready_folders.echo(tmp_path / "again")
    installed(service, "own/again", folder)
    (folder / "1" / "model.py").write_text(ready_folders.SUM)
    shutil.copytree(folder / "1", folder / "3")
    (folder / "3" / "model.py").write_text(
        ready_folders.ECHO.replace(".as_numpy()", ".as_numpy() + b'!'")
    )
    assert "already installed" in installed(service, "own/again", folder)
    installed(service, "own/again@v2", folder)  # the highest folder
    for answer in both(service, "own--again", text(b"x")):
        assert answer["echo"].tolist() == [[b"x"]]
    assert modelmora(service, "use", "own/again@v2").returncode == 0
    for answer in both(service, "own--again", text(b"x")):
        assert answer["echo"].tolist() == [[b"x!"]]
    with service.client() as client:
        shown = client.get("own/again", "v2")
        assert shown.artefact is not None
        assert shown.artefact["ready_made"]["version_folder"] == 3
    missing = modelmora(service, "install", "own/again@7", "--source", str(folder))
    assert missing.returncode != 0
    assert "7 is no folder of it; there are 1, 3" in missing.stderr


def test_what_is_wrong_is_said_before_anything_is_registered(
    service: Service, tmp_path: Path
) -> None:
    folder = ready_folders.write(
        tmp_path / "wrong",
        'backend: "python" max_batch_size: -1 input [ { name: "a" dims: [0] } ]',
        ready_folders.ECHO,
    )
    failed = modelmora(service, "install", "own/wrong", "--source", str(folder))
    assert failed.returncode != 0
    for part in ("max_batch_size", "input[0].data_type", "input[0].dims", "config.pbtxt"):
        assert part in failed.stderr
    with service.client() as client, pytest.raises(ModelMoraApiError, match="not registered"):
        client.get("own/wrong")


def test_what_the_embedded_server_cannot_run_is_refused(service: Service, tmp_path: Path) -> None:
    onnx = tmp_path / "onnx"
    (onnx / "1").mkdir(parents=True)
    (onnx / "1" / "model.onnx").write_bytes(b"graph")
    (onnx / "config.pbtxt").write_text(
        ready_folders.ECHO_CONFIG.replace('"python"', '"onnxruntime"')
    )
    with service.client() as client:
        with pytest.raises(InstallFailed, match=r"onnxruntime.*MODELMORA_TRITON_GRPC_URL"):
            client.install("own/onnx", source_url=onnx.as_uri())
        ensemble = tmp_path / "ensemble"
        ready_folders.write(
            ensemble,
            'platform: "ensemble" ensemble_scheduling { step [ { model_name: "own--nowhere" } ] }'
            ' input [ { name: "a" data_type: TYPE_FP32 dims: [1] } ]'
            ' output [ { name: "b" data_type: TYPE_FP32 dims: [1] } ]',
            "",
        )
        with pytest.raises(InstallFailed, match=r"not installed: own--nowhere"):
            client.install("own/ensemble", source_url=ensemble.as_uri())


def test_it_is_locked_verified_and_synced_like_any_model(service: Service, tmp_path: Path) -> None:
    installed(service, "lock/echo", ready_folders.echo(tmp_path / "echo"))
    place = tmp_path / "project"
    place.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "controlplane", *arguments],
            capture_output=True,
            text=True,
            cwd=place,
            env={**service.environment(), "MODELMORA_URL": service.url},
            check=False,
        )

    locked = run("lock")
    assert locked.returncode == 0, locked.stderr
    written = (place / "modelmora.lock").read_text()
    assert "lock/echo" in written
    assert "task_type: custom" in written
    assert run("uninstall", "lock/echo", "--force").returncode == 0
    synced = run("sync")
    assert synced.returncode == 0, synced.stdout + synced.stderr
    for answer in both(service, "lock--echo", text(b"back")):
        assert answer["echo"].tolist() == [[b"back"]]
    verified = run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert run("lock", "--check").returncode == 0, "the same bytes, the same artefact"
    (number,) = (p.name for p in (service.model_repository / "lock--echo").glob("[0-9]*"))
    artefact = service.model_repository / "lock--echo" / number / "model.py"
    artefact.write_text(artefact.read_text() + "# changed\n")
    verified = run("verify")
    assert verified.returncode != 0
    assert "model.py" in verified.stdout + verified.stderr
    run("lock", "deactivate", "default")


def test_models_take_turns_in_a_small_memory(tmp_path: Path) -> None:
    running = Service(tmp_path / "small", MAX_MEMORY_MB="150").start()
    try:
        names = [f"m{number}" for number in range(4)]
        for name in names:
            installed(running, f"small/{name}", trivial_model(tmp_path, name, memory_mb=20))
        for number, name in enumerate([*names, *names]):
            given = {"number": ("INT64", np.array([[number]], np.int64))}
            for answer in both(running, f"small--{name}", given):
                assert answer["number"].tolist() == [[number]]
                assert answer["model_name"].tolist() == [[f"small--{name}".encode()]]
        assert 1 <= len(loaded(running)) < len(names)
        with running.client() as client:
            measured = client.get("small/m0").measured_memory_mb
        assert measured is not None
        assert 20 < measured < 75
    finally:
        running.end()


# Where something is to be seen, below the service's home, when an installation has come so far.
PHASES = {
    "downloading": "data/downloads/own--killed/1.partial",
    "received": "data/downloads/own--killed/1/.source.json",
    "staged": "model_repository/.staging/*/artefact/weights*.bin",
    "published": "model_repository/own--killed/1/manifest.json",
    "configured": "model_repository/own--killed/config.pbtxt",
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_service_killed_while_it_installs_finishes_with_the_next_start(
    tmp_path: Path, phase: str
) -> None:
    folder = ready_folders.labelled(tmp_path / "model")
    for number in range(40):  # so that there is something to be interrupted
        (folder / "1" / f"weights{number}.bin").write_bytes(os.urandom(500_000))
    running = Service(tmp_path / "killed").start()
    try:
        httpx.post(
            f"{running.url}/api/v1/models",
            json={"model_id": "own/killed", "source_url": folder.as_uri()},
        ).raise_for_status()
        httpx.post(f"{running.url}/api/v1/models/own/killed/download").raise_for_status()
        last = running.home / PHASES["configured"]
        wait_until(lambda: any(running.home.glob(PHASES[phase])) or last.exists())
        running.kill()
        running.start()
        with running.client() as client:
            assert client.install("own/killed", timeout=120).status == "ready"
        for answer in both(running, "own--killed", text(b"x")):
            assert answer["echo"].tolist() == [[b"CAT\nDOG\n"]]
        assert list((running.model_repository / ".staging").iterdir()) == []
        with running.client() as client:
            client.delete("own/killed", force=True)
        left = [path for path in running.home.rglob("*killed*") if path.is_dir()]
        assert left == []
        assert running.stop() == 0
    finally:
        running.end()


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@pytest.mark.parametrize("kind", ["echo", "repeat"])
def test_a_model_whose_process_is_killed_comes_back(
    service: Service, tmp_path: Path, kind: str
) -> None:
    model_id = f"own/killed-{kind}"
    installed(service, model_id, getattr(ready_folders, kind)(tmp_path / kind))

    def load() -> None:
        address = f"{service.url}/api/v1/models/{model_id}/load"
        httpx.post(address, timeout=60).raise_for_status()

    def stubs() -> list[psutil.Process]:
        name = model_id.replace("/", "--")
        return [process for process in service.family() if name in command_line(process)]

    load()
    (old,) = stubs()
    old.kill()
    wait_until(lambda: model_id not in loaded(service))
    load()
    (new,) = stubs()
    assert new.pid != old.pid
    assert model_id in loaded(service)


def test_a_stream_whose_model_is_killed_ends_at_once(service: Service, tmp_path: Path) -> None:
    """Triton says nothing more on it; without a deadline its client would wait for ever."""
    installed(service, "own/slowly", ready_folders.slowly_repeating(tmp_path / "slowly"))
    came: list[Any] = []

    def kill() -> None:
        (stub,) = [p for p in service.family() if "own--slowly" in command_line(p)]
        stub.kill()

    with triton_grpc.InferenceServerClient(service.grpc_url) as client:
        tensor = triton_grpc.InferInput("count", [1], "INT32")
        tensor.set_data_from_numpy(np.array([10_000], np.int32))
        client.start_stream(lambda result, error: came.append(error or result))
        client.async_stream_infer("own--slowly", [tensor])
        wait_until(lambda: len(came) > 2)
        kill()
        wait_until(lambda: isinstance(came[-1], Exception))
        assert "UNAVAILABLE" in str(came[-1])
        client.stop_stream()
    address = f"{service.url}/v2/models/own--slowly/generate_stream"
    with httpx.stream("POST", address, json={"count": 10_000}, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert "number" in next(lines)
        kill()
        assert "error" in list(lines)[-1]


def test_a_catalog_file_may_list_it(service: Service, tmp_path: Path) -> None:
    ready_folders.echo(tmp_path / "models" / "listed")
    listed = "models:\n  - model_id: own/listed\n    source: ./models/listed\n"
    (tmp_path / "modelmora.yaml").write_text(listed)
    synced = modelmora(service, "catalog", "sync", "--file", str(tmp_path / "modelmora.yaml"))
    assert synced.returncode == 0, synced.stdout + synced.stderr
    with service.client() as client:
        assert client.install("own/listed", timeout=120).task_type == "custom"
    for answer in both(service, "own--listed", text(b"x")):
        assert answer["echo"].tolist() == [[b"x"]]


def test_an_archive_is_taken_where_the_operator_trusts_archives(tmp_path: Path) -> None:
    folder = ready_folders.echo(tmp_path / "model")
    packed = Path(shutil.make_archive(str(tmp_path / "echo"), "gztar", folder))
    with WebServer(tmp_path) as web:
        web.files["/echo.tar.gz"] = packed.read_bytes()
        trusting = dict.fromkeys(
            ("ALLOW_HTTP", "ALLOW_PRIVATE_SOURCES", "ALLOW_REMOTE_READY_MODELS"), "true"
        )
        running = Service(tmp_path / "trusting", **trusting).start()
        try:
            with running.client() as client:
                model = client.install("web/echo", source_url=f"{web.url}/echo.tar.gz", timeout=120)
            assert model.task_type == "custom"
            for answer in both(running, "web--echo", text(b"x")):
                assert answer["echo"].tolist() == [[b"x"]]
        finally:
            running.end()


def test_uninstalling_leaves_nothing(service: Service, tmp_path: Path) -> None:
    folder = ready_folders.labelled(tmp_path / "gone")
    installed(service, "own/gone", folder)
    both(service, "own--gone", text(b"x"))
    done = modelmora(service, "uninstall", "own/gone", "--force")
    assert done.returncode == 0, done.stderr
    left = [path for path in service.home.rglob("*gone*") if "log" not in path.name]
    assert left == []
    with pytest.raises(InferenceServerException, match="not registered"):
        ask(triton_grpc, service.grpc_url, "own--gone", text(b"x"))


def test_a_folder_that_others_may_write_to_is_refused(service: Service, tmp_path: Path) -> None:
    folder = ready_folders.echo(tmp_path / "foreign")
    (folder / "1" / "model.py").chmod(0o666)
    with service.client() as client, pytest.raises(InstallFailed, match="everybody may write"):
        client.install("own/foreign", source_url=folder.as_uri())
