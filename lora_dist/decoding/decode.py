"""Decode the test set: unique meaning representations (MRs) in chunks, sharded over the ranks, gathered by index.

Each rank appends a finished chunk to its ledger at once, and a restart skips what the ledgers hold.
"""

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from lora_dist.config import DataSettings, Settings
from lora_dist.config_io import as_options, to_json, versions
from lora_dist.data.e2e import (
    Example,
    Group,
    corpus_name,
    fingerprint,
    group_by_mr,
    is_official,
    load_split,
)
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import check_room
from lora_dist.decoding.decoder import Decoder, load_decoder
from lora_dist.decoding.ledger import append_to_ledger, open_ledger, resumed_chunk_tokens
from lora_dist.decoding.outputs import write_outputs
from lora_dist.decoding.shard import chunk_tokens, decode_shard, smaller_chunk_tokens, smallest_memory
from lora_dist.distributed.collectives import barrier, first_on_node, gather_by_index, on_main
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.signals import graceful_shutdown
from lora_dist.distributed.world import World
from lora_dist.errors import Interrupted
from lora_dist.files import write_json
from lora_dist.model.base import load_config, load_tokenizer
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir


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
    signature = _signature(decoder, settings.data, run, examples, groups)
    files = {"the adapter's SHA-256": signature["adapter"], "the base model's fingerprint": signature["base"]}
    files |= {"the test set's fingerprint": signature["test_data"]}
    require_agreement(world, {**as_options(settings, "data", "decode"), **files, **versions()})
    prompts = encode_prompts(decoder.tokenizer, [group.mr for group in groups], settings.data.linearization)
    size = chunk_tokens(settings.decode, decoder.model, prompts, smallest_memory(world))
    size = on_main(world, lambda: resumed_chunk_tokens(run, signature, size))
    start = time.perf_counter()
    with graceful_shutdown() as request:

        def end_if_asked() -> bool:
            if request.signal is not None:  # without a collective, as each rank has its own ledger
                raise Interrupted(f"{request.signal} ended the decoding: the same command resumes it")
            return False

        keep = partial(append_to_ledger, run, world.rank)
        while True:
            signature["chunk_tokens"] = size
            done = on_main(world, lambda: open_ledger(run, signature))
            if (found := decode_shard(decoder, prompts, size, done, world, end_if_asked, keep)) is not None:
                break
            size = smaller_chunk_tokens(settings.decode, prompts, size)
    seconds = time.perf_counter() - start
    sentences = gather_by_index(world, found, len(groups))
    if world.is_main:
        write_outputs(run, groups, sentences, signature)
        if new := len(groups) - len(done):
            where = {**world.describe(), "precision": settings.decode.precision}
            write_json(run.decode_timing, {"sentences": new, "seconds": round(seconds, 3), **where})
    barrier(world)


def _signature(
    decoder: Decoder, data: DataSettings, run: RunDir, examples: Sequence[Example], groups: Sequence[Group]
) -> dict[str, Any]:
    """Return what determines the outputs, but for the size of a chunk; a ledger is continued only under the same one.

    The kind of device and the size of a chunk belong to it, as both change rounding.
    """
    return {
        "decode": to_json(decoder.settings),
        "adapter": hashlib.sha256((run.adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest(),
        "base": decoder.base_fingerprint,
        "test_data": fingerprint(examples),
        "official_test_set": is_official("test", examples) and len(groups) == len(group_by_mr(examples)),
        "device": decoder.model.device.type,
        "versions": versions(),
        "corpus": corpus_name(data, examples),
        # Only where it is not the default, so that signatures from before there was a choice stay as they are.
        **({} if data.linearization == "csv" else {"linearization": data.linearization}),
    }
