"""The commands against recorded answers: what they send, print and exit with."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.cli import exits, progress
from controlplane.cli.following import shown_installation
from controlplane.cli.main import run
from controlplane.cli.output import Output
from controlplane.client import ModelMoraClient
from controlplane.client_types import Progress, ServerUnreachable
from tests import rest_server as rest
from tests.programs import program
from tests.rest_server import (
    INFER_PATH,
    MINILM,
    MODEL_PATH,
    OPERATION_ID,
    OPERATION_PATH,
    OPERATIONS_PATH,
    RestServer,
)
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = [sys.executable, "-m", "controlplane"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestServer]:
    running = RestServer()
    monkeypatch.setenv("MODELMORA_URL", running.url)
    yield running
    running.close()


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def modelmora(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Result:
        code = run(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


COMMANDS = [
    (["list"], MINILM, {"data", "pagination"}),
    (["info", MINILM], "max_abs_diff 2e-07", {"model_id", "artefact", "checksum"}),
    (["load", MINILM], "is loaded in 0.8 s (205 MB, cpu)", {"model_id", "state"}),
    (["keep", MINILM], "stays in memory.", {"model_id", "keep_loaded"}),
    (["release", MINILM], "may be evicted again.", {"model_id", "keep_loaded"}),
    (["warmup", MINILM], "first 9.5 ms, median 3.5 ms", {"model_id", "times_ms"}),
    (["unload", MINILM], "(205 MB freed)", {"model_id", "unloaded", "freed_mb"}),
    (["status"], "205 MB of 13.3 GB for models", {"memory", "loaded_models", "triton"}),
    (["health"], "1 healthy, 0 unhealthy", {"status", "checks", "models"}),
    (["infer", MINILM, "a", "b"], "[+0.2500, -0.5000, +0.1250, +1.0000, …]", {"output_data"}),
    (["install", MINILM], "is already installed", {"model_id", "status"}),
    (["operations", "list"], OPERATION_ID, {"data", "pagination"}),
    (["operations", "show", OPERATION_ID], "took       1 min", {"id", "status"}),
    (["operations", "cancel", OPERATION_ID], "is cancelled", {"id", "status"}),
    (["versions", MINILM], "main *", {"current_version", "data"}),
    (["use", f"{MINILM}@v1"], "requests waited meanwhile", {"version", "switch"}),
    (["upgrade", MINILM], "v1 is current, instead of main", {"version", "switch"}),
    (["downgrade", f"{MINILM}@v1"], "v1 is current", {"version", "switch"}),
    (["pin", MINILM], "is pinned to main", {"pinned", "version"}),
    (["unpin", MINILM], "no longer pinned", {"pinned", "version"}),
    (["outdated"], "main is at 0123456789ab", {"data"}),
    (["remove-version", f"{MINILM}@v1"], "is removed", {"version", "removed"}),
    (["uninstall", MINILM], "is uninstalled", {"model_id", "uninstalled"}),
    (["cache", "ls"], "abababababababab  86.7 MB  org--name/1, org--name/2", {"blobs", "bytes"}),
    (["cache", "prune"], "1 unused files and 1 broken-off downloads removed (1.6 kB)", {"blobs"}),
    (["plugins"], "not used: smell 2.1 has no module smell.work", {"data", "tasks"}),
    (["cache", "verify"], "2 files (1.2 kB) verified, 0 damaged", {"damaged"}),
]


@pytest.mark.parametrize("command", ["use", "downgrade", "remove-version"])
def test_a_version_must_be_named(server: RestServer, modelmora: Any, command: str) -> None:
    result = modelmora(command, MINILM)
    assert result.code == exits.USAGE
    assert f"{MINILM}@VERSION" in result.err
    assert server.requests == []


def test_a_newer_version_is_no_downgrade(server: RestServer, modelmora: Any) -> None:
    path = f"{MODEL_PATH}/versions/v3"
    server.set("GET", path, (200, rest.OLDER | {"version": "v3", "triton_version": 3}))
    result = modelmora("downgrade", f"{MINILM}@v3")
    assert result.code == exits.USAGE
    assert "modelmora use" in result.err


@pytest.mark.parametrize(
    ("arguments", "text", "keys"),
    COMMANDS,
    ids=lambda v: str(v)[:20] if not isinstance(v, set) else "keys",
)
def test_text_and_json(
    server: RestServer, modelmora: Any, arguments: list[str], text: str, keys: set[str]
) -> None:
    plain = modelmora(*arguments)
    assert (plain.code, plain.err) == (0, "")
    assert text in plain.out
    machine = modelmora(*arguments, "--json")
    assert (machine.code, machine.err) == (0, "")
    assert machine.out.count("\n") == 1
    assert keys <= machine.json.keys()


def test_several_models_are_loaded_one_after_the_other(server: RestServer, modelmora: Any) -> None:
    assert modelmora("load", MINILM, f"{MINILM}@main").out.count("is loaded in 0.8 s") == 2
    assert [m["model_id"] for m in modelmora("load", MINILM, MINILM, "--json").json] == [MINILM] * 2


def test_a_dry_run_tells_who_leaves_and_fails_when_it_does_not_fit(
    server: RestServer, modelmora: Any
) -> None:
    plain = modelmora("load", "--dry-run", MINILM, "org/huge")
    assert plain.code == exits.UNAVAILABLE
    assert "org/old@v1 leaves (200 MB): least recently used, idle for 90 s." in plain.out
    assert "org/huge: never, it needs more than the whole budget" in plain.out
    assert "400 MB now, 405 MB after, of 500 MB" in plain.out
    machine = modelmora("load", "--dry-run", MINILM, "org/huge", "--json")
    assert (machine.code, machine.json["fits"]) == (exits.UNAVAILABLE, False)
    assert [request.path for request in server.requests] == ["/api/v1/lifecycle/plan"] * 2


def test_json_is_the_rest_body_without_nulls(server: RestServer, modelmora: Any) -> None:
    known = {key: value for key, value in rest.model().items() if key != "a_field_of_tomorrow"}
    assert modelmora("info", MINILM, "--json").json == known
    assert modelmora("list", "--json").json["data"] == [known]
    assert modelmora("infer", MINILM, "a", "b", "--json").json == rest.INFERRED
    assert modelmora("status", "--json").json == rest.STATUS


def test_cache_options_are_sent(server: RestServer, modelmora: Any) -> None:
    modelmora("cache", "ls", "--limit", "5")
    assert server.requests[-1].query == {"limit": "5"}
    server.set("POST", "/api/v1/cache/prune", (200, rest.PRUNED | {"dry_run": True}))
    assert "would be removed" in modelmora("cache", "prune", "--dry-run").out
    assert server.requests[-1].body == {"dry_run": True}


def test_a_damaged_cache_is_a_failure_that_names_the_versions(
    server: RestServer, modelmora: Any
) -> None:
    found = {"blobs": 2, "bytes": 1200, "damaged": [rest.BLOB]}
    server.set("POST", "/api/v1/cache/verify", (200, found))
    result = modelmora("cache", "verify")
    assert result.code == exits.FAILED
    assert "is damaged; used by org--name/1, org--name/2" in result.out
    assert modelmora("cache", "verify", "--json").code == exits.FAILED


FAILURES = [
    (400, "SOURCE_REFUSED", exits.FAILED),
    (404, "MODEL_NOT_FOUND", exits.NOT_FOUND),
    (404, "MODEL_NOT_LOADED", exits.NOT_FOUND),
    (409, "MODEL_ALREADY_LOADED", exits.CONFLICT),
    (400, "VALIDATION_ERROR", exits.USAGE),
    (400, "ARTIFACT_NOT_ACCESSIBLE", exits.FAILED),
    (409, "CHECKSUM_MISMATCH", exits.FAILED),
    (413, "PAYLOAD_TOO_LARGE", exits.USAGE),
    (500, "INTERNAL_ERROR", exits.FAILED),
    (502, "DOWNLOAD_FAILED", exits.FAILED),
    (503, "INSUFFICIENT_MEMORY", exits.UNAVAILABLE),
    (504, "LOAD_TIMEOUT", exits.FAILED),
    (507, "INSUFFICIENT_DISK", exits.UNAVAILABLE),
]


@pytest.mark.parametrize(("status", "code", "exit_code"), FAILURES)
def test_failure_is_one_line_and_a_code(
    server: RestServer, modelmora: Any, status: int, code: str, exit_code: int
) -> None:
    message = "Traceback:\n  line 1\x1b[31m\nIt broke."
    server.set("POST", f"{MODEL_PATH}/load", (status, rest.error(code, message)))
    result = modelmora("load", MINILM)
    assert (result.code, result.out) == (exit_code, "")
    assert result.err.startswith("Error: Traceback: line 1�[31m It broke.")
    assert result.err.count("\n") == 1
    assert ("trace id" in result.err) == (status >= 500)


USAGE_ERRORS = [
    ["frob"],
    ["list", "--foo"],
    ["list", "--page", "0"],
    ["info"],
    ["info", "no-slash"],
    ["info", "a/../b"],
    ["install", f"{MINILM}@"],
    ["install", MINILM, "--source", "no/such/directory"],
    ["infer", MINILM],
    ["infer", MINILM, "--file", "no-such-file"],
    ["status", "--url", "localhost:8000"],
    ["config", "validate", "--file", "no-such-file"],
]


@pytest.mark.parametrize("arguments", USAGE_ERRORS, ids=" ".join)
def test_wrong_usage(server: RestServer, modelmora: Any, arguments: list[str]) -> None:
    result = modelmora(*arguments)
    assert (result.code, result.out) == (exits.USAGE, "")
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert server.requests == []


def test_server_unreachable(modelmora: Any) -> None:
    result = modelmora("status", "--url", "http://127.0.0.1:1")
    assert result.code == exits.UNREACHABLE
    assert result.err == (
        "Error: No answer from ModelMora at http://127.0.0.1:1 (Connection refused): "
        "is `modelmora serve` running?\n"
    )


def test_another_program_on_the_port(server: RestServer, modelmora: Any) -> None:
    server.set("GET", "/api/v1/status", (200, b"<html>"))
    assert modelmora("status").code == exits.UNREACHABLE


def test_no_arguments_show_the_help(modelmora: Any) -> None:
    result = modelmora()
    assert result.code == exits.USAGE
    assert "Commands:" in result.err


def test_debug_shows_the_traceback(server: RestServer) -> None:
    server.set("GET", MODEL_PATH, (404, rest.NOT_FOUND))
    done = subprocess.run([*PROGRAM, "info", MINILM, "--debug"], capture_output=True, text=True)
    assert "Traceback (most recent call last)" in done.stderr
    assert done.returncode == 1


def test_unexpected_errors_are_one_line_too(
    server: RestServer, modelmora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**rest.INFERRED, "output_data": {"embeddings": [None, None], "dimension": 5}}
    server.set("POST", INFER_PATH, (200, broken))
    result = modelmora("infer", MINILM, "a", "b")
    assert result.code == exits.FAILED
    assert result.err.startswith("Error: unexpected TypeError: ")
    assert result.err.endswith(" (see it whole with --debug)\n")


# -- install -----------------------------------------------------------------------------------

DOWNLOADING = rest.operation(
    "running", phase="downloading", fraction=0.5, bytes_done=45 << 20, bytes_total=90 << 20
)
EXPORTING = rest.operation("running", phase="exporting", step="export", message="to ONNX")


def installing(server: RestServer, *, model: Any = None, end: Any = None) -> None:
    """Have the server install a model that it does not know yet."""
    last = (200, model or rest.model())
    server.set("GET", MODEL_PATH, (404, rest.NOT_FOUND), last)
    server.set("POST", f"{MODEL_PATH}/download", (202, rest.operation("pending")))
    told = rest.events(DOWNLOADING, EXPORTING, end or rest.operation())
    server.set("GET", f"{OPERATION_PATH}/events", (200, told))


def test_install_shows_both_phases_as_lines(server: RestServer, modelmora: Any) -> None:
    installing(server)
    result = modelmora("install", f"{MINILM}@v1")
    assert result.code == 0
    assert result.err == "Downloading: 50% 45.0 of 90.0 MB\nExporting: to ONNX\n"
    assert "is installed (384 dimensions, 87 MB, cosine to PyTorch ≥ 0.9999999)." in result.out
    registration = next(r.body for r in server.requests if r.path == "/api/v1/models")
    assert registration == {"model_id": MINILM, "version": "v1"}


@pytest.mark.parametrize(
    ("task", "inputs", "hint"),
    [
        ("txt2embed", ["text_input"], '"Hello, world"'),
        ("classification", ["text_input", "text_pair_input"], '"Hello, world"'),
        ("classification", ["image_input"], "--image picture.jpg"),
        ("img2img", ["text_input", "image_input"], '"make it winter" --image picture.jpg'),
        ("audio2txt", ["audio_input"], "--audio speech.wav"),
        ("echo", ["word", "times"], "--input word=VALUE --input times=VALUE"),
    ],
)
def test_install_says_what_to_ask_the_model_first(
    task: str, inputs: list[str], hint: str, server: RestServer, modelmora: Any
) -> None:
    installing(server, model=rest.model(task_type=task, artefact={"inputs": inputs}))
    told = modelmora("install", MINILM).out.splitlines()
    assert told[-1] == f"Try it: modelmora infer {MINILM} {hint}"


def test_install_from_a_directory(server: RestServer, modelmora: Any, tmp_path: Path) -> None:
    installing(server)
    directory = tmp_path / "my model"
    directory.mkdir()
    result = modelmora("install", MINILM, "--source", os.path.relpath(directory), "--json")
    assert (result.code, result.err) == (0, "")
    registration = next(r.body for r in server.requests if r.path == "/api/v1/models")
    assert registration["source_url"] == directory.as_uri()
    assert "%20" in registration["source_url"]


def test_install_that_fails(server: RestServer, modelmora: Any) -> None:
    error = {"code": "ARTIFACT_NOT_ACCESSIBLE", "message": "no config.json in the source"}
    end = rest.operation("failed", error=error)
    installing(server, model=rest.model("failed"), end=end)
    result = modelmora("install", MINILM)
    assert (result.code, result.out) == (exits.FAILED, "")
    last = result.err.splitlines()[-1]
    assert last == f"Error: {MINILM} could not be installed: no config.json in the source"


def test_interrupted_install_says_what_goes_on(server: RestServer) -> None:
    server.set("GET", MODEL_PATH, (200, rest.model("exporting")))
    server.set("POST", f"{MODEL_PATH}/download", (202, rest.operation("pending")))
    server.set("GET", f"{OPERATION_PATH}/events", (404, rest.error("NOT_FOUND", "None.")))
    server.set("GET", OPERATION_PATH, (200, EXPORTING))
    server.set("GET", OPERATIONS_PATH, (200, rest.page(EXPORTING)))
    with program(
        [*PROGRAM, "install", MINILM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as installing:
        server.wait_for("GET", OPERATION_PATH)
        installing.send_signal(signal.SIGINT)
        out, err = installing.communicate(timeout=60)
    assert (installing.returncode, out) == (exits.INTERRUPTED, "")
    assert err.splitlines()[-1] == "Interrupted."
    assert f"modelmora operations show {OPERATION_ID} --follow" in err
    assert f"modelmora operations cancel {OPERATION_ID}" in err
    assert "Traceback" not in err


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Run the program with a terminal of 120 columns; exit code and what it showed."""
    process, terminal = pty.fork()
    if process == 0:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
        os.execvpe(sys.executable, [*PROGRAM, *arguments], environment)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_terminal_gets_bars_and_frames(server: RestServer) -> None:
    installing(server)
    # one state after the other: bars are drawn ten times a second
    server.set("GET", f"{OPERATION_PATH}/events", (404, rest.error("NOT_FOUND", "None.")))
    server.set("GET", OPERATION_PATH, (200, DOWNLOADING), (200, EXPORTING), (200, rest.operation()))
    code, shown = on_a_terminal("install", MINILM)
    assert code == 0
    assert "45.0 of 90.0 MB" in shown
    assert "━" in shown
    code, shown = on_a_terminal("status")
    assert code == 0
    assert "───" in shown
    assert MINILM in shown


