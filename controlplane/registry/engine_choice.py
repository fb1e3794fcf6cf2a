"""Which engine is to serve a version, where somebody has a say in it. Rules only, no I/O.

Nobody has to: the converter measures those that the machine has (docs/engines.md).
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.errors import ValidationFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINES = "modelmora.engines"  # the group of entry points
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
AUTO = "auto"


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a version's converter is to be asked for; what is None is left to measurement.

    Attributes:
        required: without it the conversion fails; else (a lock of another machine says it) the
            converter measures and chooses where this machine does not have it.
    """

    engine: str | None = None
    precision: str | None = None
    required: bool = True

    def __str__(self) -> str:
        return " ".join(part for part in (self.engine, self.precision) if part)

    def made(self, manifest: Mapping[str, Any]) -> bool:
        """True when the artefact of that manifest is as chosen."""
        return all(
            asked in (None, manifest.get(name))
            for name, asked in (("engine", self.engine), ("precision", self.precision))
        )


def installed_engines() -> tuple[str, ...]:
    """Engines for exported models, ours and those of plugins, by name."""
    return tuple(sorted(metadata.entry_points(group=ENGINES).names))


def parse_choice(engine: str | None, precision: str | None) -> EngineChoice | None:
    """What a request says; None when it leaves all to measurement (`auto`, or nothing).

    Raises:
        ValidationFailed: no such engine is installed, or there is no such precision.
    """
    errors: dict[str, list[str]] = {}
    known = installed_engines()
    if engine not in (None, AUTO, *known):
        errors["engine"] = [f"must be one of {', '.join((*known, AUTO))}"]
    if precision not in (None, AUTO, *PRECISIONS):
        errors["precision"] = [f"must be one of {', '.join((*PRECISIONS, AUTO))}"]
    if errors:
        raise ValidationFailed(errors)
    return _choice(None if engine == AUTO else engine, None if precision == AUTO else precision)


def locked_choice(engine: str | None, precision: str | None) -> EngineChoice | None:
    """What a lock's record of a converter asks of this machine's: the same, if it has it; None
    for engines that no exported model has (ready-made models, those that run a framework)."""
    if engine not in installed_engines():
        return None
    return EngineChoice(engine=engine, precision=precision, required=False)


def _choice(engine: str | None, precision: str | None) -> EngineChoice | None:
    return EngineChoice(engine=engine, precision=precision) if engine or precision else None
