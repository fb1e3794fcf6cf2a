"""Failures of a backend, as one clear sentence each: they travel to the user through Triton."""

from __future__ import annotations


class BackendError(Exception):
    """Base of all expected failures of a backend."""


class ArtefactError(BackendError):
    """The version folder does not hold what its manifest says."""


class EngineError(BackendError):
    """The engine cannot open the model, or failed to run it."""


class InputError(BackendError):
    """One request asks for something that this model cannot do."""


class RequestAbandoned(BackendError):
    """Nobody waits for the answer to this request any more."""
