"""The programs that `bench decode` measures.

Each loads the model, warms up, and returns the seconds that it takes for all prompts, with exactly `NEW_TOKENS` tokens
per beam. On a GPU the warm-up is a full batch, as the first one takes several times as long, and the seconds are the
median of several passes.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.bench.machine import bench_device, now
from lora_dist.config import DecodeSettings, ModelSettings, Precision
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.decoding.shard import chunks
from lora_dist.model.base import DTYPES, load_base, load_tokenizer

NEW_TOKENS = 32
WARM_UP = 2
"""New tokens per beam of the warm-up."""

GPU_PASSES = 3
"""Most passes over all prompts on a GPU, where starting a program takes longer than they do."""
ENOUGH_SECONDS = 10.0
"""Seconds of passes after which no further one is made."""

Prompts = list[list[int]]


@dataclass(frozen=True)
class DecodeInputs:
    """What every program gets in addition to its prompts."""

    folder: Path
    """The model, as transformers saves it."""
    settings: DecodeSettings
    eos_id: int


def ours(inputs: DecodeInputs, prompts: Prompts, precision: Precision, *, captured: bool = True) -> tuple[float, None]:
    """Time our beam search, in chunks as `decode` does."""
    tokenizer = load_tokenizer(ModelSettings(name=str(inputs.folder)))
    gpt2 = load_base(ModelSettings(name=str(inputs.folder)), tokenizer, DTYPES[precision])
    model = replace(lay_out(gpt2.to(bench_device())), captured=captured)
    never = -1  # an end-of-text id that is no token
    new_tokens = inputs.settings.num_beams * NEW_TOKENS
    size = inputs.settings.batch_tokens or model.kernels.CHUNK_TOKENS
    todo = chunks([len(p) for p in prompts], new_tokens, size)
    warm_up = todo[0] if model.device.type == "cuda" else [0]
    beam_search(model, [prompts[i] for i in warm_up], replace(inputs.settings, max_new_tokens=WARM_UP), never)

    def search() -> None:
        for chunk in todo:
            beam_search(model, [prompts[i] for i in chunk], inputs.settings, never)

    return _median_seconds(search), None


def generate(inputs: DecodeInputs, prompts: Prompts, precision: Precision, size: int) -> tuple[float, None]:
    """Time transformers' `generate` with batches of `size` prompts."""
    model = GPT2LMHeadModel.from_pretrained(inputs.folder, dtype=DTYPES[precision]).to(bench_device()).eval()
    settings = inputs.settings
    ordered = sorted(prompts, key=len)

    def search(batch: Sequence[Sequence[int]], new_tokens: int) -> None:
        width = max(map(len, batch))
        ids = torch.tensor([[inputs.eos_id] * (width - len(p)) + list(p) for p in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        model.generate(
            ids,
            attention_mask=mask,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            early_stopping=True,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=inputs.eos_id,
            pad_token_id=inputs.eos_id,
        )

    with torch.inference_mode():
        search(ordered[-size:] if model.device.type == "cuda" else ordered[:1], WARM_UP)

        def search_all() -> None:
            for first in range(0, len(ordered), size):
                search(ordered[first : first + size], NEW_TOKENS)

        return _median_seconds(search_all), None


def ctranslate2(inputs: DecodeInputs, prompts: Prompts, kind: str) -> tuple[float, None]:
    """Time CTranslate2's beam search with batches of 8 prompts, on a GPU of 64."""
    import ctranslate2 as library

    settings, tokenizer = inputs.settings, AutoTokenizer.from_pretrained(inputs.folder)
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        library.converters.TransformersConverter(str(inputs.folder)).convert(name, force=True)
        device = bench_device().type
        generator = library.Generator(name, device=device, compute_type=kind, intra_threads=torch.get_num_threads())
        options = {
            "beam_size": settings.num_beams,
            "length_penalty": settings.length_penalty,
            "no_repeat_ngram_size": settings.no_repeat_ngram_size,
            "include_prompt_in_result": False,
            "max_batch_size": 8 if device == "cpu" else 64,
        }
        texts = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        warm_up = texts[:1] if device == "cpu" else texts[-64:]
        generator.generate_batch(warm_up, min_length=WARM_UP, max_length=WARM_UP, **options)

        def search() -> None:
            generator.generate_batch(texts, min_length=NEW_TOKENS, max_length=NEW_TOKENS, **options)

        return _median_seconds(search), None


def _median_seconds(search: Callable[[], None]) -> float:
    """Time one pass, on a GPU several, and return the median."""
    passes, seconds = (GPU_PASSES if bench_device().type == "cuda" else 1), list[float]()
    while len(seconds) < passes and sum(seconds) < ENOUGH_SECONDS:
        start = now()
        search()
        seconds.append(now() - start)
    return statistics.median(seconds)
