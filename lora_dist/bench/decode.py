"""Seconds per meaning representation (MR) of decoding, compared with transformers' `generate` and CTranslate2.

All programs get the same weights and prompts, and generate exactly `NEW_TOKENS` tokens with each beam, so that they do
the same work whatever the weights are.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import GPT2LMHeadModel

from lora_dist.bench.decode_programs import NEW_TOKENS, DecodeInputs, Prompts, ctranslate2, generate, ours
from lora_dist.bench.machine import (
    Measurement,
    bench_device,
    choose,
    matmul_ceiling,
    measure_apart,
    measure_together,
    precisions,
)
from lora_dist.bench.models import save_model
from lora_dist.bench.rows import Row
from lora_dist.config import DataSettings, DecodeSettings, ModelSettings, Precision
from lora_dist.data.e2e import group_by_mr, load_split
from lora_dist.data.tokens import encode_prompts
from lora_dist.distributed.packages import is_installed
from lora_dist.model.base import load_tokenizer

CPU_ROUNDS = 2
"""Times that each program is started on a CPU; on a GPU it makes several passes in one process."""

CPU_MRS = 32

Program = tuple[Any, ...]
"""A function of `decode_programs` and its arguments, of which the second are the prompts."""


def bench_decode(
    model: ModelSettings,
    shape: str | None,
    data: DataSettings,
    settings: DecodeSettings,
    num_mrs: int | None,
    threads: int,
    chosen: Sequence[str] = (),
) -> list[Row]:
    """Measure the programs, which take turns in new processes, on a CPU twice; return the best of each.

    Args:
        model: model whose tokenizer and, without a shape, weights are used.
        shape: a key of `models.SHAPES` for random weights of that shape, or None.
        data: the corpus.
        settings: settings of the beam search.
        num_mrs: MRs of the test set to decode, spread evenly over it; None is all of them on a GPU and 32 on a CPU.
        threads: CPU threads of each process.
        chosen: beginnings of the names of the programs to measure; none is all of them.

    Raises:
        UserError: if no program's name begins in one of the ways `chosen`.
    """
    on_gpu = bench_device().type == "cuda"
    tokenizer = load_tokenizer(model)
    mrs = [group.mr for group in group_by_mr(load_split(data, "test"))]
    count = num_mrs or (len(mrs) if on_gpu else CPU_MRS)
    prompts = encode_prompts(tokenizer, mrs[:: max(1, len(mrs) // count)][:count], data.linearization)
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as name:
        inputs = DecodeInputs(Path(name), replace(settings, max_new_tokens=NEW_TOKENS), tokenizer.eos_token_id)
        programs = choose(_programs(inputs, prompts, on_gpu=on_gpu), chosen)
        gpt2 = save_model(model, shape, Path(name))
        found = _measure_all(programs, threads, on_gpu=on_gpu)
        rows = _rows(found, _operations(gpt2, prompts, settings.num_beams), len(prompts), threads)
        return rows if on_gpu or chosen else [*rows, _scaling(inputs, prompts)]


def _programs(inputs: DecodeInputs, prompts: Prompts, *, on_gpu: bool) -> dict[str, Program]:
    """Return each program's function and arguments by its name."""
    few = prompts[:: max(1, len(prompts) // 4)][:4]  # one at a time is slow, and equally slow for each
    found: dict[str, Program] = {}
    for precision in precisions():
        found[f"ours, {precision}"] = (ours, inputs, prompts, precision)
        if on_gpu:
            found[f"ours, eager, {precision}"] = (partial(ours, captured=False), inputs, prompts, precision)
        for size in (32, 64, 128, 256) if on_gpu else (8, 16):
            found[f"generate, batch {size}, {precision}"] = (generate, inputs, prompts, precision, size)
    found["generate, one at a time, fp32 (the seed paper's way)"] = (generate, inputs, few, "fp32", 1)
    if is_installed("ctranslate2"):
        for kind in ("float32", "bfloat16") if on_gpu else ("float32", "int8"):
            found[f"CTranslate2, {kind}"] = (ctranslate2, inputs, prompts, kind)
    return found


def _measure_all(programs: Mapping[str, Program], threads: int, *, on_gpu: bool) -> dict[str, tuple[Measurement, int]]:
    """Measure each program; return its measurement and the number of prompts."""
    rounds: dict[str, list[Measurement]] = {name: [] for name in programs}
    turns = [*programs.items()] * (1 if on_gpu else CPU_ROUNDS)
    for name, (program, *arguments) in tqdm(turns, desc="bench decode", unit="program", disable=None):
        rounds[name].append(measure_apart(program, *arguments, threads=threads))
    return {
        name: (min(measured, key=lambda one: one.seconds), len(programs[name][2])) for name, measured in rounds.items()
    }


def _rows(found: dict[str, tuple[Measurement, int]], operations: float, num_mrs: int, threads: int) -> list[Row]:
    ceilings = {precision: matmul_ceiling(precision, threads) for precision in precisions()}
    rows = []
    for name, (measured, done) in found.items():
        precision = "fp32" if "fp32" in name or "float32" in name else "bf16"
        own = found.get(f"ours, {precision}")
        seconds = measured.seconds / done
        ratio = None if own is None else round(seconds / (own[0].seconds / num_mrs), 3)
        rows.append(Row(name, round(seconds, 6), "s/MR", ratio))
    for precision, ceiling in ceilings.items():
        if f"ours, {precision}" not in found:
            continue
        measured, _ = found[f"ours, {precision}"]
        rows.append(Row(f"ours, {precision}: all MRs", round(measured.seconds, 4), "s", 1.0))
        share = operations / measured.seconds / ceiling
        rows.append(Row(f"ours, {precision}: share of the matmul ceiling", round(share, 3), "", 1.0))
        rows.append(Row(f"ours, {precision}: peak memory", round(measured.peak_bytes / 2**30, 3), "GiB", 1.0))
    return rows


def _scaling(inputs: DecodeInputs, prompts: Prompts) -> Row:
    """Measure two processes compared with one, each with one CPU thread."""
    halves = [sorted(prompts, key=len)[rank::2] for rank in range(2)]
    shards = [(inputs, half, "fp32") for half in halves]
    one = min(measure_apart(_in_turn, inputs, halves, "fp32", threads=1).seconds for _ in range(CPU_ROUNDS))
    two = min(measure_together(ours, shards).seconds for _ in range(CPU_ROUNDS))
    name = "ours, fp32, one thread each: two processes, and how many times one's time"
    return Row(name, round(two / len(prompts), 4), "s/MR", round(two / one, 3))


def _operations(model: GPT2LMHeadModel, prompts: Prompts, beams: int) -> float:
    """Compute the floating-point operations that cannot be avoided: every token once through the weights."""
    body = sum(p.numel() for name, p in model.transformer.h.named_parameters() if name.endswith("weight"))
    tokens = sum(map(len, prompts)) + len(prompts) * beams * (NEW_TOKENS - 1)
    return 2.0 * float(body * tokens + model.lm_head.weight.numel() * len(prompts) * (1 + beams * (NEW_TOKENS - 1)))


def _in_turn(inputs: DecodeInputs, shards: Sequence[Prompts], precision: Precision) -> tuple[float, None]:
    """Run ours on one shard after the other, so that the batches are those of several processes."""
    return sum(ours(inputs, shard, precision)[0] for shard in shards), None
