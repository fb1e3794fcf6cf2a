"""Task txt2txt: a causal or encoder-decoder repository becomes an artefact of its own files."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from converters.errors import ExportFailed, one_line
from converters.packaging import MODEL_FOLDER, packaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from converters.conversion import Conversion
    from converters.weights import Weights

# Where neither configuration nor tokenizer limits the length.
_UNLIMITED_CONTEXT = 8192
_SMOKE_TOKENS = 4
_LARGEST_KV = 512 * 2**20
_MOST_RUNNING = 32  # requests at once, as the backend has it
# Two prompts of different lengths, whose scores must not depend on the padding between them.
_SHORT, _LONG = "hello", "hello, this is a somewhat longer text than the other one"
# Tokens of each text that precisions are compared with.
_LONGEST_VERIFIED = 64
VERIFICATION_TEXTS = (
    "The history of the river begins in the mountains, where the snow of the winter melts and a "
    "hundred small streams meet. In the spring the water rises, and the people of the valley",
    "Question: What is 17 + 25? Answer: 42. Question: What is 9 * 8? Answer: 72. Question:",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(",
    '{"name": "modelmora", "version": "1.0.3", "tags": ["a", "b"], "size": 1048576, "url": "http',
    "Der schnelle braune Fuchs springt über den faulen Hund, und am nächsten Morgen",
    "Съешь же ещё этих мягких французских булок, да выпей чаю, сказал он и",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好。我们",
    "summarize: The committee met on Tuesday. It decided that the new bridge would be built of "
    "stone, that it would cost 3,200 crowns, and that nobody should pay for crossing it.",
    "Dear Sir or Madam,\n\nI am writing to you because",
    "😀🚀 e\u0301 ½ <b>bold</b> !!! ... ???",
)
# Of the logits' spread; sums in another order differ by some 1e-6 in float32, 1e-2 in bfloat16.
_SAME = {4: 1e-3, 2: 0.1}


def convert(conversion: Conversion) -> dict[str, Any]:
    """The converter of the task txt2txt: checks that all parts fit together, then packages them.

    The manifest's section `text_generation` tells the backend how the model is to be run:
    `kind` (causal or encoder_decoder), `together` (requests may be padded and computed in one
    batch, which was tried), context length, chat template or not, memory per token.

    Raises:
        ConversionError: its subclass tells why; the output is gone then.
    """
    return packaged(conversion, _checked)


def _checked(conversion: Conversion, weights: Weights) -> dict[str, Any]:
    import transformers

    from converters import generation
    from converters.precision import Candidates, settle

    config = generation.read_config(conversion, _classes())
    kind = "encoder_decoder" if config.is_encoder_decoder else "causal"
    tokenizer = generation.load_processor(
        transformers.AutoTokenizer, conversion.source, "tokenizer"
    )
    context = generation.context_length(config, tokenizer, _UNLIMITED_CONTEXT)
    auto = {
        "causal": transformers.AutoModelForCausalLM,
        "encoder_decoder": transformers.AutoModelForSeq2SeqLM,
    }[kind]

    def load(precision: str) -> Any:
        model = generation.load_model(auto, conversion, weights, precision)
        _check_vocabulary(model, tokenizer)
        return model

    def scores(model: Any) -> Iterator[Any]:
        return (_scores(model, ids) for ids in _verification_texts(tokenizer, context))

    settled = settle(conversion, Candidates(config, weights, load, scores))
    model = settled.model
    conversion.events.progress("load", 1.0, f"loaded, to be served in {settled.precision}")
    conversion.events.progress("verify", 0.0, "generating some tokens")
    try:
        per_token = _try_out(model, tokenizer)
        together = kind == "causal" and _pads_well(model, tokenizer)
    except Exception as error:
        raise ExportFailed(f"The model generates nothing: {one_line(error)}.") from error
    conversion.events.progress("verify", 1.0, "it generates")
    base = generation.base_manifest(
        conversion.identity,
        task=conversion.task,
        backend="text_generation",
        settled=settled,
        weights=weights,
    )
    return base | {
        "decoupled": True,
        "load_bytes": generation.load_bytes(model, _kv_bytes(per_token, context)),
        "inputs": [
            generation.tensor("text_input", optional=True),
            generation.tensor("messages", optional=True),
        ],
        "outputs": generation.OUTPUTS,
        "probe": {"inputs": {"text_input": _SHORT}, "parameters": {"max_tokens": 1}},
        "text_generation": {
            "model_folder": MODEL_FOLDER,
            "kind": kind,
            "context_length": context,
            "chat_template": generation.has_chat_template(tokenizer),
            "together": together,
            "kv_bytes_per_token": per_token,
            "kv_bytes": _kv_bytes(per_token, context),
            "safetensors": weights.safe,
            "end_tokens": generation.end_tokens(model),
            "defaults": generation.defaults(model),
        },
    }


def _verification_texts(tokenizer: Any, context: int) -> list[list[int]]:
    """The texts that precisions are compared with, as tokens; at least one is not empty."""
    longest = min(_LONGEST_VERIFIED, context - 1)
    tokens = [tokenizer(text).input_ids[:longest] for text in VERIFICATION_TEXTS]
    return [ids for ids in tokens if ids] or [[0]]


def _scores(model: Any, ids: list[int]) -> Any:
    """Of the next token after each token of a text; an encoder-decoder writes what it has read."""
    import torch

    tokens = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        tokens["decoder_input_ids"] = tokens["input_ids"]
    return model(**tokens, use_cache=False).logits[0]


def _kv_bytes(per_token: int, context: int) -> int:
    """Memory for keys and values of all running requests: one of full length always fits."""
    one = per_token * context
    return max(one, min(_LARGEST_KV, _MOST_RUNNING * one))


def _classes() -> dict[str, set[str]]:
    """transformers' classes that continue or transform a text, by model type."""
    from transformers.models.auto import modeling_auto as auto

    known: dict[str, set[str]] = defaultdict(set)
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ):
        for kind, names in mapping.items():
            known[kind] |= {names} if isinstance(names, str) else set(names)
    return known


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raises ExportFailed when the tokenizer knows tokens that the model has no weights for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ExportFailed(
            f"The tokenizer has {len(tokenizer):,} tokens, the model only {rows:,}: "
            "they do not belong together."
        )


