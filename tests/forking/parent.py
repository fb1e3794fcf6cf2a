"""The process that converters fork from; `tests.forking` starts it.

Each request gets a keeper, which forks the converter, waits for its end or for its client's, and
answers. Nobody is left when the test run dies: our stdin ends with it, children end with us, and
what else the run started is killed then.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import psutil

from tests.forking import SOCKET

# What conversions import; only imported, so that nothing has started a thread when we fork.
MODULES = (
    *("onnxruntime", "onnx", "torch", "transformers", "transformers.masking_utils"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert"),
    *("converters.conversion", "converters.text_embedding", "converters.loading"),
    *("converters.onnx", "converters.torchscript", "converters.verify", "converters.engines"),
)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def serve(listener: socket.socket) -> None:
    """Until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test run, and it ends us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
    with listener, selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        while sys.stdin not in [key.fileobj for key, _ in ready.select()]:
            client, _ = listener.accept()
            _prepare()
            if _fork() == 0:
                listener.close()
                _keep(client)
            client.close()


def sweep(address: str) -> None:
    """Kill what the test run has left: a worker that was killed could not end its servers.

    All that it started, however deep below, has our address in its environment.
    """
    mark = f"{SOCKET}={address}".encode()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            started_with = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark in started_with and process.status() != psutil.STATUS_ZOMBIE:
                print(f"left behind by the tests, killed: {process.cmdline()}", file=sys.stderr)
                process.kill()


def _prepare() -> None:
    # As the control plane and `python -m converters` set them, before anything reads them.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "ORT_DISABLE_TELEMETRY": "1"}
    for name in MODULES:
        importlib.import_module(name)


def _fork() -> int:
    """As os.fork(); the child dies with us."""
    pid = os.fork()
    if pid == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return pid


def _keep(client: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, (out, err) = _request(client)
    pid = _fork()
    if pid == 0:
        os.setsid()  # what it starts is killed with it
        client.close()
        _convert(asked, out, err)
    os.close(out)
    os.close(err)
    with selectors.DefaultSelector() as ready:
        ended = os.pidfd_open(pid)
        ready.register(ended, selectors.EVENT_READ)
        ready.register(client, selectors.EVENT_READ)
        if ended not in [key.fileobj for key, _ in ready.select()]:
            os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    try:
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    finally:
        os._exit(0)


def _request(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, descriptors, _, _ = socket.recv_fds(client, 2**16, 2)
    while not data.endswith(b"\n"):
        data += client.recv(2**16)
    asked: dict[str, Any] = json.loads(data)
    return asked, descriptors


def _convert(asked: dict[str, Any], out: int, err: int) -> None:
    """Become the converter that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 256)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["converters", *asked["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    status = 1
    try:
        runpy.run_module("converters", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001 as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    sweep(sys.argv[2])
