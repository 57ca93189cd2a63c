"""Confidence of the five scores by the bootstrap over instances.

Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation", sections 3 (intervals) and 4 (paired
test): draw as many instances as there are, with repetition, many times over, and look at how the scores vary. What the
scores are made of is computed once; a resample adds it up for the instances drawn, which takes a fraction of a
millisecond. The weights of n-grams in NIST and CIDEr stay those of the whole set.
"""

import numpy as np
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics.suite import METRICS, Measurements

LEAST_RESAMPLES = 40
"""With fewer, no resample lies outside a 95 % interval."""
_ENDS = (2.5, 97.5)


class UndefinedResample(UserError):
    """A score is not defined for some resample, though it may be for the whole set."""


def resampled_scores(measured: Measurements, resamples: int, seed: int) -> NDArray[np.float64]:
    """The scores of bootstrap samples: shape (resamples, 5), columns in the order of METRICS.

    The instances drawn depend on their number and on `seed` alone, so the rows for two systems with outputs for the
    same instances are pairs.

    Raises:
        UndefinedResample: if NIST is not defined for a sample (see `mteval.nist`).
    """
    generator = np.random.default_rng(seed)
    instances = len(measured.rouge)
    drawn = (generator.integers(instances, size=instances) for _ in range(resamples))
    try:
        return np.array([list(measured.scores(rows).values()) for rows in drawn])
    except UserError as error:
        raise UndefinedResample(f"in a resample {error}") from None


def intervals(samples: NDArray[np.float64]) -> dict[str, list[float]]:
    """The 95 % interval of each metric, [low, high]: what lies between the 2.5th and 97.5th percentile of `samples`.

    Args:
        samples: Shape (resamples, 5): scores, or differences of scores.
    """
    ends = np.percentile(samples, _ENDS, axis=0)
    return {name: ends[:, column].tolist() for column, name in enumerate(METRICS)}


def p_values(differences: NDArray[np.float64], samples: NDArray[np.float64]) -> dict[str, float]:
    """For each metric the share of resamples in which the system that is better on the whole set is not better.

    The whole set counts as one more resample, so that the share is never 0 (Davison and Hinkley 1997, "Bootstrap
    Methods and their Application", section 4.2.1). The test is one-sided: Koehn calls a system better at the 95 % level
    where the share is at most 0.05.

    Args:
        differences: Shape (5,): scores of one system on the whole set less those of the other.
        samples: Shape (resamples, 5): the same for each resample.
    """
    not_better = (samples * np.sign(differences) <= 0).sum(axis=0)
    shares = (not_better + 1) / (len(samples) + 1)
    return dict(zip(METRICS, shares.tolist(), strict=True))
