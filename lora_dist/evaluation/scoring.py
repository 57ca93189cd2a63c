"""Score files and runs; every scores.json has a signature that tells which scores are comparable."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_dist.data.e2e import parse_mr
from lora_dist.errors import UserError
from lora_dist.evaluation.decoded import read_decoded
from lora_dist.evaluation.formats import sentence_tsv
from lora_dist.evaluation.model_card import write_card
from lora_dist.files import read_json, save_text, write_json, write_text
from lora_dist.metrics import bootstrap, suite
from lora_dist.metrics.mteval import Variant
from lora_dist.metrics.readers import Instances, read_pair, read_sources
from lora_dist.metrics.sentences import sentence_scores
from lora_dist.metrics.slots.errors import count_slot_errors
from lora_dist.metrics.text_files import TextFile, read_text_file
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import exclusive

BOOTSTRAP_SEED = 0
"""Fixed, so that resamples of different systems are paired and intervals are reproducible."""
RUN_RESAMPLES = 1000
"""Bootstrap resamples for the intervals in a run's scores.json."""


def score_files(
    references: Path,
    outputs: Path,
    variant: Variant = "perl",
    *,
    mrs: Path | None = None,
    partial: bool = False,
    sentence_level: Path | None = None,
    resamples: int | None = None,
    against: Path | None = None,
) -> dict[str, Any]:
    """Compute the object of scores.json: the five scores to 6 decimals, the requested extras, and the signature.

    Args:
        references: Human references, in any format of `metrics.readers`.
        outputs: The outputs, likewise.
        variant: Variant of BLEU and NIST.
        mrs: Add `slot_error_rate` of the outputs for the meaning representations in this file (see `metrics.slots`).
        partial: Score the instances that have an output; without it, each instance must have one.
        sentence_level: Also write the scores of each instance to this file (see `metrics.sentences`).
        resamples: Add `bootstrap`: 95 % intervals from this number of resamples (see `metrics.bootstrap`).
        against: Add `against`: the score differences to these outputs of another system, with 95 % intervals and the
            p-values of a paired test; requires `resamples`.

    Raises:
        UserError: if a file cannot be read or written, the files do not match, there are too few resamples, or Java is
            missing or fails.
    """
    _check_resampling(resamples, against)
    files = read_text_file(references), read_text_file(outputs)
    names = None if mrs is None else read_sources(read_text_file(mrs))
    instances = read_pair(*files, names, partial=partial)
    slots = {} if mrs is None else {"slot_error_rate": _slot_error_rate(instances)}
    other = None if against is None else _read_other_system(files[0], read_text_file(against), names, instances)
    statistics = suite.compute_statistics(instances.references, instances.outputs, variant)
    scores: dict[str, Any] = _rounded(statistics.scores())
    if resamples is not None:
        samples = bootstrap.bootstrap_scores(statistics, resamples, BOOTSTRAP_SEED)
        scores["bootstrap"] = _intervals(samples)
        if other is not None:
            sha256, others = other
            other_statistics = suite.compute_statistics(instances.references, others, variant)
            scores["against"] = {"outputs": sha256, **_paired_test(statistics, other_statistics, samples)}
    hashes = {"references": files[0].sha256, "outputs": files[1].sha256}
    scores |= {**slots, "signature": _signature(variant, instances, hashes)}
    if sentence_level is not None:
        columns = sentence_scores(instances.references, instances.outputs, statistics)
        save_text(sentence_level, sentence_tsv(instances, columns))
    return scores


def score_run(run: RunDir, variant: Variant = "perl") -> dict[str, Any]:
    """Score a run's outputs and write scores.json, the scores of each sentence, and the adapter's model card.

    The slot error rate is null with the reason if the corpus has other values than E2E. The intervals are left out if
    NIST is undefined for a resample, as with a handful of very short outputs.

    Raises:
        UserError: if the run has no outputs or damaged ones, another process is writing to it, or Java is missing or
            fails. scores.json is unchanged then.
    """
    with exclusive(run):
        return _score_run(run, variant)


