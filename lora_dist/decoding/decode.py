"""Decode the test set: unique meaning representations in chunks, shared out over the ranks, gathered by index.

A chunk's composition does not depend on the world size, and neither does its output; the ranks only differ in which
chunks they take. Each finished chunk goes to a ledger at once, and a restart skips what stands there.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from lora_dist.config import DecodeSettings, ModelSettings, Settings, UserError
from lora_dist.config_io import as_options, to_json
from lora_dist.data.collate import encode_prompts
from lora_dist.data.e2e import (
    fingerprint,
    format_outputs,
    format_references,
    group_by_mr,
    is_official,
    load_split,
    one_line,
)
from lora_dist.decoding.beam_search import Sentence, beam_search
from lora_dist.decoding.kv_cache import prepare
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.device import free_memory
from lora_dist.distributed.signals import Interrupted, heed_signals
from lora_dist.distributed.world import (
    SharedCounter,
    World,
    barrier,
    barrier_while,
    first_on_node,
    gather_by_index,
    on_main,
)
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.model.base import DTYPES, base_fingerprint, load_adapter, load_base, load_tokenizer
from lora_dist.model.lora import fold
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir, versions

Found = list[tuple[str, float]]
"""The sentences of one meaning representation with their scores, best first."""

CPU_BATCH_TOKENS = 2**14
GPU_BATCH_TOKENS = 2**16
"""Tokens of a batch beyond which it decodes no faster."""


def decode(settings: Settings, run: RunDir, world: World) -> None:
    """Decode the test set with the run's adapter into RUN/decode; every rank has to call it.

    Raises:
        UserError: if adapter, base model or data are missing or do not fit, or the machines share no run directory.
        Interrupted: when a signal asked this rank to end; the ledger has what it decoded.
        RuntimeError: if the ranks' sentences are not exactly one for each meaning representation.
    """
    require_shared(world, run.root)
    examples = first_on_node(world, lambda: load_split(settings.data, "test"))
    groups = group_by_mr(examples)[: settings.decode.limit]
    model, tokenizer = first_on_node(world, lambda: load_for_decoding(settings, run.adapter, world.device))
    signature = {
        "decode": to_json(settings.decode),
        "adapter": hashlib.sha256((run.adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        "base": base_fingerprint(model, tokenizer),
        "test_data": fingerprint(examples),
        "official_test_set": is_official("test", examples) and len(groups) == len(group_by_mr(examples)),
        "versions": versions(),
    }
    files = {"the adapter's SHA-256": signature["adapter"], "the base model's fingerprint": signature["base"]}
    files |= {"the test set's fingerprint": signature["test_data"]}
    require_agreement(world, {**as_options(settings, "decode"), **files, **versions()})
    prompts = encode_prompts(tokenizer, [group.mr for group in groups])
    done = on_main(world, lambda: _open_ledger(run, signature))
    start = time.perf_counter()
    found = _decode_share(prompts, done, model, tokenizer, settings.decode, run, world)
    seconds = time.perf_counter() - start
    sentences = gather_by_index(world, found, len(groups))
    if world.is_main:
        rows = [
            {"index": index, "mr": group.mr, **_row(found)}
            for index, (group, found) in enumerate(zip(groups, sentences, strict=True))
        ]
        write_text(run.references_text, format_references(groups))
        write_text(run.outputs_text, format_outputs([row["text"] for row in rows]))
        write_json(run.decode_signature, signature)
        write_jsonl(run.outputs, rows)
        if new := len(groups) - len(done):
            where = {**world.describe(), "precision": settings.decode.precision}
            write_json(run.decode_timing, {"sentences": new, "seconds": round(seconds, 3), **where})
    barrier(world)


def _row(sentences: Found) -> dict[str, Any]:
    """The best sentence and, where more were asked for, those after it."""
    (text, score), *others = sentences
    more = {"alternatives": [{"text": text, "score": score} for text, score in others]} if others else {}
    return {"text": text, "score": score, **more}


def generate(settings: Settings, adapter: Path, device: torch.device, mrs: Sequence[str]) -> list[Found]:
    """The `num_return` best sentences for each meaning representation."""
    model, tokenizer = load_for_decoding(settings, adapter, device)
    searched = beam_search(model, encode_prompts(tokenizer, mrs), settings.decode, tokenizer.eos_token_id)
    return [_best(sentences, settings.decode, tokenizer) for sentences in searched]


def load_for_decoding(settings: Settings, adapter: Path, device: torch.device) -> tuple[GPT2LMHeadModel, Any]:
    """GPT-2 with the adapter merged, in the precision of decoding and evaluation mode, and its tokenizer."""
    model, tokenizer = load_merged(settings.model, adapter)
    return prepare(model.to(device, DTYPES[settings.decode.precision])), tokenizer


def load_merged(settings: ModelSettings, adapter: Path) -> tuple[GPT2LMHeadModel, Any]:
    """A plain GPT-2 with the adapter merged in fp32, on the CPU, and its tokenizer.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    if not adapter.is_dir():
        raise UserError(f"{adapter} is missing: train first, or go on with train --resume")
    tokenizer = load_tokenizer(settings)
    model = load_base(settings, tokenizer, torch.float32)
    load_adapter(adapter, model, tokenizer)
    fold(model)
    return model, tokenizer


