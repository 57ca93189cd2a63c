"""Decode the test set: unique meaning representations (MRs) in chunks, sharded over the ranks, gathered by index.

A chunk's MRs do not depend on the world size, and so neither do its sentences; the ranks only differ in which chunks
they decode. Each rank appends a finished chunk to its ledger at once, and a restart skips what the ledgers hold.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lora_dist.config import DecodeSettings, Settings
from lora_dist.config_io import as_options, to_json, versions
from lora_dist.data.e2e import (
    Example,
    Group,
    fingerprint,
    group_by_mr,
    is_official,
    load_split,
    one_line,
)
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import Sentence, beam_search, check_room
from lora_dist.decoding.kv_cache import DecodingModel, lay_out
from lora_dist.decoding.ledger import Found, append_to_ledger, open_ledger
from lora_dist.decoding.outputs import write_outputs
from lora_dist.distributed.collectives import (
    SharedCounter,
    barrier,
    barrier_while,
    first_on_node,
    gather_by_index,
    on_main,
)
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.signals import graceful_shutdown
from lora_dist.distributed.world import World
from lora_dist.errors import Interrupted
from lora_dist.files import write_json
from lora_dist.model.adapter import load_adapted
from lora_dist.model.base import DTYPES, base_fingerprint, load_config, load_tokenizer
from lora_dist.model.kernels.select import kernels_for
from lora_dist.model.lora import fold
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir


@dataclass(frozen=True)
class Decoder:
    """A model with the adapter merged, laid out for decoding, and its tokenizer."""

    model: DecodingModel
    tokenizer: Any
    base_fingerprint: str
    """See `base.base_fingerprint`."""
    settings: DecodeSettings

    def sentences(self, prompts: Sequence[Sequence[int]]) -> list[Found]:
        """Search the `num_return` best sentences of each prompt, in one batch."""
        searched = beam_search(self.model, prompts, self.settings, self.tokenizer.eos_token_id)
        kept = self.settings.num_return
        return [[(self.to_text(s), s.score) for s in sentences[:kept]] for sentences in searched]

    def to_text(self, sentence: Sentence) -> str:
        """Decode a sentence to one line of text, without special tokens."""
        text: str = self.tokenizer.decode(sentence.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return one_line(text)


def load_decoder(settings: Settings, adapter: Path, device: torch.device) -> Decoder:
    """Load GPT-2 with the adapter merged on `device`, in the precision for decoding.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    kernels_for(device).set_up_process()
    gpt2, tokenizer = load_adapted(settings.model, adapter)
    base = base_fingerprint(gpt2, tokenizer)
    fold(gpt2)
    model = lay_out(gpt2.to(device, DTYPES[settings.decode.precision]))
    return Decoder(model, tokenizer, base, settings.decode)


def check_test_set(settings: Settings) -> None:
    """Refuse a test set that cannot be read or decoded; see `check_groups`."""
    check_groups(settings, group_by_mr(load_split(settings.data, "test"))[: settings.decode.limit])


def check_groups(settings: Settings, groups: Sequence[Group]) -> None:
    """Refuse MRs that cannot be decoded, before anything is trained.

    Raises:
        UserError: if a sentence might exceed the model's positions after one of them.
    """
    mrs = [group.mr for group in groups]
    prompts = encode_prompts(load_tokenizer(settings.model), mrs, settings.data.linearization)
    check_room(load_config(settings.model).n_positions, max(map(len, prompts)), settings.decode)


def generate(settings: Settings, adapter: Path, device: torch.device, mrs: Sequence[str]) -> list[Found]:
    """Return the `num_return` best sentences of each MR."""
    decoder = load_decoder(settings, adapter, device)
    return decoder.sentences(encode_prompts(decoder.tokenizer, mrs, settings.data.linearization))


