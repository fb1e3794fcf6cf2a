"""The converter as the control plane runs it: a process, JSON lines, files, signals."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests import models

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
DEADLINE = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_bert(tmp_path_factory.mktemp("models") / "bert")


def command(source: Path, output: Path, *arguments: str) -> list[str]:
    base = [sys.executable, "-m", "converters", "convert", "--task", "txt2embed"]
    return [*base, "--source", str(source), "--output", str(output), *arguments]


def start(source: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(source, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


def events_until(process: subprocess.Popen[str], phase: str) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        yield event
        if event.get("phase") == phase:
            return


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def untimed(folder: Path) -> dict[str, Any]:
    """The manifest without what the engines took, which no two runs agree about."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for candidate in manifest["candidates"]:
        candidate.pop("milliseconds", None)
        candidate.pop("memory_mb", None)
    return manifest


def test_protocol_and_repeatability(source: Path, tmp_path: Path) -> None:
    """Every stdout line is an event; two processes write the same bytes."""
    arguments = ["--model-id", "org/tiny", "--version", "v1.0", "--revision", "f" * 40]
    arguments += ["--source-checksum", "sha256:" + "0" * 64, "--threads", "1"]
    for name in ("first", "second"):
        done = subprocess.run(
            command(source, tmp_path / name, *arguments),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            cwd=ROOT,
            check=True,
        )
    first, second = (digests(tmp_path / name) for name in ("first", "second"))
    first.pop("manifest.json")
    second.pop("manifest.json")
    assert first == second
    assert untimed(tmp_path / "first") == untimed(tmp_path / "second")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    *progress, result = events
    assert result["event"] == "result"
    assert {event["event"] for event in progress} == {"progress"}
    phases = list(dict.fromkeys(event["phase"] for event in progress))
    assert phases == ["load", "export", "verify", "write"]
    assert all(0 <= event["fraction"] <= 1 and event["message"] for event in progress)
    manifest = result["manifest"]
    assert manifest == json.loads((tmp_path / "second/manifest.json").read_text())
    assert manifest["model_id"] == "org/tiny"
    assert manifest["version"] == "v1.0"
    assert manifest["revision"] == "f" * 40
    assert manifest["source_checksum"] == "sha256:" + "0" * 64
    assert str(tmp_path) not in json.dumps(manifest)
    assert str(ROOT).encode() not in (tmp_path / "second/model.onnx").read_bytes()


def test_manifest_lists_every_file(source: Path, tmp_path: Path) -> None:
    from converters.__main__ import main

    out = io.StringIO()
    assert main(command(source, tmp_path / "out")[3:], out) == 0
    files = json.loads(out.getvalue().splitlines()[-1])["manifest"]["files"]
    found = digests(tmp_path / "out")
    found.pop("manifest.json")
    assert {file["path"]: file["sha256"] for file in files} == found
    assert [file["path"] for file in files] == sorted(found)
    for file in files:
        assert file["size"] == (tmp_path / "out" / file["path"]).stat().st_size


def test_refusal_is_one_line_and_a_traceback_on_stderr(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "out")
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert json.loads(stdout)["code"] == "ARTIFACT_NOT_ACCESSIBLE"
    assert "Traceback" in stderr
    assert not (tmp_path / "out").exists()


def test_faulty_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "converters", "convert", "--task", "txt2img"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--task" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_leaves_only_the_output_folder(
    how: signal.Signals, source: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    process = start(source, tmp_path / "out", env=os.environ | {"TMPDIR": str(scratch)})
    list(events_until(process, "export"))
    process.send_signal(how)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -how
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "tmp"}
    assert list(scratch.iterdir()) == []


def test_reader_gone_ends_the_conversion(source: Path, tmp_path: Path) -> None:
    """A control plane that was killed must not leave a converter at work."""
    process = start(source, tmp_path / "out")
    list(events_until(process, "load"))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.read()
    process.stderr.close()
    assert process.wait(DEADLINE) != 0
    assert not (tmp_path / "out").exists()


def test_write_that_does_not_fit(source: Path, tmp_path: Path) -> None:
    """Files are limited to 40 kB; the graph is larger."""
    limit = (40_000, 40_000)
    process = start(
        source,
        tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    stdout, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    error = json.loads(stdout.splitlines()[-1])
    assert error["code"] == "INSUFFICIENT_DISK"
    assert not (tmp_path / "out").exists()


def test_large_weights_lie_beside_the_graph(source: Path, tmp_path: Path) -> None:
    from converters.manifest import Identity
    from converters.progress import EventStream
    from converters.text_embedding import convert_text_embedding

    events, identity = EventStream(io.StringIO()), Identity("org/tiny", "main")
    for name, limit in (("one", None), ("two", 10_000)):
        manifest = convert_text_embedding(
            source, tmp_path / name, identity, events, external_data_above=limit
        )
    assert [file["path"] for file in manifest["files"]] == [
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    ]
    texts = list(models.TEXTS)
    one, two = (models.artefact_vectors(tmp_path / name, texts) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_second_exporter_takes_over(tmp_path: Path) -> None:
    """TorchScript cannot export a Fourier transform; torch.export can."""
    from sentence_transformers import SentenceTransformer

    from converters.__main__ import main

    source, out = models.tiny_fnet(tmp_path / "model"), io.StringIO()
    assert main(command(source, tmp_path / "out")[3:], out) == 0
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert events[-1]["manifest"]["converter"]["exporter"] == "dynamo"
    assert b"site-packages" not in (tmp_path / "out/model.onnx").read_bytes()
    # FNet mixes padding into every text, so sentence-transformers gets the same single batch.
    texts = list(models.TEXTS)
    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    expected = model.encode(texts, batch_size=len(texts))
    found = models.artefact_vectors(tmp_path / "out", texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
