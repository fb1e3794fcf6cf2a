"""What the command line says and asks about engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--engine` and `--precision`, for commands that convert."""
    for option in (
        click.option(
            "--precision",
            metavar="PRECISION",
            help="fp32, bf16, fp16, int8, or auto: measure again. int8 only when asked for.",
        ),
        click.option(
            "--engine",
            metavar="ENGINE",
            help="onnxruntime, openvino, torchscript, or auto: the fastest that computes the same.",
        ),
    ):
        command = option(command)
    return command


def candidate_lines(
    candidates: Iterable[Mapping[str, Any]] | None,
) -> Iterator[tuple[str, str]]:
    """One line of `modelmora info` for each engine that was measured."""
    for one in candidates or ():
        mark = ", chosen" if one.get("chosen") else ""
        yield f"{one['engine']} {one['precision']}", _figures(one) + mark


def _figures(one: Mapping[str, Any]) -> str:
    times = ", ".join(f"{ms:g} ms" for ms in one.get("milliseconds", {}).values())
    sizes = ", ".join(one.get("milliseconds", {}))
    # Of text generators a layer is timed, with so many tokens at once.
    batches = "one layer, tokens" if one["engine"] == "transformers" else "batches of"
    cosine, divergence, same = (one.get(f) for f in ("min_cosine", "divergence", "same_token"))
    parts = [
        f"{times} ({batches} {sizes})" if times else "",
        f"cosine {cosine:.5f}" if cosine is not None else "",
        f"divergence {divergence:.5f}" if divergence is not None else "",
        f"same likeliest token {same:.1%}" if same is not None else "",
        f"{one['memory_mb']} MB" if "memory_mb" in one else "",
        str(one.get("reason", "")),
    ]
    return ", ".join(filter(None, parts))
