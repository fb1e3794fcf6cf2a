"""Files that an input names by address: fetched as sources are, where the operator allows it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from controlplane.errors import InvalidInput, ModelMoraError
from controlplane.inference.tasks.limits import MAX_FILE_BYTES

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Plan, Reference
    from controlplane.settings import Settings

FETCH_SECONDS = 20.0
# Threads of their own: slow addresses must not take the event loop's.
_THREADS = 8


class UrlInputs:
    """Fetches the references of plans, each address once per call."""

    def __init__(self, settings: Settings) -> None:
        self.allowed = settings.allow_url_inputs
        self._settings = settings
        self._threads: ThreadPoolExecutor | None = None

    async def fetched(self, plan: Plan) -> Plan:
        """The plan with bytes in the place of addresses.

        Together they may have as many bytes as a request body.

        Raises:
            InvalidInput: naming the field whose address is refused or does not answer.
        """
        references = plan.references
        if not references:
            return plan
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "url-input")
        loop = asyncio.get_running_loop()
        left = self._settings.max_request_bytes
        contents: dict[Reference, bytes] = {}
        for reference in references:
            if reference not in contents:
                most = min(left, MAX_FILE_BYTES)
                found = await loop.run_in_executor(self._threads, self._get, reference, most)
                contents[reference] = found
                left -= len(found)
        return plan.with_fetched(contents)

    def close(self) -> None:
        """Let go of the threads; what they fetch ends by itself."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _get(self, reference: Reference, most: int) -> bytes:
        # Few servers allow this: the others start without these modules.
        from controlplane.registry.files import SourceRules
        from controlplane.registry.patience import HubLimits, Transient
        from controlplane.registry.web import Web

        rules = SourceRules(
            allow_http=self._settings.allow_http,
            allow_private=self._settings.allow_private_sources,
        )
        try:
            return Web(rules, HubLimits()).read(reference.url, most, FETCH_SECONDS)
        except Transient as error:
            shown = reference.url.partition("?")[0]
            why = f"{shown} cannot be fetched now ({error})."
            raise InvalidInput(why, field=reference.field) from error
        except ModelMoraError as error:
            raise InvalidInput(error.message, field=reference.field) from error