def _best(sentences: Sequence[Sentence], settings: DecodeSettings, tokenizer: Any) -> Found:
    return [(to_text(tokenizer, sentence), sentence.score) for sentence in sentences[: settings.num_return]]


def to_text(tokenizer: Any, sentence: Sentence) -> str:
    """The sentence as one line of text, without special tokens."""
    text: str = tokenizer.decode(sentence.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return one_line(text)


def chunks(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Indices in chunks of like prompt length, longest first, the same for every world size.

    Args:
        lengths: tokens of each prompt.
        new_tokens: tokens that its beams may add.
        batch_tokens: most tokens of a chunk that has more than one prompt.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    found: list[list[int]] = []
    while order:
        size = max(1, batch_tokens // (lengths[order[0]] + new_tokens))
        found.append(order[:size])
        order = order[size:]
    return found


def batch_tokens(model: GPT2LMHeadModel, settings: DecodeSettings, processes: int) -> int:
    """The most tokens of a chunk: as set, or what suits the device and fits into a quarter of its free memory.

    A power of two, so that a little more or less of free memory gives the same chunks, and with them the same bytes.
    """
    if settings.batch_tokens is not None:
        return settings.batch_tokens
    on_gpu = model.device.type == "cuda"
    bytes_a_token = 2 * model.config.n_layer * model.config.n_embd * model.dtype.itemsize
    fitting = int(free_memory(model.device) // 4 // bytes_a_token // (1 if on_gpu else processes))
    return min(GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS, 1 << max(0, fitting.bit_length() - 1))


def _decode_share(
    prompts: Sequence[Sequence[int]],
    done: dict[int, Found],
    model: GPT2LMHeadModel,
    tokenizer: Any,
    settings: DecodeSettings,
    run: RunDir,
    world: World,
) -> dict[int, Found]:
    """This rank's sentences by index: what the ledger had, on rank 0, and the chunks it decodes now.

    Each rank takes the next chunk when it is free, so a slow one does not hold the others.
    """
    found = dict(done) if world.is_main else {}
    size = on_main(world, lambda: batch_tokens(model, settings, world.size))
    new_tokens = settings.num_beams * settings.max_new_tokens
    todo = [chunk for chunk in chunks([len(p) for p in prompts], new_tokens, size) if not done.keys() >= set(chunk)]
    started, finished = SharedCounter(world), SharedCounter(world)
    total = sum(map(len, todo))
    bar = tqdm(total=total, desc="decode", unit="sentence", disable=not world.is_main, dynamic_ncols=True)
    with bar, heed_signals() as request, run.ledger(world.rank).open("a", encoding="utf-8") as ledger:

        def end_if_asked() -> None:
            if request.signal is not None:  # no word of the others is needed: each has its own ledger
                raise Interrupted(f"{request.signal} ended the decoding; the same command goes on with what is left")

        while (number := started.add(1) - 1) < len(todo):
            end_if_asked()
            world.watchdog.note(f"chunk {number + 1} of {len(todo)}")
            chunk = todo[number]
            searched = beam_search(model, [prompts[i] for i in chunk], settings, tokenizer.eos_token_id)
            for index, sentences in zip(chunk, searched, strict=True):
                if index not in done:
                    found[index] = _best(sentences, settings, tokenizer)
                    ledger.write(json.dumps([index, found[index]], ensure_ascii=False) + "\n")
            ledger.flush()
            bar.update(finished.add(len(chunk)) - bar.n)

        def watch_the_others() -> None:
            end_if_asked()
            if world.is_main and (more := finished.add(0) - bar.n) > 0:
                world.watchdog.note("waiting for the other ranks' last chunks")
                bar.update(more)

        barrier_while(world, watch_the_others)
    return found


def _open_ledger(run: RunDir, signature: dict[str, Any]) -> dict[int, Found]:
    """What earlier ranks, of any world size, have decoded under this very signature; ledgers of others are removed."""
    folder = run.ledger(0).parent
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "signature.json"
    if not head.is_file() or head.read_text(encoding="utf-8") != json.dumps(signature):
        for file in (
            *folder.glob("rank-*.jsonl"),
            run.outputs,
            run.outputs_text,
            run.decode_signature,
            run.decode_timing,
            run.scores,
            run.sentence_scores,
        ):
            file.unlink(missing_ok=True)  # scores and texts of other settings would not belong to what comes now
        write_text(head, json.dumps(signature))
    done: dict[int, Found] = {}
    for file in sorted(folder.glob("rank-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a kill may have cut a line short
                index, sentences = json.loads(line)
                done.setdefault(index, [(text, score) for text, score in sentences])
    return done
