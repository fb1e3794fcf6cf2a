"""A loaded model that answers requests; knows nothing of Triton."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from backends import machine
from backends.generation import loading
from backends.generation.detokenizing import Detokenizer
from backends.text_generation.artefact import CLASSES, TextGenerationArtefact, read_artefact
from backends.text_generation.requests import GenerationRequest, read_request
from backends.text_generation.scheduler import Scheduler
from backends.text_generation.sequence import Receiver, Sequence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Generator:
    """One model, its tokenizer, and the thread that computes."""

    def __init__(self, artefact: TextGenerationArtefact, model: Any, tokenizer: Any) -> None:
        from backends.generation import sampling
        from backends.text_generation import decoding

        self.artefact = artefact
        self._model, self._tokenizer = model, tokenizer
        self._end_tokens = sampling.end_tokens(model)
        self._decoder: Any
        if artefact.together:
            self._decoder = decoding.TogetherDecoder(model)
        else:
            self._decoder = decoding.InTurnDecoder(model)
        budget = artefact.kv_bytes // max(1, artefact.kv_bytes_per_token)
        self._scheduler = Scheduler(self._decoder, self._open, token_budget=budget)

    @classmethod
    def open(cls, folder: Path, *, device_id: int = 0) -> Generator:
        """Load the artefact in a version folder.

        Raises:
            BackendError: it is incomplete, or transformers cannot load it.
        """
        artefact = read_artefact(folder)
        loading.be_offline()
        model = loading.open_model(
            CLASSES[artefact.kind],
            artefact.folder,
            precision=artefact.precision,
            device=loading.choose_device(device_id),
            safe=artefact.safe,
        )
        return cls(artefact, model, loading.open_processor("AutoTokenizer", artefact.folder))

    def answer(
        self,
        text: bytes | None,
        messages: bytes | None,
        parameters: Mapping[str, Any],
        receiver: Receiver,
    ) -> None:
        """Begin to answer a request; returns at once, the receiver hears the rest.

        Raises:
            InputError: as `read_request`.
        """
        request = read_request(text, messages, parameters, self.artefact, self._tokenizer)
        self._scheduler.submit(request, receiver)

    def close(self) -> None:
        """Stop computing and let go of the model's memory."""
        self._scheduler.stop()
        del self._model, self._decoder, self._scheduler
        gc.collect()
        machine.return_free_memory()

    def _open(self, request: GenerationRequest, receiver: Receiver) -> Sequence:
        from backends.generation.sampling import Sampler

        asked = request.generation
        if self.artefact.kind == "encoder_decoder":
            start = self._decoder.start
            sampler = Sampler(self._model, asked, prompt=start, encoder_prompt=request.prompt)
        else:
            sampler = Sampler(self._model, asked, prompt=request.prompt)
        state, prefill = self._decoder.begin(request.prompt)
        return Sequence(
            request,
            receiver,
            sampler=sampler,
            detokenizer=Detokenizer(self._tokenizer),
            end_tokens=self._end_tokens,
            state=state,
            prefill=prefill,
        )