def decode(settings: Settings, run: RunDir, world: World) -> None:
    """Decode the test set with the run's adapter into RUN/decode. Collective: call on all ranks.

    Raises:
        UserError: if adapter, base model or data are missing or do not fit, or the machines share no run directory.
        Interrupted: when this rank received a signal; the ledger has what it decoded.
        RuntimeError: if an MR has no result from the ranks, or more than one.
    """
    require_shared(world, run.root)
    examples = first_on_node(world, lambda: load_split(settings.data, "test"))
    groups = group_by_mr(examples)[: settings.decode.limit]
    decoder = first_on_node(world, lambda: load_decoder(settings, run.adapter, world.device))
    signature = _signature(decoder, run, examples, groups)
    if settings.data.linearization != "csv":  # so that a signature from before there was a choice stays as it is
        signature["linearization"] = settings.data.linearization
    files = {"the adapter's SHA-256": signature["adapter"], "the base model's fingerprint": signature["base"]}
    files |= {"the test set's fingerprint": signature["test_data"]}
    require_agreement(world, {**as_options(settings, "data", "decode"), **files, **versions()})
    prompts = encode_prompts(decoder.tokenizer, [group.mr for group in groups], settings.data.linearization)
    done = on_main(world, lambda: open_ledger(run, signature))
    start = time.perf_counter()
    with graceful_shutdown() as request:

        def end_if_asked() -> bool:
            if request.signal is not None:  # without a collective, as each rank has its own ledger
                raise Interrupted(f"{request.signal} ended the decoding: the same command resumes it")
            return False

        found = decode_shard(decoder, prompts, done, world, end_if_asked, partial(append_to_ledger, run, world.rank))
    seconds = time.perf_counter() - start
    sentences = gather_by_index(world, found, len(groups))
    if world.is_main:
        write_outputs(run, groups, sentences, signature)
        if new := len(groups) - len(done):
            where = {**world.describe(), "precision": settings.decode.precision}
            write_json(run.decode_timing, {"sentences": new, "seconds": round(seconds, 3), **where})
    barrier(world)


def _signature(decoder: Decoder, run: RunDir, examples: Sequence[Example], groups: Sequence[Group]) -> dict[str, Any]:
    """Return what determines the outputs; a ledger is continued only under the same signature.

    The kind of device and the size of a chunk belong to it, as both change rounding.
    """
    return {
        "decode": to_json(decoder.settings),
        "adapter": hashlib.sha256((run.adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        "base": decoder.base_fingerprint,
        "test_data": fingerprint(examples),
        "official_test_set": is_official("test", examples) and len(groups) == len(group_by_mr(examples)),
        "device": decoder.model.device.type,
        "chunk_tokens": chunk_tokens(decoder.settings, decoder.model),
        "versions": versions(),
    }


def chunks(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Split prompts into chunks of similar length, longest first, in the same way for every world size.

    Args:
        lengths: tokens of each prompt.
        new_tokens: tokens that the beams of a prompt may add.
        batch_tokens: most tokens of a chunk with more than one prompt.

    Returns:
        The indices of the prompts of each chunk.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    found: list[list[int]] = []
    while order:
        size = max(1, batch_tokens // (lengths[order[0]] + new_tokens))
        found.append(order[:size])
        order = order[size:]
    return found


def chunk_tokens(settings: DecodeSettings, model: DecodingModel) -> int:
    """Return the most tokens of a chunk: those of the settings, or a constant of the kind of device.

    It depends on nothing else, so that any number of ranks with any amount of memory decode the same bytes.
    """
    return settings.batch_tokens or model.kernels.CHUNK_TOKENS


def decode_shard(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    done: Mapping[int, Found],
    world: World,
    asked_to_end: Callable[[], bool],
    keep: Callable[[dict[int, Found]], None] = lambda _: None,
) -> dict[int, Found]:
    """Decode this rank's chunks and wait for the other ranks. Collective: call on all ranks.

    Each rank takes the next chunk as soon as it is free, so a slow rank does not delay the others.

    Args:
        decoder: the model and its settings.
        prompts: token ids of every prompt.
        done: sentences of earlier runs by index, which are not decoded again.
        world: the ranks.
        asked_to_end: called before each chunk and while waiting. It may raise, or return True to decode no further.
        keep: called with the sentences of each chunk.

    Returns:
        This rank's sentences by index, on rank 0 together with `done`.
    """
    size = chunk_tokens(decoder.settings, decoder.model)
    new_tokens = decoder.settings.num_beams * decoder.settings.max_new_tokens
    todo = [chunk for chunk in chunks([len(p) for p in prompts], new_tokens, size) if not done.keys() >= set(chunk)]
    found = dict(done) if world.is_main else {}
    started, finished = SharedCounter(world), SharedCounter(world)
    total = sum(map(len, todo))
    with tqdm(
        total=total, desc="decode", unit="sentence", leave=None, disable=not world.is_main, dynamic_ncols=True
    ) as bar:
        while (number := started.add(1) - 1) < len(todo) and not asked_to_end():
            world.watchdog.progress(f"chunk {number + 1} of {len(todo)}")
            chunk = todo[number]
            decoded = dict(zip(chunk, decoder.sentences([prompts[i] for i in chunk]), strict=True))
            new = {index: sentences for index, sentences in decoded.items() if index not in done}
            found |= new
            keep(new)
            bar.update(finished.add(len(chunk)) - bar.n)

        def while_waiting() -> None:
            asked_to_end()
            if world.is_main and (more := finished.add(0) - bar.n) > 0:
                world.watchdog.progress("waiting for the other ranks' last chunks")
                bar.update(more)

        barrier_while(world, while_waiting)
    return found
