"""Bootstrap confidence intervals and a paired significance test for the five scores.

Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation", sections 3 (intervals) and 4 (paired
test): draw N of the N instances with replacement, many times, and compute the scores of each resample. The sufficient
statistics of each instance are computed once. A resample only sums the rows it draws, which takes a fraction of a
millisecond. The n-gram weights of NIST and CIDEr stay those of the whole test set.
"""

import numpy as np
from numpy.typing import NDArray

from lora_dist.errors import UserError
from lora_dist.metrics.suite import METRICS, CorpusStatistics

MIN_RESAMPLES = 40
"""With fewer, no resample falls outside a 95 % interval."""
_PERCENTILES = (2.5, 97.5)


class UndefinedResample(UserError):
    """A score is undefined for a resample, though it may be defined for the whole set."""


def bootstrap_scores(statistics: CorpusStatistics, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the scores of bootstrap resamples, shape (num_resamples, 5), columns in the order of METRICS.

    The instances drawn depend only on `seed` and on the number of instances. The rows of two systems with outputs for
    the same instances are therefore paired.

    Raises:
        UndefinedResample: if NIST is undefined for a resample (see `mteval.corpus_nist`).
    """
    generator = np.random.default_rng(seed)
    num_instances = len(statistics.rouge)
    resamples = (generator.integers(num_instances, size=num_instances) for _ in range(num_resamples))
    try:
        return np.array([list(statistics.scores(indices).values()) for indices in resamples])
    except UserError as error:
        raise UndefinedResample(f"in a resample {error}") from None


def confidence_intervals(samples: NDArray[np.float64]) -> dict[str, list[float]]:
    """Return the 95 % percentile interval of each metric as [low, high].

    Args:
        samples: Shape (resamples, 5): scores, or differences of scores.
    """
    bounds = np.percentile(samples, _PERCENTILES, axis=0)
    return {name: bounds[:, column].tolist() for column, name in enumerate(METRICS)}


def p_values(differences: NDArray[np.float64], samples: NDArray[np.float64]) -> dict[str, float]:
    """Return for each metric the fraction of resamples in which the better system is not better.

    The better system is the one with the higher score on the whole set. The whole set counts as one more resample, so
    that p is never 0 (Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 4.2.1). The test is
    one-sided: Koehn calls a system better at the 95 % level if p <= 0.05.

    Args:
        differences: Shape (5,): scores of one system on the whole set minus those of the other.
        samples: Shape (resamples, 5): the same difference for each resample.
    """
    not_better = (samples * np.sign(differences) <= 0).sum(axis=0)
    p = (not_better + 1) / (len(samples) + 1)
    return dict(zip(METRICS, p.tolist(), strict=True))