def _try_out(model: Any, tokenizer: Any) -> int:
    """Generate some tokens; returns the bytes of keys and values that one token takes."""
    import torch

    inputs = tokenizer(_SHORT, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=_SMOKE_TOKENS,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
    if not all(bool(torch.isfinite(step).all()) for step in output.logits):
        raise ExportFailed("the scores are not finite")
    cache = output.past_key_values
    caches = [
        getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")
    ]
    return sum(_bytes_per_token(part) for part in (caches if any(caches) else [cache]))


def _bytes_per_token(cache: Any) -> int:
    """Sliding windows and recurrent states have no length of their own; they count in full."""
    total = 0
    for layer in getattr(cache, "layers", []):
        for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if states is not None and states.dim() == 4 and states.shape[-2]:
                total += states.numel() * states.element_size() // states.shape[-2]
    return total


def _pads_well(model: Any, tokenizer: Any) -> bool:
    """Whether a prompt's scores stay the same beside a longer one, padded on the left.

    Only plain attention qualifies: sliding windows and recurrent states keep less than every
    token, so that the caches of several requests cannot be put together.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    prompts = [tokenizer(text).input_ids for text in (_SHORT, _LONG)]
    missing = len(prompts[1]) - len(prompts[0])
    if missing < 1 or not prompts[0]:
        return False
    ids = torch.tensor([[0] * missing + prompts[0], prompts[1]])
    mask = torch.tensor([[0] * missing + [1] * len(prompts[0]), [1] * len(prompts[1])])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        alone = model(ids[:1, missing:], past_key_values=cache, use_cache=True).logits[0, -1]
        if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        padded = _padded(model, ids, mask, positions)
    limit = _SAME[model.dtype.itemsize] * (float(alone.float().std()) + 1e-6)
    return float((padded - alone).abs().max()) <= limit


def _padded(model: Any, ids: Any, mask: Any, positions: Any) -> Any:
    import inspect

    takes = "position_ids" in inspect.signature(model.forward).parameters
    places = {"position_ids": positions} if takes else {}
    return model(ids, attention_mask=mask, use_cache=False, **places).logits[0, -1]
