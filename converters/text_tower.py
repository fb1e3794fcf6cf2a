"""The text side of CLIP and its kin: tokenizer and tower, as the model's own processor has them."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from converters import towers
from converters.errors import ArtifactNotAccessible, ExportFailed, one_line
from converters.tokenization import (
    TOKENIZER_FILE,
    Tokenization,
    require_vocabulary,
    write_tokenizer,
)
from converters.verify import verification_batches

if TYPE_CHECKING:
    from pathlib import Path

    from converters.image_repository import ImageRepository

# SigLIP was trained on texts padded to their full length, without a mask for the padding; its
# text model takes the last position's vector, whatever stands there.
_FIXED_LENGTH = {"siglip", "siglip2"}


@dataclass(frozen=True)
class TextSide:
    """What makes vectors of texts; tokenizer.json is written."""

    tower: towers.TextTower
    tokenization: Tokenization


def load_text_side(repository: ImageRepository, model: Any, output: Path) -> TextSide:
    """Write `output`/tokenizer.json and build the tower.

    Raises:
        ArtifactNotAccessible: no tokenizer, or a damaged one.
        ExportFailed: the tokenizer has no version that needs neither transformers nor
            sentencepiece.
    """
    tokenizer = load_tokenizer(repository.folder)
    config = model.config
    limits = [tokenizer.model_max_length, getattr(config.text_config, "max_position_embeddings", 0)]
    limit = int(min(number for number in limits if number))
    texts = [text for batch in verification_batches(limit) for text in batch]
    if tokenizer.is_fast:
        write_tokenizer(tokenizer, repository.folder, output, texts=texts)
    else:
        _write_fast_version(tokenizer, repository.folder, output, texts, limit)
    pad = tokenizer.pad_token_id
    tokenization = Tokenization(
        input_names=towers.text_inputs(model, tokenizer),
        max_seq_length=limit,
        pad_token_id=(tokenizer.eos_token_id or 0) if pad is None else pad,
        pad_token_type_id=tokenizer.pad_token_type_id,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
    tower = towers.TextTower(
        model,
        tokenization,
        fixed_length=config.model_type in _FIXED_LENGTH,
        normalize=repository.normalize,
    )
    return TextSide(tower.eval(), tokenization)


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer.

    Raises:
        ArtifactNotAccessible: none there, or damaged.
    """
    require_vocabulary(folder)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ArtifactNotAccessible(f"The tokenizer cannot be read: {one_line(error)}.") from error


def _write_fast_version(
    tokenizer: Any, folder: Path, output: Path, texts: list[str], limit: int
) -> None:
    """Write tokenizer.json for a tokenizer that transformers has in Python only (SigLIP's)."""
    known = [
        made
        for made in (_stored(folder / TOKENIZER_FILE), _of_siglip(tokenizer))
        if made is not None and _agrees(made, tokenizer, texts, limit)
    ]
    if not known:
        raise ExportFailed(
            f"{type(tokenizer).__name__} has no fast version that gives the same tokens, which "
            "serving needs."
        )
    known[0].save(str(output / TOKENIZER_FILE))


def _stored(path: Path) -> Tokenizer | None:
    if not path.is_file():
        return None
    try:
        found = Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - the library raises plain Exception; ours is taken then
        return None
    found.no_padding()
    found.no_truncation()
    return found


def _of_siglip(tokenizer: Any) -> Tokenizer | None:
    """SiglipTokenizer's steps (tokenization_siglip.py) as a tokenizer without Python."""
    if type(tokenizer).__name__ != "SiglipTokenizer":
        return None
    model = tokenizer.sp_model
    count = model.get_piece_size()
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(count)]
    made = Tokenizer(Unigram(pieces, model.unk_id(), byte_fallback=False))
    lower = [normalizers.Replace(Regex(_FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    steps = [
        *(lower if tokenizer.do_lower_case else []),
        normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        *_sentencepiece_rules(model),
    ]
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    eos = tokenizer.eos_token
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    return made


# Python's lower() writes a sigma that ends a word as ς; the library's Lowercase does not.
_FINAL_SIGMA = r"(?<=\p{L})Σ(?!\p{L})"


def _escaped(characters: str) -> str:
    return "".join(f"\\{character}" for character in characters)


def _sentencepiece_rules(model: Any) -> list[Any]:
    """The model file's own normalisation, such as NFKC."""
    # sentencepiece ships one as well, for a newer protobuf than Triton's client takes.
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.serialized_model_proto())
    rules = proto.normalizer_spec.precompiled_charsmap
    return [normalizers.Precompiled(rules)] if rules else []


def _agrees(made: Tokenizer, tokenizer: Any, texts: list[str], limit: int) -> bool:
    """The same ids, as far as the model reads. Texts that are blank but for punctuation and those
    with special tokens written out do not count: nobody means them, and each tokenizer makes
    something else of them."""
    special, blank = tokenizer.all_special_tokens, string.punctuation + string.whitespace + "\u00a0"
    plain = [text for text in texts if text.strip(blank) and not any(t in text for t in special)]
    expected = tokenizer(plain, truncation=True, max_length=limit, padding=False)["input_ids"]
    made.enable_truncation(limit)
    found = [encoding.ids for encoding in made.encode_batch(plain)]
    made.no_truncation()
    return found == [list(ids) for ids in expected]
