"""First-token time and tokens per second of a small decoder, beside transformers' own generate.

A Llama with random weights (8 layers, width 512, 32,000 tokens: 58 million parameters) continues
prompts of 64 tokens by 64 more, greedily, at 1 and at 8 streams. Each of its tokens is a word of
its tokenizer, so that the first token is the first text. The product is asked through its gRPC
port; `generate` runs in this process, in the same precision, and tells of its tokens through a
streamer: 8 prompts one after the other (what a server without batching does) and as one batch
(which all requests would have to begin together for). Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as grpc_tensors
import tritonclient.grpc.aio as triton_grpc

from benchmarks import setting
from tests import generation_models

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.service import Service

MODEL = "bench/decoder"
NEW = 64
STREAMS = (1, 8)
SIZES: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1376,
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
}


class Product:
    """The model behind the gateway's gRPC port."""

    def __init__(self, service: Service) -> None:
        self._url = service.grpc_url

    def run(self, prompts: Sequence[str]) -> tuple[list[float], int]:
        """First-token times in seconds, and tokens in all."""
        return asyncio.run(self._all(prompts))

    async def _all(self, prompts: Sequence[str]) -> tuple[list[float], int]:
        client = triton_grpc.InferenceServerClient(self._url)
        answers = await asyncio.gather(*[self._one(client, prompt) for prompt in prompts])
        await client.close()
        return [first for first, _ in answers], sum(count for _, count in answers)

    async def _one(self, client: Any, prompt: str) -> tuple[float, int]:
        tensor = grpc_tensors.InferInput("text_input", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([prompt.encode()], dtype=np.object_))

        async def requests() -> Any:
            yield {
                "model_name": MODEL.replace("/", "--"),
                "inputs": [tensor],
                "parameters": {"max_tokens": NEW, "stream": True},
            }

        started, first, count = time.perf_counter(), 0.0, 0
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            first = first or time.perf_counter() - started
            counted = result.as_numpy("completion_tokens")
            count = count if counted is None else int(counted[0])
        return first, count


class InProcess:
    """transformers' generate on the same model."""

    def __init__(self, source: Path, precision: str) -> None:
        import torch
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)

    def in_turn(self, prompts: Sequence[str]) -> tuple[list[float], int]:
        """One after the other; the later ones' first tokens wait for the earlier ones."""
        started, firsts, count = time.perf_counter(), [], 0
        for prompt in prompts:
            first, tokens = self._generate([prompt], started)
            firsts.append(first)
            count += tokens
        return firsts, count

    def as_batch(self, prompts: Sequence[str]) -> tuple[list[float], int]:
        first, count = self._generate(prompts, time.perf_counter())
        return [first] * len(prompts), count

    def _generate(self, prompts: Sequence[str], started: float) -> tuple[float, int]:
        import transformers

        seen: list[float] = []

        class Clock(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
            """Hears of the prompt, and then of each token."""

            def put(self, value: Any) -> None:  # noqa: ARG002
                seen.append(time.perf_counter() - started)

            def end(self) -> None:
                pass

        inputs = self.tokenizer(list(prompts), return_tensors="pt", return_token_type_ids=False)
        output = self.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, streamer=Clock()
        )
        return seen[1], int(output.shape[0] * (output.shape[1] - inputs.input_ids.shape[1]))


def prompts(count: int) -> list[str]:
    """Of 64 tokens each, all different."""
    return [
        " ".join(f"w{(977 * i + 31 * j * j) % 32_000}" for j in range(64)) for i in range(count)
    ]


def measure(
    ways: dict[str, Callable[[Sequence[str]], tuple[list[float], int]]], rounds: int
) -> list[list[str]]:
    firsts: dict[tuple[str, int], list[float]] = defaultdict(list)
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for streams in STREAMS:
            for way, run in ways.items():
                started = time.perf_counter()
                first, tokens = run(prompts(streams))
                if number:  # the first round warms up
                    firsts[way, streams] += first
                    speeds[way, streams].append(tokens / (time.perf_counter() - started))
    return [
        [
            way,
            str(streams),
            f"{setting.percentile_ms(firsts[way, streams], 50):.0f}",
            f"{max(firsts[way, streams]) * 1000:.0f}",
            f"{statistics.median(speeds[way, streams]):.0f}",
        ]
        for way, streams in speeds
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, setting.running_service(install=False) as service:
        words = generation_models.word_tokenizer(SIZES["vocab_size"])
        source = generation_models.tiny_llama(
            Path(folder) / "source", chat=False, tokenizer=words, **SIZES
        )
        with service.client() as client:
            client.install(MODEL, source_url=source.as_uri(), timeout=300)
        folder_of = service.model_repository / MODEL.replace("/", "--") / "1"
        manifest = json.loads((folder_of / "manifest.json").read_text())
        own = InProcess(source, manifest["precision"])
        ways = {
            "ModelMora, gRPC stream": Product(service).run,
            "`generate`, one after the other": own.in_turn,
            "`generate`, one batch": own.as_batch,
        }
        rows = measure(ways, options.rounds)
        with service.client() as client:
            (loaded,) = client.status().loaded_models
        setting.print_table(
            f"A decoder of {manifest['parameters'] / 1e6:.0f} M parameters, "
            f"{manifest['precision']}, 64 tokens in, {NEW} out",
            ["way", "streams", "first token p50 ms", "slowest ms", "tokens/s"],
            rows,
        )
        print(f"\nThe stub takes {loaded.memory_usage_mb:.0f} MB.")


if __name__ == "__main__":
    main()
