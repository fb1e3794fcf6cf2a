"""Rules of text generation that need no model: stop strings, pieces of text, places, parameters."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InputError
from backends.generation.detokenizing import Detokenizer
from backends.generation.parameters import Generation, read_flag, read_generation
from backends.generation.stopping import StopStrings
from backends.text_generation.scheduler import (
    MAX_RUNNING,
    PROMPT_TOKENS,
    Scheduler,
    begun_together,
    may_join,
)
from tests import models

if TYPE_CHECKING:
    from collections.abc import Sequence

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3, unique=True)


def fed(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, bool]:
    """What comes out of a text that ends where its pieces end, and whether a stop was reached."""
    watch, out = StopStrings(stops), ""
    for piece in pieces:
        out += watch.feed(piece)
        if watch.reached:
            return out, True
    return out + watch.rest(), False


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first, found the slow way."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(STOPS, st.lists(st.text("abc", max_size=5), max_size=8))
def test_stop_strings_do_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    out, reached = fed(stops, pieces)
    assert out == cut(whole, stops)
    assert reached == any(stop in whole for stop in stops)


@given(STOPS, st.lists(st.text("abc", max_size=5), max_size=8))
def test_no_more_is_held_back_than_may_be_a_stop_string(
    stops: list[str], pieces: list[str]
) -> None:
    watch, seen, out = StopStrings(stops), "", ""
    for piece in pieces:
        seen, out = seen + piece, out + watch.feed(piece)
        if watch.reached:
            return
        held = seen[len(out) :]
        assert seen.startswith(out)
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.fixture(scope="module")
def tokenizers() -> list[Any]:
    """Byte-level BPE; Unigram that drops the first space; Unigram with bytes; WordPiece."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    vocab, merges = models._byte_level(["<pad>", "<unk>"], last="<mask>")
    level = Tokenizer(kinds.BPE(vocab=vocab, merges=merges))
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    level.decoder = decoders.ByteLevel()
    pieces = models._unigram(["<pad>", "<unk>"], last="<mask>")
    unigram = Tokenizer(kinds.Unigram(pieces, unk_id=1))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    names = {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    bytes_only = {"<pad>": 0, "<unk>": 1} | names | {"▁": 258, "▁the": 259, "cat": 260}
    fallback = Tokenizer(kinds.BPE(vocab=bytes_only, merges=[], byte_fallback=True))
    fallback.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    words = Tokenizer(kinds.WordPiece(models._wordpiece(["[PAD]", "[UNK]"]), unk_token="[UNK]"))
    words.decoder = decoders.WordPiece(cleanup=False)
    for tokenizer in (level, unigram, fallback, words):
        tokenizer.add_special_tokens([AddedToken("<|special|>", special=True)])
    return [Wrapped(tokenizer) for tokenizer in (level, unigram, fallback, words)]


class Wrapped:
    """The two methods of transformers' tokenizers that are needed."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **_: Any) -> str:
        text: str = self.core.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.core.encode(text).ids
        return ids


@given(st.data())
def test_pieces_of_text_make_the_whole_text(tokenizers: list[Any], data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from(tokenizers))
    size = tokenizer.core.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    # One bad byte makes ByteFallback take back the good ones before it, which have been sent.
    if tokenizer is not tokenizers[2] or "\ufffd" not in whole:
        assert "".join(pieces) + detokenizer.rest() == whole


def test_no_piece_has_half_a_character(tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers[:1]:
        detokenizer = Detokenizer(tokenizer)
        ids = tokenizer.encode("the 日本 cat 😀👍")
        pieces = [detokenizer.add(token) for token in ids]
        assert "".join(pieces) == "the 日本 cat 😀👍"
        assert not any("\ufffd" in piece for piece in pieces)
        assert {"日", "本", "😀", "👍"} <= {piece.strip() for piece in pieces}


@given(st.integers(1, 500), st.lists(st.integers(1, 500), max_size=40), st.integers(1, 10_000))
def test_places_are_limited_by_number_and_memory(
    tokens: int, running: list[int], budget: int
) -> None:
    rows = [*running, tokens]
    fits = len(rows) <= MAX_RUNNING and len(rows) * max(rows) <= budget
    assert may_join(tokens, running, budget) == (fits or not running)


def test_parameters_are_read() -> None:
    assert read_generation({}) == Generation()
    assert not Generation().samples
    given_all = {
        "max_tokens": 5.0,  # JSON makes no difference between 5 and 5.0
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 0,
        "repetition_penalty": 1.5,
        "stop": '["a", "b", "a"]',
        "seed": 2**63 - 1,
        "priority": "belongs to Triton",
    }
    found = read_generation(given_all)
    assert found == Generation(5, 1.0, 0.5, 0, 1.5, ("a", "b"), 2**63 - 1)
    assert found.samples
    assert read_generation({"max_length": 7}).max_tokens == 7
    assert read_generation({"stop": "[not JSON"}).stop == ("[not JSON",)
    assert read_flag({"stream": True}, "stream")
    assert not read_flag({}, "stream")


@pytest.mark.parametrize(
    "faulty",
    [
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"max_tokens": "5"},
        {"max_tokens": float("inf")},
        {"temperature": float("nan")},
        {"temperature": [1]},
        {"top_p": 0},
        {"top_p": -0.1},
        {"top_k": -1},
        {"seed": 2**63},
        {"repetition_penalty": 0},
        {"stop": json.dumps(["x"] * 17)},
        {"stop": "x" * 1001},
        {"stop": 5},
        {"stop": ""},
    ],
)
def test_faulty_parameters_are_named(faulty: dict[str, Any]) -> None:
    (name,) = faulty
    with pytest.raises(InputError, match=f"^Parameter {name} m"):
        read_generation(faulty)


@given(st.lists(st.integers(1, 2 * PROMPT_TOKENS), max_size=40))
def test_short_prompts_begin_together_and_long_ones_alone(prompts: list[int]) -> None:
    count = begun_together(prompts)
    assert (count == 0) == (not prompts)
    if count > 1:
        assert sum(prompts[:count]) <= PROMPT_TOKENS
    if count < len(prompts):  # no more would have fitted
        assert sum(prompts[: count + 1]) > PROMPT_TOKENS


def test_requests_that_come_together_get_their_first_token_before_anybodys_second() -> None:
    events: list[str] = []
    tokens: list[int] = []

    class Talker:
        """A generation of three tokens."""

        def __init__(self, name: str, prompt: int) -> None:
            self.name, self.state, self.token = name, name, 0
            self.request: Any = SimpleNamespace(prompt=range(prompt))
            self.receiver: Any = SimpleNamespace(is_gone=lambda: False)
            self.prefill: Any = iter([name])
            self.left = 3

        def take(self, _: object) -> bool:
            events.append(self.name)
            self.left -= 1
            return self.left == 0

    class Stepping:
        def step(self, states: list[str], tokens_: list[int]) -> list[str]:
            tokens.append(len(states))
            return states

    decoder: Any = Stepping()
    scheduler = Scheduler(decoder, lambda *_: pytest.fail("nobody asked"), token_budget=10**6)
    scheduler.stop()  # its thread: the turns are taken here
    scheduler._starting = [Talker(name, 64) for name in "abcd"]  # type: ignore[misc]
    scheduler._starting.append(Talker("e", PROMPT_TOKENS))  # type: ignore[arg-type]
    for _ in range(4):
        scheduler._prefill()
        scheduler._step()
    assert "".join(events) == "abcd" + "abcd" + "e" + "abcd" + "e" + "e"
    assert tokens == [4, 5, 1]
