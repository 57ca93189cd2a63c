"""The order of the examples, and which of them each rank computes.

Everything here is a pure function of the corpus, the seed and the position in the training, so every rank knows the
whole global batch (and its count of labels) without asking the others.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

EXCHANGES = 2
"""Exchanges of examples between ranks that make their work more equal: with 8 examples on two ranks the one with more
has 0.5 % more than the mean after two, 1.4 % after none."""

DEV_BATCH_SIZE = 16
"""Dev examples a forward pass: the result does not depend on it."""


def epoch_order(num_examples: int, seed: int, epoch: int) -> Indices:
    """The order of the examples in an epoch: a permutation that depends on seed and epoch alone, (examples,)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_examples)


def shared_order(order: Indices, mrs: Indices, refs_per_mr: int) -> Indices:
    """`order` (examples,) changed so that up to `refs_per_mr` examples of one MR stand beside each other.

    A group stands where its first example stood, and which examples form it is as random as `order`.

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


def global_batch(order: Indices, position: int, batch_size: int) -> Indices:
    """The examples of an epoch's update number `position`; the epoch's last update may have fewer: (<= batch_size,)."""
    return order[position * batch_size : (position + 1) * batch_size]


def shared_rank_share(
    batch: Indices, mrs: Indices, rank: int, world_size: int, accumulation_steps: int
) -> list[Indices]:
    """The same as `rank_share`, but examples of one MR stay together where they can."""
    by_mr = batch[np.argsort(mrs[batch], kind="stable")]
    return np.array_split(by_mr, world_size * accumulation_steps)[rank * accumulation_steps :][:accumulation_steps]


def rank_share(batch: Indices, work: Indices, rank: int, world_size: int, accumulation_steps: int) -> list[Indices]:
    """One rank's part of a global batch, as `accumulation_steps` micro-batches, of which some may be empty.

    The ranks have equal work, as far as that can be had with equal numbers of examples, and a micro-batch has rows of
    like length.

    Args:
        batch: the examples: (n,).
        work: what each example of the corpus costs, in any unit: (examples,).
        rank: whose part it is.
        world_size: ranks that share the batch.
        accumulation_steps: micro-batches of a rank.
    """
    falling = batch[np.argsort(-work[batch], kind="stable")]
    return np.array_split(falling[deal(work[falling][None], world_size)[0] == rank], accumulation_steps)


def deal(work: Indices, world_size: int) -> Indices:
    """The rank that gets each example of some global batches: (batches, n).

    The next largest example goes to the rank with least work so far (Graham 1969, "Bounds on multiprocessing timing
    anomalies"); then the ranks with most and with least exchange the pair that evens them out best.

    Args:
        work: what the examples of each batch cost, falling: (batches, n).
        world_size: ranks that share each.
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
    for _ in range(EXCHANGES if min(count, world_size) > 1 else 0):
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
    """A number that tells sets of examples `ids` (n,) apart, and whose sum over ranks is that of all their examples."""
    return int(((ids + 1) * 2654435761 % 2**32).sum())  # Knuth's multiplicative hash


def dev_batches(lengths: Indices, batch_size: int, world_size: int) -> list[Indices]:
    """All examples in batches of like length, filled up with empty batches to a multiple of the world size.

    Every rank then makes the same number of forward passes, which ZeRO-3 needs.
    """
    order = np.argsort(-lengths, kind="stable")
    found = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return found + [order[:0]] * (-len(found) % world_size)