@pytest.mark.parametrize("begun", [True, False])
def test_a_lost_server_goes_on_with_what_had_begun(
    begun: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:1"

    def lose() -> None:
        with shown_installation(
            ModelMoraClient(url), Output(as_json=False), MINILM, set()
        ) as on_progress:
            if begun:
                on_progress(Progress(phase="downloading"))
            raise ServerUnreachable(url, "It hung up.")

    with pytest.raises(ServerUnreachable, match=r"\(It hung up\): is"):
        lose()
    told = capsys.readouterr().err
    assert ("go on when the server runs again" in told) is begun


def test_who_waits_at_a_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECOND", 0.001)
    with progress.shown_waiting("Loading a/b"):  # no terminal: nothing
        pass
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = ""

    def told() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return "Loading a/b, 3 s" in shown

    with progress.shown_waiting("Loading a/b"):
        asyncio.run(eventually(told))
    assert shown.startswith("\r\x1b[KLoading a/b, 1 s\r\x1b[KLoading a/b, 2 s")
    assert capsys.readouterr().err.endswith("\r\x1b[K")  # nothing is left of it


# -- infer, list, health, uninstall ------------------------------------------------------------


def test_infer_reads_a_file(server: RestServer, modelmora: Any, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffErste Zeile\r\n\n  \nzweite ü\n".encode())
    assert modelmora("infer", MINILM, "--file", str(file), "--no-normalize").code == 0
    assert server.requests[-1].body == {
        "input_data": {"text": ["Erste Zeile", "zweite ü"]},
        "parameters": {"normalize": False},
    }


def test_infer_reads_stdin(server: RestServer) -> None:
    arguments = [*PROGRAM, "infer", MINILM, "-f", "-", "--json", "--priority", "high"]
    done = subprocess.run(arguments, input=b"one\ntwo\n", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == rest.INFERRED
    assert server.requests[-1].body["input_data"] == {"text": ["one", "two"]}
    assert server.requests[-1].body["priority"] == "high"


def test_infer_refuses_what_is_not_utf8(server: RestServer, modelmora: Any, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9\n")
    result = modelmora("infer", MINILM, "--file", str(file))
    assert result.code == exits.USAGE
    assert "not UTF-8" in result.err


def test_reader_that_goes_away_is_no_error(server: RestServer) -> None:
    many = [rest.model() for _ in range(5000)]
    server.set("GET", "/api/v1/models", (200, rest.page(*many)))
    with program([*PROGRAM, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.wait(60) == exits.BROKEN_PIPE
        assert listing.stderr.read() == b""


def test_list_of_none_and_of_many(server: RestServer, modelmora: Any) -> None:
    server.set("GET", "/api/v1/models", (200, rest.page()))
    assert "modelmora install MODEL_ID" in modelmora("list").err
    assert modelmora("list", "--task", "txt2embed").err == "No model matches.\n"
    server.set("GET", "/api/v1/models", (200, rest.page(rest.model(), total_pages=3)))
    assert "Page 1 of 3; go on with --page 2" in modelmora("list").out


def test_health_tells_by_its_exit_code(server: RestServer, modelmora: Any) -> None:
    server.set("GET", "/health/ready", (503, rest.NOT_READY))
    result = modelmora("health")
    assert result.code == exits.UNAVAILABLE
    assert "triton lost" in result.out
    server.set("GET", "/health/ready", (200, rest.READY))
    sick = {"model_id": MINILM, "healthy": False, "error": "no answer within 5 s"}
    unhealthy = {"healthy_count": 0, "unhealthy_count": 1, "models": [sick]}
    server.set("GET", "/health/models", (200, unhealthy))
    result = modelmora("health")
    assert result.code == exits.UNAVAILABLE
    assert f"{MINILM} is unhealthy: no answer within 5 s" in result.out
    assert modelmora("health", "--json").json["models"] == unhealthy


def test_uninstall_of_a_loaded_model_names_force(server: RestServer, modelmora: Any) -> None:
    loaded = rest.error("MODEL_ALREADY_LOADED", "It is loaded.")
    server.set("DELETE", MODEL_PATH, (409, loaded))
    result = modelmora("uninstall", MINILM)
    assert (result.code, result.err) == (
        exits.CONFLICT,
        f"Error: {MINILM} is loaded; unload it first, or add --force.\n",
    )


def test_version_comes_at_once() -> None:
    loaded = "import sys; from controlplane.cli.main import run; run(['--version']); "
    heavy = "print([m for m in ('httpx', 'rich', 'yaml', 'psutil', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded + heavy], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["modelmora 0.1.0", "[]"]
