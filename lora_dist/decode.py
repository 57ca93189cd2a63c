"""Decode the test set: unique meaning representations in chunks, shared out over the ranks, gathered by index.

A chunk's composition does not depend on the world size, and neither does its output; the ranks only differ in which
chunks they take. Each finished chunk goes to a ledger at once, and a restart skips what stands there.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from lora_dist.batches import encode_prompts
from lora_dist.beam import Sentence, beam_search
from lora_dist.config import DecodeSettings, ModelSettings, Settings, UserError, to_json
from lora_dist.distributed import World, barrier, first_on_node, gather_by_index, on_main
from lora_dist.e2e import fingerprint, format_outputs, format_references, group_by_mr, is_official, load_split, one_line
from lora_dist.lora import fold
from lora_dist.model import ADAPTER_WEIGHTS, DTYPES, base_fingerprint, load_adapter, load_base, load_tokenizer
from lora_dist.run_dir import RunDir, versions, write_json, write_jsonl, write_text


def decode(settings: Settings, run: RunDir, world: World) -> None:
    """Decode the test set with the run's adapter into RUN/decode; every rank has to call it.

    Raises:
        UserError: if adapter, base model or data are missing or do not fit.
        RuntimeError: if the ranks' sentences are not exactly one for each meaning representation.
    """
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
    prompts = encode_prompts(tokenizer, [group.mr for group in groups])
    done = on_main(world, lambda: _open_ledger(run, signature))
    found = _decode_share(prompts, done, model, tokenizer, settings.decode, run, world)
    sentences = gather_by_index(world, found, len(groups))
    if world.is_main:
        rows = [
            {"index": index, "mr": group.mr, "text": text, "score": score}
            for index, (group, (text, score)) in enumerate(zip(groups, sentences, strict=True))
        ]
        write_text(run.references_text, format_references(groups))
        write_text(run.outputs_text, format_outputs([row["text"] for row in rows]))  # type: ignore[misc]
        write_json(run.decode_signature, signature)
        write_jsonl(run.outputs, rows)
    barrier(world)


def generate(settings: Settings, adapter: Path, device: torch.device, mrs: Sequence[str]) -> list[str]:
    """One sentence for each meaning representation."""
    model, tokenizer = load_for_decoding(settings, adapter, device)
    sentences = beam_search(model, encode_prompts(tokenizer, mrs), settings.decode, tokenizer.eos_token_id)
    return [to_text(tokenizer, best) for best, *_ in sentences]


def load_for_decoding(settings: Settings, adapter: Path, device: torch.device) -> tuple[GPT2LMHeadModel, Any]:
    """GPT-2 with the adapter merged, in the precision of decoding and evaluation mode, and its tokenizer."""
    model, tokenizer = load_merged(settings.model, adapter)
    return model.to(device, DTYPES[settings.decode.precision]).eval(), tokenizer


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


def to_text(tokenizer: Any, sentence: Sentence) -> str:
    """The sentence as one line of text, without special tokens."""
    text: str = tokenizer.decode(sentence.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return one_line(text)


def chunks(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in chunks of like prompt length (tokens), longest first, the same for every world size."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _decode_share(
    prompts: Sequence[Sequence[int]],
    done: dict[int, tuple[str, float]],
    model: GPT2LMHeadModel,
    tokenizer: Any,
    settings: DecodeSettings,
    run: RunDir,
    world: World,
) -> dict[int, tuple[str, float]]:
    """This rank's sentences and scores by index: what the ledger had, on rank 0, and the chunks it decodes now."""
    found = dict(done) if world.is_main else {}
    todo = [chunk for chunk in chunks([len(p) for p in prompts], settings.batch_size) if not done.keys() >= set(chunk)]
    mine = todo[world.rank :: world.size]
    bar = tqdm(
        total=sum(map(len, mine)),
        desc="decode" if world.size == 1 else f"decode (share of rank 0 of {world.size})",
        unit="sentence",
        disable=not world.is_main,
        dynamic_ncols=True,
    )
    with bar, run.ledger(world.rank).open("a", encoding="utf-8") as ledger:
        for chunk in mine:
            sentences = beam_search(model, [prompts[i] for i in chunk], settings, tokenizer.eos_token_id)
            for index, (best, *_) in zip(chunk, sentences, strict=True):
                row = (to_text(tokenizer, best), best.score)
                if index not in done:
                    found[index] = row
                    ledger.write(json.dumps([index, *row], ensure_ascii=False) + "\n")
            ledger.flush()
            bar.update(len(chunk))
    return found


def _open_ledger(run: RunDir, signature: dict[str, Any]) -> dict[int, tuple[str, float]]:
    """What earlier ranks, of any world size, have decoded under this very signature; ledgers of others are removed."""
    folder = run.ledger(0).parent
    folder.mkdir(parents=True, exist_ok=True)
    head = folder / "signature.json"
    if not head.is_file() or head.read_text(encoding="utf-8") != json.dumps(signature):
        for file in (*folder.glob("rank-*.jsonl"), run.outputs, run.outputs_text, run.decode_signature, run.scores):
            file.unlink(missing_ok=True)  # scores and texts of other settings would not belong to what comes now
        write_text(head, json.dumps(signature))
    done: dict[int, tuple[str, float]] = {}
    for file in sorted(folder.glob("rank-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # a kill may have cut a line short
                index, text, score = json.loads(line)
                done.setdefault(index, (text, score))
    return done
