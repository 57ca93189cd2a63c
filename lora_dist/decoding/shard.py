"""A shard of a decoding: prompts in chunks, which the ranks take one after the other.

A chunk's prompts do not depend on the world size, and so neither do its sentences; the ranks only differ in which
chunks they decode. Nor do they depend on free memory: where a chunk does not fit, all ranks start again with smaller
ones.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from lora_dist.config import DecodeSettings
from lora_dist.decoding.decoder import Decoder
from lora_dist.decoding.kv_cache import PRUNE_EVERY, DecodingModel
from lora_dist.decoding.ledger import Found
from lora_dist.distributed.collectives import SharedCounter, barrier_while, gather_objects
from lora_dist.distributed.device import device_memory
from lora_dist.distributed.world import World
from lora_dist.errors import UserError, is_out_of_memory

log = logging.getLogger(__name__)


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


def _new_tokens(settings: DecodeSettings) -> int:
    return settings.num_beams * settings.max_new_tokens


def chunk_tokens(
    settings: DecodeSettings, model: DecodingModel, prompts: Sequence[Sequence[int]], memory: int | None
) -> int:
    """Return the most tokens of a chunk to begin with: those of the settings, or a constant of the kind of device.

    The constant is halved while a chunk is sure not to fit, by a rough estimate.

    Args:
        settings: settings of the search.
        model: the model.
        prompts: token ids of every prompt.
        memory: see `smallest_memory`; None is not a limit.
    """
    if settings.batch_tokens is not None or memory is None:
        return settings.batch_tokens or model.kernels.CHUNK_TOKENS
    size, config, beams = model.kernels.CHUNK_TOKENS, model.body.config, settings.num_beams
    lengths = [len(prompt) for prompt in prompts]
    seen = max(lengths) + 2 * PRUNE_EVERY * beams  # entries that are visible, or were when last pruned
    per_prompt = model.dtype.itemsize * (2 * config.n_layer * config.n_embd * seen + beams * config.vocab_size)
    free = 0.8 * memory - sum(p.numel() * p.element_size() for p in model.body.parameters())
    while (most := _most_prompts(lengths, settings, size)) > 1 and most * per_prompt > free:
        size //= 2
    return size


def smallest_memory(world: World) -> int | None:
    """Return the bytes of the smallest GPU, free or not; None on CPUs. Collective: call on all ranks."""
    return min((m for m in gather_objects(world, [device_memory(world.device)]) if m is not None), default=None)


def _most_prompts(lengths: Sequence[int], settings: DecodeSettings, size: int) -> int:
    """Return the most prompts, of `lengths` tokens, that a chunk of up to `size` tokens has."""
    return max(map(len, chunks(lengths, _new_tokens(settings), size)))


def smaller_chunk_tokens(settings: DecodeSettings, prompts: Sequence[Sequence[int]], size: int) -> int:
    """Halve `size`, the tokens of a chunk that did not fit into memory, until chunks are smaller, and warn.

    Raises:
        UserError: if there was one prompt per chunk.
    """
    lengths = [len(prompt) for prompt in prompts]
    most = _most_prompts(lengths, settings, size)
    if most == 1:
        raise UserError(
            f"--decode.num-beams is {settings.num_beams}: the device has not enough memory for one meaning "
            "representation at a time; choose fewer beams or a smaller --decode.max-new-tokens"
        )
    smaller = size
    while _most_prompts(lengths, settings, smaller) == most:
        smaller //= 2
    torch.cuda.empty_cache()
    log.warning("out of memory: decoding in chunks of %d tokens instead of %d", smaller, size)
    return smaller


def decode_shard(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    size: int,
    done: Mapping[int, Found],
    world: World,
    asked_to_end: Callable[[], bool],
    keep: Callable[[dict[int, Found]], None] = lambda _: None,
) -> dict[int, Found] | None:
    """Decode chunks, the next one whenever this rank is free, and wait for the others. Collective: call on all ranks.

    Args:
        decoder: the model and its settings.
        prompts: token ids of every prompt.
        size: most tokens of a chunk with more than one prompt.
        done: sentences of earlier runs by index, which are not decoded again.
        world: the ranks.
        asked_to_end: called before each chunk and while waiting. It may raise, or return True to decode no further.
        keep: called with the sentences of each chunk.

    Returns:
        This rank's sentences by index, on rank 0 with `done`; None on every rank if one of them ran out of memory.
    """
    every = chunks([len(p) for p in prompts], _new_tokens(decoder.settings), size)
    todo = [chunk for chunk in every if not done.keys() >= set(chunk)]
    found = dict(done) if world.is_main else {}
    started, finished, failed = SharedCounter(world), SharedCounter(world), SharedCounter(world)
    quiet, count = not world.shows_progress, sum(map(len, todo))
    with tqdm(total=count, desc="decode", unit="sentence", leave=None, disable=quiet, dynamic_ncols=True) as bar:
        while (number := started.add(1) - 1) < len(todo) and not failed.add(0) and not asked_to_end():
            world.watchdog.progress(f"chunk {number + 1} of {len(todo)}")
            decoded = _decode_chunk(decoder, prompts, todo[number])
            if decoded is None:
                failed.add(1)
                break
            new = {index: sentences for index, sentences in decoded.items() if index not in done}
            found |= new
            keep(new)
            bar.update(finished.add(len(decoded)) - bar.n)

        def while_waiting() -> None:
            asked_to_end()
            if world.is_main and (more := finished.add(0) - bar.n) > 0:
                world.watchdog.progress("waiting for the other ranks' last chunks")
                bar.update(more)

        barrier_while(world, while_waiting)
    return None if failed.add(0) else found


def _decode_chunk(decoder: Decoder, prompts: Sequence[Sequence[int]], chunk: Sequence[int]) -> dict[int, Found] | None:
    """Return the sentences of the prompts `chunk` by index, None if there is not enough memory for them."""
    try:
        return dict(zip(chunk, decoder.sentences([prompts[i] for i in chunk]), strict=True))
    except (RuntimeError, MemoryError) as error:  # cuBLAS and CUDA have errors of their own
        if is_out_of_memory(error):
            return None
        raise
