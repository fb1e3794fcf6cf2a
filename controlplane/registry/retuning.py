"""Measuring a ready version's engines again, and putting what wins in the old artefact's place.

The version stays ready and is served meanwhile. What is published is a whole new conversion of the
same source: its folder takes the place of the old one's by renaming, and the row says so right
after. A crash between the two leaves a row that does not fit its folder: the next start calls the
version failed, resumes the operation, and that installs it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from controlplane.errors import ValidationFailed
from controlplane.registry.engine_choice import installed_engines
from controlplane.registry.files import Progress, source_checksum
from controlplane.registry.installation import Installation, read_artefact
from controlplane.registry.model import VersionStatus
from controlplane.registry.waiting import to_its_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from controlplane.registry.engine_choice import EngineChoice
    from controlplane.registry.files import FetchedSource
    from controlplane.registry.installation import Workshop
    from controlplane.registry.model import Model, ModelVersion


def check_tunable(version: ModelVersion) -> None:
    """Find out whether there is anything to choose from.

    Raises:
        ValidationFailed: it is not ready, or its backend runs the model's own framework.
    """
    what = f"{version.model_id}@{version.version}"
    if version.status is not VersionStatus.READY:
        raise ValidationFailed.field(
            "version", f"{what} is {version.status}, not ready: install it first"
        )
    if version.engine not in installed_engines():
        raise ValidationFailed.field(
            "version", f"{what} runs on {version.engine}: only exported models have engines"
        )


class Retuning(Installation):
    """One version being converted anew while it is served.

    Args:
        reload: called when the new artefact is in its place; has a version that is in memory
            served from it, and raises what a load raises.
        previous: what the version was chosen to run on before, if anybody chose.

    Attributes:
        replaced: the new artefact is in its place.
    """

    def __init__(
        self,
        workshop: Workshop,
        model: Model,
        version: ModelVersion,
        report: Callable[[Progress], None],
        reload: Callable[[ModelVersion], Awaitable[None]],
        previous: EngineChoice | None = None,
    ) -> None:
        super().__init__(workshop, model, version, report)
        self.previous = previous
        self.replaced = False
        self._reload = reload

    async def run(self) -> None:
        """Do it all; until the end the version is what it was.

        Raises:
            ModelMoraError: why it failed; after that, too.
        """
        async with self._shop.downloading:
            source = await self._download()
        self._shop.store.check_pin(self._model.model_id, self.version.version, source.checksum)
        message = "waiting for the converter"
        self._report(Progress(phase="exporting", step="wait", message=message))
        async with self._shop.converting:
            await self._convert(source)
        self._report(Progress(phase="exporting", step="reload", message="loading it anew"))
        await self._reload(self.version)

    async def _publish(
        self,
        source: FetchedSource,  # noqa: ARG002 - pinned long ago
        manifest: dict[str, Any],
        output: Path,
    ) -> None:
        """Put the artefact in the old one's place, and have the row say so; both or, with the
        process, none."""
        artefact = read_artefact(manifest)
        await to_its_end(asyncio.ensure_future(self._replace(manifest, artefact, output)))

    async def _replace(self, manifest: dict[str, Any], artefact: Any, output: Path) -> None:
        repository, store = self._shop.repository, self._shop.store
        number = self.version.triton_version
        await asyncio.to_thread(repository.publish, self.model_id, number, output)
        store.mark_tuned(
            self._model.model_id,
            self.version.version,
            manifest=manifest,
            artefact_bytes=sum(file.size for file in artefact.files),
            artefact_checksum=source_checksum(artefact.files),
        )
        self.replaced = True
