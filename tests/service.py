"""`modelmora serve` as its users run it: a process of its own, on ports it chose itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil

from controlplane.client import ModelMoraClient
from tests import forking, measuring

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


class Service:
    """One server on the data below `home`; may be started again after it was stopped or killed."""

    def __init__(
        self, home: Path, *, measured: bool = False, forking: bool = False, **settings: str
    ) -> None:
        """`measured`: coverage counts its lines; `forking`: its converters need not start anew."""
        self.home = home
        self.measured = measured
        self.forking = forking
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.url = self.grpc_url = ""
        self.python = sys.executable
        self.program: tuple[str, ...] = ("-m", "controlplane")

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def model_repository(self) -> Path:
        return self.home / "model_repository"

    @property
    def log(self) -> str:
        """What all lives of the server have logged, JSON lines."""
        return (self.home / "log").read_text() if (self.home / "log").exists() else ""

    def environment(self) -> dict[str, str]:
        values = {
            "DATA_DIR": str(self.data_dir),
            "MODEL_REPOSITORY": str(self.model_repository),
            "PORT": "0",
            "GRPC_PORT": "0",
            "LOG_FORMAT": "json",
            **self.settings,
        }
        ours = {f"MODELMORA_{name}": value for name, value in values.items()}
        measured = measuring.ENVIRONMENT if self.measured else {}
        return {**os.environ, **ours, **measured, **(forking.environment() if self.forking else {})}

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for anything."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "server.json").unlink(missing_ok=True)
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, *self.program, "serve"],
                cwd=self.home,
                env=self.environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self.process

    def start(self) -> Service:
        """Start and wait until requests are served."""
        process = self.spawn()
        deadline = time.monotonic() + START_TIMEOUT
        while not (self.data_dir / "server.json").exists():
            assert process.poll() is None, f"the server ended: {self.log[-3000:]}"
            assert time.monotonic() < deadline, f"the server does not start: {self.log[-3000:]}"
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        self.url, self.grpc_url = facts["url"], facts["grpc_url"]
        return self

    def client(self) -> ModelMoraClient:
        return ModelMoraClient(self.url)

    def stop(self) -> int:
        """SIGTERM; returns the exit code when the process and all its children are gone."""
        assert self.process is not None
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_TIMEOUT)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, f"left behind: {alive}"
        return code

    def family(self) -> list[psutil.Process]:
        """All processes below the server's."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """kill -9 of the control plane alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        """For fixtures: stop whatever still runs."""
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            for child in psutil.wait_procs(family, timeout=10)[1]:
                child.kill()