def _score_run(run: RunDir, variant: Variant) -> dict[str, Any]:
    decoding = read_json(run.decode_signature, f"{run.root} has not been decoded")
    instances, hashes = read_decoded(run)
    statistics = suite.compute_statistics(instances.references, instances.outputs, variant)
    columns = sentence_scores(instances.references, instances.outputs, statistics)
    scores: dict[str, Any] = _rounded(statistics.scores())
    with suppress(bootstrap.UndefinedResample):
        scores["bootstrap"] = _intervals(bootstrap.bootstrap_scores(statistics, RUN_RESAMPLES, BOOTSTRAP_SEED))
    try:
        scores["slot_error_rate"] = _slot_error_rate(instances)
    except UserError as error:
        scores["slot_error_rate"] = {"rate": None, "reason": str(error)}
    scores["signature"] = {**_signature(variant, instances, hashes), "decode": decoding}
    write_text(run.sentence_scores, sentence_tsv(instances, columns))
    write_json(run.scores, scores)
    if run.adapter.is_dir():
        write_card(run)
    return scores


def mteval_variant(scores: Mapping[str, Any]) -> Variant:
    """Return the variant of BLEU and NIST in an object of scores.json."""
    return "python" if scores["signature"]["BLEU"].startswith("pymteval") else "perl"


def _check_resampling(resamples: int | None, against: Path | None) -> None:
    if resamples is None and against is not None:
        raise UserError(f"--against is {against} but --bootstrap is not set: add --bootstrap 1000")
    if resamples is not None and resamples < bootstrap.MIN_RESAMPLES:
        raise UserError(f"--bootstrap is {resamples}: must be >= {bootstrap.MIN_RESAMPLES}, such as 1000")


def _slot_error_rate(instances: Instances) -> dict[str, Any]:
    """Return the rate, the number of slots, and the counts of each kind of error by attribute."""
    counts = count_slot_errors([dict(parse_mr(mr)) for mr in instances.sources], instances.outputs)
    return {"rate": round(counts.rate, 6), **asdict(counts)}


def _read_other_system(
    references: TextFile, outputs: TextFile, mrs: Sequence[str] | None, instances: Instances
) -> tuple[str, list[str]]:
    """Return the hash of another system's outputs, and its outputs for the same instances.

    Raises:
        UserError: if it has none for some of them.
    """
    other = read_pair(references, outputs, mrs, partial=True)
    by_place = dict(zip(other.places, other.outputs, strict=True))
    if missing := [place for place in instances.places if place not in by_place]:
        raise UserError(
            f"{outputs.path} has no output for {len(missing)} of the {len(instances.places)} instances it is compared "
            "on: add them"
        )
    return outputs.sha256, [by_place[place] for place in instances.places]


def _paired_test(
    statistics: suite.CorpusStatistics, other: suite.CorpusStatistics, samples: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """Compare a system with another one: differences of the scores, their 95 % intervals and p-values.

    Args:
        statistics: Of the first system.
        other: Of the second system's outputs for the same instances.
        samples: Bootstrap scores of the first system, shape (resamples, 5).
    """
    differences = np.subtract(list(statistics.scores().values()), list(other.scores().values()))
    paired = samples - bootstrap.bootstrap_scores(other, len(samples), BOOTSTRAP_SEED)
    return {
        "difference": _rounded(dict(zip(suite.METRICS, differences.tolist(), strict=True))),
        "interval": _rounded(bootstrap.confidence_intervals(paired)),
        "p": _rounded(bootstrap.p_values(differences, paired)),
    }


def _intervals(samples: NDArray[np.float64]) -> dict[str, Any]:
    """Return the 95 % intervals of bootstrap scores, shape (resamples, 5), and how they were drawn."""
    intervals = _rounded(bootstrap.confidence_intervals(samples))
    return {"resamples": len(samples), "seed": BOOTSTRAP_SEED, **intervals}


def _signature(variant: Variant, instances: Instances, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return what the scores depend on: programs and settings, the instances, and the SHA-256 of each file."""
    scored = len(instances.outputs)
    partial = {"partial": f"{scored} of {instances.total} instances"} if scored < instances.total else {}
    return {**suite.signature(variant), "instances": scored, **partial, **hashes}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round values and lists of values to 6 decimals."""
    return {name: np.round(value, 6).tolist() for name, value in values.items()}
