"""The order of the examples, and how a global batch is sharded over the ranks.

Everything here is a pure function of the corpus, the seed and the step, so every rank knows the whole global batch (and
its label count) without communication.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

SWAPS = 2
"""Swaps of examples between ranks that balance their work: with 8 examples on two ranks, the busier one has 0.5 % more
work than the mean after two swaps, 1.4 % more without any."""

DEV_SPEEDUP = 3
"""How many dev examples take the time of a training example, about: they need a forward pass only. For estimates."""


def epoch_order(num_examples: int, seed: int, epoch: int) -> Indices:
    """Return the order of the examples in an epoch, a permutation that depends on seed and epoch only: (examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def group_order(order: Indices, mrs: Indices, refs_per_mr: int) -> Indices:
    """Reorder examples so that up to `refs_per_mr` examples of one MR are neighbours: (examples,).

    A group takes the place of its first example. Which examples form a group is as random as `order`.

    Args:
        order: a permutation: (examples,).
        mrs: the MR of each example: (examples,).
        refs_per_mr: most examples per group; 1 keeps the order.
    """
    by_mr = np.argsort(mrs[order], kind="stable")  # places in `order`, sorted by MR and then by place
    changes = np.flatnonzero(np.diff(mrs[order][by_mr], prepend=-1))
    number_in_mr = np.arange(len(order)) - np.repeat(changes, np.diff(changes, append=len(order)))
    first_of_group = by_mr[np.arange(len(order)) - number_in_mr % refs_per_mr]
    return order[by_mr[np.lexsort((number_in_mr, first_of_group))]]


def training_order(mrs: Indices, seed: int, epoch: int, refs_per_mr: int) -> Indices:
    """Return the order of the examples in an epoch of a training: (examples,).

    Args:
        mrs: the MR of each example: (examples,).
        seed: seed of the training.
        epoch: the epoch, from 0.
        refs_per_mr: see `group_order`.
    """
    return group_order(epoch_order(len(mrs), seed, epoch), mrs, refs_per_mr)


def global_batch(order: Indices, position: int, batch_size: int) -> Indices:
    """Return the examples of step `position` of an epoch, whose last step may have fewer: (<= batch_size,)."""
    return order[position * batch_size : (position + 1) * batch_size]


def grouped_micro_batches(
    batch: Indices, mrs: Indices, rank: int, world_size: int, accumulation_steps: int
) -> list[Indices]:
    """Shard a global batch like `micro_batches`, but keep examples of one MR together where possible."""
    by_mr = batch[np.argsort(mrs[batch], kind="stable")]
    return np.array_split(by_mr, world_size * accumulation_steps)[rank * accumulation_steps :][:accumulation_steps]


def micro_batches(batch: Indices, work: Indices, rank: int, world_size: int, accumulation_steps: int) -> list[Indices]:
    """Return one rank's shard of a global batch as `accumulation_steps` micro-batches, some of them possibly empty.

    All ranks get equally many examples, give or take one, and within that limit similar work. The examples of a
    micro-batch have similar lengths.

    Args:
        batch: the examples of the global batch: (n,).
        work: cost of each example of the corpus, in any unit: (examples,).
        rank: the rank whose shard is returned.
        world_size: number of ranks.
        accumulation_steps: micro-batches per rank.
    """
    falling = batch[np.argsort(-work[batch], kind="stable")]
    return np.array_split(falling[assign_ranks(work[falling][None], world_size)[0] == rank], accumulation_steps)


def assign_ranks(work: Indices, world_size: int) -> Indices:
    """Assign the examples of each global batch to ranks of similar work: (batches, n).

    The next largest example goes to the rank with the least work so far (Graham 1969, "Bounds on multiprocessing timing
    anomalies"). Then the ranks with the most and the least work swap the pair that balances them best.

    Args:
        work: cost of the examples of each batch, in descending order: (batches, n).
        world_size: number of ranks.
    """
    size, rows = work.shape[1], np.arange(len(work))
    ranks = np.empty(work.shape, np.int64)
    loads = np.zeros((len(work), world_size))
    for first in range(0, size, world_size):  # one to each rank before any gets its next
        free = loads.copy()
        for place in range(first, min(first + world_size, size)):
            ranks[:, place] = least = free.argmin(1)
            free[rows, least] = np.inf
            loads[rows, least] += work[:, place]
    for _ in range(SWAPS if min(size, world_size) > 1 else 0):
        most, least = loads.argmax(1), loads.argmin(1)
        gaps = loads[rows, most] - loads[rows, least]
        gains = work[:, :, None] - work[:, None, :]
        allowed = (ranks == most[:, None])[:, :, None] & (ranks == least[:, None])[:, None, :]
        left = np.where(allowed, np.abs(gaps[:, None, None] - 2 * gains), np.inf).reshape(len(work), -1)
        best = left.argmin(1)
        (changed,) = np.nonzero(left[rows, best] < gaps)
        gives, takes = best[changed] // size, best[changed] % size
        moved = gains[changed, gives, takes]
        ranks[changed, gives], ranks[changed, takes] = least[changed], most[changed]
        loads[changed, most[changed]] -= moved
        loads[changed, least[changed]] += moved
    return ranks


def checksum(ids: Indices) -> int:
    """Compute a checksum of the examples `ids` (n,); summed over ranks it is that of the global batch."""
    return int(((ids + 1) * 2654435761 % 2**32).sum())  # Knuth's multiplicative hash


def dev_batches(lengths: Indices, batch_size: int, world_size: int) -> list[Indices]:
    """Split all examples into batches of similar length, padded with empty batches to a multiple of the world size.

    Every rank then makes the same number of forward passes, as ZeRO-3 requires.

    Args:
        lengths: tokens of each example: (examples,).
        batch_size: most examples per batch.
        world_size: number of ranks.
    """
    order = np.argsort(-lengths, kind="stable")
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found + [order[:0]] * (-len(found) % world_size)
