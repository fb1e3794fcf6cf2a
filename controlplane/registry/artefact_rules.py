"""What a converter's manifest must be so that the control plane can serve it. Rules only.

A converter may be anybody's (docs/extending.md): what is wrong with its manifest is said when the
artefact is published, by field, and not by whatever breaks at the first load.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec

from controlplane.errors import ExportFailed

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.:/-]+$")]
_Size = Annotated[int, msgspec.Meta(ge=-1, le=2**31)]
# KServe v2's, without BF16, for which a test inference has no array.
_Whole = Literal["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
_Datatype = Literal[_Whole, "BOOL", "FP16", "FP32", "FP64", "BYTES"]


class _Tensor(msgspec.Struct):
    name: _Name
    datatype: _Datatype
    shape: list[_Size]
    optional: bool = False


class _Base64(msgspec.Struct):
    base64: str


class _Probe(msgspec.Struct):
    inputs: dict[str, str | _Base64] = {}
    parameters: dict[str, bool | int | float | str] = {}


class _Manifest(msgspec.Struct):
    inputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1)]
    outputs: Annotated[list[_Tensor], msgspec.Meta(min_length=1)]
    max_batch_size: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    decoupled: bool = False
    probe: _Probe = msgspec.field(default_factory=_Probe)


def check(manifest: dict[str, Any]) -> None:
    """Check what the control plane itself needs of a manifest; the rest is the backend's.

    Raises:
        ExportFailed: naming the first field that is wrong.
    """
    try:
        known = msgspec.convert(manifest, _Manifest)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error
    for kind, tensors in (("inputs", known.inputs), ("outputs", known.outputs)):
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            raise _refusal(f"two of its {kind} have the same name")
        if any(0 in tensor.shape for tensor in tensors):
            raise _refusal(f"a shape of its {kind} has a size of 0; -1 is an open one")
    _check_probe(known)


def _check_probe(known: _Manifest) -> None:
    datatypes = {tensor.name: tensor.datatype for tensor in known.inputs}
    for name, value in known.probe.inputs.items():
        if name not in datatypes:
            raise _refusal(f"its probe has the input {name!r}, which the model has not")
        if datatypes[name] != "BYTES":
            continue  # zeros are sent: the value only says that it is
        try:
            if isinstance(value, _Base64):
                base64.b64decode(value.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refusal(f"its probe's {name!r} is not base64: {error}") from error


def _refusal(what: str) -> ExportFailed:
    return ExportFailed(f"The converter's manifest cannot be used: {what}.")
