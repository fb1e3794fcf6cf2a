"""Ready-made Triton models in words: what `install` and `info` say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def summary(known: Mapping[str, Any]) -> str:
    """One line: `python backend, 2 inputs, 1 output`."""
    parts = [
        f"{known['backend']} backend",
        _count(known["inputs"], "input"),
        _count(known["outputs"], "output"),
    ]
    parts += ["decoupled"] if known["decoupled"] else []
    parts += ["with sequences"] if known["sequence"] else []
    return ", ".join(parts)


def described(known: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    """Rows of `info`; none for a model that was converted."""
    if not known:
        return
    kind = "decoupled: answers over streams" if known["decoupled"] else "one answer a request"
    yield "used as it is", f"{known['backend']} backend, version folder {known['version_folder']}"
    for name in ("inputs", "outputs"):
        yield name, "; ".join(map(_tensor, known[name])) or "the model tells them when it is loaded"
    yield "batch size", f"up to {known['max_batch_size']}" if known["max_batch_size"] else "none"
    yield "answers", kind + (", keeps sequences apart" if known["sequence"] else "")
    yield "health", "by a test inference" if known["probe"] == "inference" else "Triton says ready"


def _count(tensors: Sequence[Any], what: str) -> str:
    return f"{len(tensors)} {what}" + ("" if len(tensors) == 1 else "s")


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = ", ".join("any" if size < 0 else str(size) for size in tensor["shape"])
    return f"{tensor['name']} {tensor['datatype']} [{shape}]" + (
        " (optional)" if tensor.get("optional") else ""
    )
