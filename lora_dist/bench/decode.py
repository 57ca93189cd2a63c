"""Seconds per meaning representation (MR) of decoding, compared with transformers' `generate` and CTranslate2.

All programs get the same weights and prompts, and generate exactly `NEW_TOKENS` tokens with each beam, so that they do
the same work whatever the weights are.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.bench.machine import (
    Measurement,
    bench_device,
    matmul_ceiling,
    measure_apart,
    measure_together,
    now,
    precisions,
)
from lora_dist.bench.models import save_model
from lora_dist.bench.rows import Row
from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision
from lora_dist.data.e2e import group_by_mr, load_split
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import beam_search
from lora_dist.decoding.decode import chunk_tokens, chunks
from lora_dist.decoding.kv_cache import lay_out
from lora_dist.distributed.packages import is_installed
from lora_dist.model.base import DTYPES, load_base, load_tokenizer

NEW_TOKENS = 32
ROUNDS = 2

Prompts = list[list[int]]


@dataclass(frozen=True)
class DecodeInputs:
    """What every program gets in addition to its prompts."""

    folder: Path
    """The model, as transformers saves it."""
    settings: DecodeSettings
    eos_id: int


def bench_decode(
    model: ModelSettings, shape: str | None, data: DataSettings, settings: DecodeSettings, num_mrs: int, threads: int
) -> list[Row]:
    """Measure all programs, which take turns in new processes; return the best of `ROUNDS` rounds.

    Args:
        model: model whose tokenizer and, without a shape, weights are used.
        shape: a key of `models.SHAPES` for random weights of that shape, or None.
        data: the corpus.
        settings: settings of the beam search.
        num_mrs: MRs of the test set to decode, spread evenly over it.
        threads: CPU threads of each process.
    """
    tokenizer = load_tokenizer(model)
    mrs = [group.mr for group in group_by_mr(load_split(data, "test"))]
    prompts = encode_prompts(tokenizer, mrs[:: max(1, len(mrs) // num_mrs)][:num_mrs], data.linearization)
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        gpt2 = save_model(model, shape, Path(name))
        inputs = DecodeInputs(Path(name), replace(settings, max_new_tokens=NEW_TOKENS), tokenizer.eos_token_id)
        found = _measure_all(inputs, prompts, threads)
        rows = _rows(found, _operations(gpt2, prompts, settings.num_beams), len(prompts), threads)
        return rows if bench_device().type == "cuda" else [*rows, _scaling(inputs, prompts)]


def _measure_all(inputs: DecodeInputs, prompts: Prompts, threads: int) -> dict[str, tuple[Measurement, int]]:
    """Measure each program; return the best measurement and the number of prompts."""
    few = prompts[:: max(1, len(prompts) // 4)][:4]  # one at a time is slow, and equally slow for each
    programs: dict[str, tuple[Any, ...]] = {}
    for precision in precisions():
        programs[f"ours, {precision}"] = (_ours, inputs, prompts, precision)
        for size in (8, 16) if bench_device().type == "cpu" else (16, 64):
            programs[f"generate, batch {size}, {precision}"] = (_generate, inputs, prompts, precision, size)
    programs["generate, one at a time, fp32 (the seed paper's way)"] = (_generate, inputs, few, "fp32", 1)
    if is_installed("ctranslate2") and bench_device().type == "cpu":
        for kind in ("float32", "int8"):
            programs[f"CTranslate2, {kind}"] = (_ctranslate2, inputs, prompts, kind)
    best: dict[str, tuple[Measurement, int]] = {}
    turns = [(name, program) for _ in range(ROUNDS) for name, program in programs.items()]
    for name, (program, *arguments) in tqdm(turns, desc="bench decode", unit="program"):
        measured = measure_apart(program, *arguments, threads=threads)
        if name not in best or measured.seconds < best[name][0].seconds:
            best[name] = measured, len(arguments[1])
    return best


def _rows(found: dict[str, tuple[Measurement, int]], operations: float, num_mrs: int, threads: int) -> list[Row]:
    ceilings = {precision: matmul_ceiling(precision, threads) for precision in precisions()}
    rows = []
    for name, (measured, done) in found.items():
        precision = "fp32" if "fp32" in name or "float32" in name else "bf16"
        ours = found[f"ours, {precision}"][0].seconds / num_mrs
        seconds = measured.seconds / done
        rows.append(Row(name, round(seconds, 4), "s/MR", round(seconds / ours, 3)))
    for precision, ceiling in ceilings.items():
        measured, _ = found[f"ours, {precision}"]
        share = operations / measured.seconds / ceiling
        rows.append(Row(f"ours, {precision}: share of the matmul ceiling", round(share, 3), "", 1.0))
        rows.append(Row(f"ours, {precision}: peak memory", round(measured.peak_bytes / 2**30, 3), "GiB", 1.0))
    return rows


def _scaling(inputs: DecodeInputs, prompts: Prompts) -> Row:
    """Measure two processes compared with one, each with one CPU thread."""
    halves = [sorted(prompts, key=len)[rank::2] for rank in range(2)]
    shards = [(inputs, half, "fp32") for half in halves]
    one = min(measure_apart(_in_turn, inputs, halves, "fp32", threads=1).seconds for _ in range(ROUNDS))
    two = min(measure_together(_ours, shards).seconds for _ in range(ROUNDS))
    name = "ours, fp32, one thread each: two processes, and how many times one's time"
    return Row(name, round(two / len(prompts), 4), "s/MR", round(two / one, 3))


def _operations(model: GPT2LMHeadModel, prompts: Prompts, beams: int) -> float:
    """Compute the floating-point operations that cannot be avoided: every token once through the weights."""
    body = sum(p.numel() for name, p in model.transformer.h.named_parameters() if name.endswith("weight"))
    tokens = sum(map(len, prompts)) + len(prompts) * beams * (NEW_TOKENS - 1)
    return 2.0 * float(body * tokens + model.lm_head.weight.numel() * len(prompts) * (1 + beams * (NEW_TOKENS - 1)))


def _ours(inputs: DecodeInputs, prompts: Prompts, precision: Precision) -> tuple[float, None]:
    tokenizer = load_tokenizer(ModelSettings(name=str(inputs.folder)))
    gpt2 = load_base(ModelSettings(name=str(inputs.folder)), tokenizer, DTYPES[precision])
    model = lay_out(gpt2.to(bench_device()))
    never = -1  # an end-of-text id that is no token
    new_tokens = inputs.settings.num_beams * NEW_TOKENS
    todo = chunks([len(p) for p in prompts], new_tokens, chunk_tokens(inputs.settings, model))
    beam_search(model, prompts[:1], replace(inputs.settings, max_new_tokens=2), never)
    start = now()
    for chunk in todo:
        beam_search(model, [prompts[i] for i in chunk], inputs.settings, never)
    return now() - start, None


def _in_turn(inputs: DecodeInputs, shards: Sequence[Prompts], precision: Precision) -> tuple[float, None]:
    """Run ours on one shard after the other, so that the batches are those of several processes."""
    return sum(_ours(inputs, shard, precision)[0] for shard in shards), None


def _generate(inputs: DecodeInputs, prompts: Prompts, precision: Precision, size: int) -> tuple[float, None]:
    model = GPT2LMHeadModel.from_pretrained(inputs.folder, dtype=DTYPES[precision]).to(bench_device()).eval()
    settings = inputs.settings
    ordered = sorted(prompts, key=len)

    def generate(batch: Sequence[Sequence[int]], new_tokens: int) -> None:
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
        generate(ordered[:1], 2)
        start = now()
        for first in range(0, len(ordered), size):
            generate(ordered[first : first + size], NEW_TOKENS)
        return now() - start, None


def _ctranslate2(inputs: DecodeInputs, prompts: Prompts, kind: str) -> tuple[float, None]:
    """Time CTranslate2's beam search with batches of 8 prompts."""
    import ctranslate2

    settings, tokenizer = inputs.settings, AutoTokenizer.from_pretrained(inputs.folder)
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        ctranslate2.converters.TransformersConverter(str(inputs.folder)).convert(name, force=True)
        generator = ctranslate2.Generator(name, device="cpu", compute_type=kind, intra_threads=torch.get_num_threads())
        options = {
            "beam_size": settings.num_beams,
            "length_penalty": settings.length_penalty,
            "no_repeat_ngram_size": settings.no_repeat_ngram_size,
            "include_prompt_in_result": False,
            "max_batch_size": 8,
        }
        texts = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
        generator.generate_batch(texts[:1], min_length=2, max_length=2, **options)
        start = now()
        generator.generate_batch(texts, min_length=NEW_TOKENS, max_length=NEW_TOKENS, **options)
        return now() - start, None
