"""Token ids to text, piece by piece: no half characters, no lost spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# What decoders put in the place of bytes that are no whole character (yet).
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text of a growing list of tokens, as `decode` of them all would give it.

    A token's text depends on those before it (word pieces, bytes of a character, spaces dropped at
    the beginning), so two stretches are decoded each time, with and without the new tokens, and
    the difference is the new text. Method: text-generation-inference, vLLM.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0  # where the stretch begins that is decoded again
        self._told = 0  # tokens whose text has been given

    def add(self, token: int) -> str:
        """The text that is whole now; "" while the last characters still lack bytes."""
        self._ids.append(token)
        return self._new(whole_only=True)

    def rest(self) -> str:
        """Text held back because it was incomplete, for a list that has ended."""
        return self._new(whole_only=False)

    def _new(self, *, whole_only: bool) -> str:
        before = self._decode(self._ids[self._window : self._told])
        after = self._decode(self._ids[self._window :])
        if (whole_only and after.endswith(_REPLACEMENT)) or len(after) <= len(before):
            return ""
        # Only where there was text: special tokens alone would leave no context for a space.
        self._window, self._told = self._told, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
