"""Exports until one computes what PyTorch computes, and what is the same in all manifests."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.errors import ConversionError, ExportFailed, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from converters.conversion import Conversion
    from converters.engines import Chosen
    from converters.progress import EventStream

MAX_ABS_DIFF = 1e-4


@dataclass(frozen=True)
class Agreement:
    """How close a graph's outputs come to PyTorch's.

    Attributes:
        items: texts or images compared.
        max_abs_diff: the largest difference; NaN where an output is no number.
        scale: the largest value of PyTorch's, at least 1.
    """

    items: int
    max_abs_diff: float
    scale: float = 1.0

    @property
    def holds(self) -> bool:
        """At most 1e-4 of the scale; written so that NaN fails."""
        return self.max_abs_diff <= MAX_ABS_DIFF * self.scale


@dataclass(frozen=True)
class Accepted:
    """An export that holds; `inputs` are the graph's, of which exporters drop unused ones."""

    exporter: str
    inputs: tuple[str, ...]
    agreement: Agreement


def agreement(items: int, expected: NDArray[Any], found: NDArray[Any]) -> Agreement:
    """Compare two arrays of one shape; another shape or NaN anywhere fails."""
    if expected.shape != found.shape:
        return Agreement(items, float("nan"))
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return Agreement(items, float(np.abs(expected - found).max(initial=0.0)), scale)


def export_until_it_holds(
    export: Callable[[str], tuple[str, ...]],
    compare: Callable[[], Agreement],
    events: EventStream,
) -> Accepted:
    """Try each of `onnx.EXPORTERS` until a graph agrees with PyTorch.

    Args:
        export: writes the graph with the exporter of that name; its inputs.
        compare: holds the graph against PyTorch.

    Raises:
        ExportFailed: none does; with the last one's figures or error.
    """
    from converters import onnx

    failure = ""
    for exporter in onnx.EXPORTERS:
        events.progress("export", 0.0, f"exporting to ONNX ({exporter})")
        try:
            inputs = export(exporter)
            events.progress("verify", 0.0, "comparing ONNX Runtime with PyTorch")
            found = compare()
        except (ConversionError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - exporters raise anything; the next one may do
            traceback.print_exc()
            failure = f"{type(error).__name__}: {one_line(error)}"
            continue
        if found.holds:
            events.progress("verify", 1.0, "the graph agrees with PyTorch")
            return Accepted(exporter, inputs, found)
        failure = f"its outputs differ from PyTorch's by up to {found.max_abs_diff:.1e}"
    raise ExportFailed(f"The model cannot be exported to ONNX; {failure}.")


def base_manifest(
    conversion: Conversion,
    *,
    backend: str,
    engine: str,
    precision: str,
    libraries: tuple[str, ...],
    **rest: Any,
) -> dict[str, Any]:
    """The fields that every manifest has, then the converter's own, in that order.

    Args:
        libraries: distributions whose versions the artefact depends on.
        rest: inputs, outputs, max_batch_size, decoupled, probe, the backend's section, ….
    """
    identity = conversion.identity
    # Without the build's label (`+cpu`): it does not change the artefact.
    versions = {name: metadata.version(name).partition("+")[0] for name in libraries}
    rest["converter"] = (
        {"modelmora": metadata.version("modelmora")} | versions | dict(rest.get("converter", {}))
    )
    return {
        "format": 1,
        "model_id": identity.model_id,
        "version": identity.version,
        "revision": identity.revision,
        "source_checksum": identity.source_checksum,
        "task_type": conversion.task,
        "backend": backend,
        "engine": engine,
        "precision": precision,
        **rest,
    }


def graph_facts(
    accepted: Accepted, chosen: Chosen, parameters: int, dtype: str | None
) -> Mapping[str, Any]:
    """What a manifest says of an exported graph and its engine."""
    from converters.onnx import OPSET

    return {
        "engine": chosen.engine,
        "precision": chosen.precision,
        "parity": {
            "reference": "pytorch fp32",
            "items": accepted.agreement.items,
            "max_abs_diff": float(f"{accepted.agreement.max_abs_diff:.1e}"),
        },
        "candidates": chosen.table,
        "parameters": parameters,
        "dtype": dtype or "unknown",
        "converter": {"opset": OPSET, "exporter": accepted.exporter},
    }


def tensor(
    name: str, datatype: str, shape: tuple[int, ...] = (1,), *, optional: bool = False
) -> dict[str, Any]:
    """A manifest's entry for an input or output."""
    entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    return entry | ({"optional": True} if optional else {})
