"""The order of the examples, and how a global batch is sharded over the ranks.

Everything here is a pure function of the corpus, the seed and the position in the training, so every rank knows the
whole global batch (and its label count) without communication.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

SWAPS = 2
"""Swaps of examples between ranks that balance their work: with 8 examples on two ranks the busier one has 0.5 % more
than the mean after two, 1.4 % after none."""

DEV_BATCH_SIZE = 16
"""Dev examples per forward pass: the result does not depend on it."""


def epoch_order(num_examples: int, seed: int, epoch: int) -> Indices:
    """The order of the examples in an epoch: a permutation that depends on seed and epoch only, (examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def group_order(order: Indices, mrs: Indices, refs_per_mr: int) -> Indices:
    """`order` (examples,) changed so that up to `refs_per_mr` examples of one MR are neighbours.

    A group takes the place of its first example, and which examples form it is as random as `order`.

    Args:
        order: a permutation.
        mrs: the MR of each example: (examples,).
        refs_per_mr: examples of a group; with 1 the order stays.
    """
    by_mr = np.argsort(mrs[order], kind="stable")  # places in `order`, those of an MR in its order
    changes = np.flatnonzero(np.diff(mrs[order][by_mr], prepend=-1))
    number_in_mr = np.arange(len(order)) - np.repeat(changes, np.diff(changes, append=len(order)))
    first_of_group = by_mr[np.arange(len(order)) - number_in_mr % refs_per_mr]
    return order[by_mr[np.lexsort((number_in_mr, first_of_group))]]


def training_order(mrs: Indices, seed: int, epoch: int, refs_per_mr: int) -> Indices:
    """The order of the examples in an epoch of a training: (examples,).

    Args:
        mrs: the MR of each example: (examples,).
        seed: of the training.
        epoch: from 0.
        refs_per_mr: see `group_order`.
    """
    return group_order(epoch_order(len(mrs), seed, epoch), mrs, refs_per_mr)


def global_batch(order: Indices, position: int, batch_size: int) -> Indices:
    """The examples of an epoch's step number `position`; its last step may have fewer: (<= batch_size,)."""
    return order[position * batch_size : (position + 1) * batch_size]


def grouped_micro_batches(
    batch: Indices, mrs: Indices, rank: int, world_size: int, accumulation_steps: int
) -> list[Indices]:
    """The same as `micro_batches`, but examples of one MR stay together where possible."""
    by_mr = batch[np.argsort(mrs[batch], kind="stable")]
    return np.array_split(by_mr, world_size * accumulation_steps)[rank * accumulation_steps :][:accumulation_steps]


def micro_batches(batch: Indices, work: Indices, rank: int, world_size: int, accumulation_steps: int) -> list[Indices]:
    """One rank's shard of a global batch, as `accumulation_steps` micro-batches, of which some may be empty.

    The ranks' work is balanced as far as equal numbers of examples allow, and the rows of a micro-batch have similar
    lengths.

    Args:
        batch: the examples: (n,).
        work: what each example of the corpus costs, in any unit: (examples,).
        rank: whose shard it is.
        world_size: ranks that share the batch.
        accumulation_steps: micro-batches of a rank.
    """
    falling = batch[np.argsort(-work[batch], kind="stable")]
    return np.array_split(falling[assign_ranks(work[falling][None], world_size)[0] == rank], accumulation_steps)


def assign_ranks(work: Indices, world_size: int) -> Indices:
    """The rank that gets each example of some global batches: (batches, n).

    The next largest example goes to the rank with least work so far (Graham 1969, "Bounds on multiprocessing timing
    anomalies"); then the ranks with most and with least work swap the pair that balances them best.

    Args:
        work: what the examples of each batch cost, falling: (batches, n).
        world_size: ranks that each is sharded over.
    """
    count, rows = work.shape[1], np.arange(len(work))
    ranks = np.empty(work.shape, np.int64)
    loads = np.zeros((len(work), world_size))
    for first in range(0, count, world_size):  # one to each rank before any gets its next
        free = loads.copy()
        for place in range(first, min(first + world_size, count)):
            ranks[:, place] = least = free.argmin(1)
            free[rows, least] = np.inf
            loads[rows, least] += work[:, place]
    for _ in range(SWAPS if min(count, world_size) > 1 else 0):
        most, least = loads.argmax(1), loads.argmin(1)
        gaps = loads[rows, most] - loads[rows, least]
        gains = work[:, :, None] - work[:, None, :]
        allowed = (ranks == most[:, None])[:, :, None] & (ranks == least[:, None])[:, None, :]
        left = np.where(allowed, np.abs(gaps[:, None, None] - 2 * gains), np.inf).reshape(len(work), -1)
        best = left.argmin(1)
        (changed,) = np.nonzero(left[rows, best] < gaps)
        gives, takes = best[changed] // count, best[changed] % count
        moved = gains[changed, gives, takes]
        ranks[changed, gives], ranks[changed, takes] = least[changed], most[changed]
        loads[changed, most[changed]] -= moved
        loads[changed, least[changed]] += moved
    return ranks


def checksum(ids: Indices) -> int:
    """A checksum of a set of examples `ids` (n,), whose sum over ranks is that of the global batch."""
    return int(((ids + 1) * 2654435761 % 2**32).sum())  # Knuth's multiplicative hash


def dev_batches(lengths: Indices, batch_size: int, world_size: int) -> list[Indices]:
    """All examples in batches of similar length, padded with empty batches to a multiple of the world size.

    Every rank then makes the same number of forward passes, which ZeRO-3 needs.
    """
    order = np.argsort(-lengths, kind="stable")
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found + [order[:0]] * (-len(found) % world_size)
