"""What a report is made of: runs as their folders describe them, grouped where they differ only in the seed."""

import csv
import hashlib
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_dist.config import DecodeSettings, Settings
from lora_dist.config_io import WITHOUT_EFFECT, as_options, changed_options, from_json, nearest_preset, to_json
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import score_run, variant_of
from lora_dist.files import read_json, read_jsonl
from lora_dist.metrics.suite import METRICS
from lora_dist.report.published import PUBLISHED_MODELS
from lora_dist.run_dir import RunDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A scored run."""

    run: RunDir
    settings: Settings
    """Those of its training, with those of its decoding."""
    config: dict[str, Any]
    """Of config.json."""
    scores: dict[str, Any]
    """Of scores.json."""
    decoding: dict[str, Any]
    """Of decode/signature.json: what made the sentences."""
    log: list[dict[str, Any]]
    """Lines of metrics.jsonl."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.run.root.resolve().name

    @property
    def base(self) -> str:
        """The base model, without its folder or account."""
        return Path(self.settings.model.name).name

    @property
    def trained_here(self) -> bool:
        """Whether its training is known: not that of an adapter from elsewhere."""
        return self.config["world"] is not None

    @property
    def trainable(self) -> int:
        """Trainable parameters."""
        return int(self.config["counts"]["trainable"])

    @property
    def values(self) -> tuple[float, ...]:
        """The five scores, in the order of METRICS."""
        return tuple(self.scores[metric] for metric in METRICS)

    @property
    def slot_error_rate(self) -> float | None:
        """Errors / slots, where the corpus has E2E's values."""
        rate: float | None = self.scores.get("slot_error_rate", {}).get("rate")
        return rate

    @property
    def training_seconds(self) -> float | None:
        """Time of all steps, without dev sets and checkpoints; None if there is no log."""
        seconds, before = 0.0, 0
        for row in self.logged_steps():
            seconds += (row["step"] - before) * self.settings.train.global_batch_size / row["examples_per_second"]
            before = row["step"]
        return seconds or None

    def logged_steps(self) -> list[dict[str, Any]]:
        """The lines of the log with the training loss."""
        return [row for row in self.log if "loss" in row]

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the log with the dev loss."""
        return [row for row in self.log if "dev_loss" in row]

    def caveats(self) -> list[str]:
        """Why its scores do not compare with the paper's directly."""
        found = []
        if not self.trained_here:
            found.append("trained elsewhere, with unknown settings")
        if self.settings.model.name.removeprefix("openai-community/") not in PUBLISHED_MODELS:
            found.append(f"the base model is {self.base}, not GPT-2")
        if self.settings.train.max_steps is not None or self.settings.data.limit_train is not None:
            found.append("trained for fewer steps, or on fewer examples, than the paper's five epochs")
        if not self.decoding.get("official_test_set"):
            found.append("not the whole official test set was decoded")
        if self.settings.decode.ngram_scope != "all":
            found.append("repeated 4-grams are banned in the sentence only; the paper's decoder bans the prompt's too")
        if variant_of(self.scores) == "python":
            found.append("BLEU and NIST are those of the official script's Python program (-p), not its default")
        return found


def load_results(runs: Sequence[RunDir]) -> list[Result]:
    """The runs; those not scored since they were decoded are scored.

    Raises:
        UserError: if one is not the folder of a run, or has not been decoded.
    """
    return [load_result(run) for run in runs]


def load_result(run: RunDir) -> Result:
    """See `load_results`."""
    config = read_json(run.config, f"{run.root} is not the folder of a run")
    decoding = read_json(run.decode_signature, f"{run.root} has not been decoded (lora-dist decode {run.root})")
    if not run.outputs_text.is_file():
        raise UserError(f"{run.outputs_text} is missing: lora-dist decode {run.root}")
    scores = read_json(run.scores, "no scores") if run.scores.is_file() else {}
    of_these = scores.get("signature", {}).get("outputs") == hashlib.sha256(run.outputs_text.read_bytes()).hexdigest()
    if not (of_these and run.sentence_scores.is_file() and all(metric in scores for metric in METRICS)):
        logger.info("scoring %s", run.root)
        scores = score_run(run, variant_of(scores) if "signature" in scores else "perl")
    trained = from_json(Settings, config["settings"])
    settings = replace(trained, decode=from_json(DecodeSettings, decoding["decode"]))
    log = read_jsonl(run.metrics) if run.metrics.is_file() else []  # an adapter from elsewhere has none
    return Result(run, settings, config, scores, decoding, log)


def sentence_scores(run: RunDir) -> list[dict[str, float]]:
    """The scores of each output, by name of the official script's column."""
    with run.sentence_scores.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    return [{name: float(row[name]) for name in row if name not in ("src", "sys_out")} for row in rows]


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed."""

    label: str
    """Base model, preset, and the settings in which it differs from the others of the report."""
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """One of them, for what they have in common."""
        return self.results[0]

    def mean(self) -> tuple[float, ...]:
        """Mean of each score over the seeds."""
        return tuple(statistics.mean(values) for values in zip(*(r.values for r in self.results), strict=True))

    def spread(self) -> tuple[float, ...] | None:
        """Standard deviation of each score over the seeds (n - 1 in the denominator); None for a single one."""
        if len(self.results) == 1:
            return None
        return tuple(statistics.stdev(values) for values in zip(*(r.values for r in self.results), strict=True))


def trained(results: Sequence[Result]) -> list[Result]:
    """The first of those that share an adapter: the others show what decoding settings do."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.decoding["adapter"], result)
    return list(first.values())


def configurations(results: Sequence[Result]) -> list[Configuration]:
    """The results, grouped where they differ only in the seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_identity(result), []).append(result)
    options = [_options(group[0]) for group in groups.values()]
    differing = {name for each in options for name in each if any(each[name] != other[name] for other in options)}
    labels = []
    for group, own in zip(groups.values(), options, strict=True):
        details = [_detail(name, own[name]) for name in sorted(differing)]
        labels.append(", ".join([group[0].base, preset_name(group[0].settings), *details]))
    return [
        # Where data, base model or scorer differ under the same name, the folder distinguishes them.
        Configuration(label if labels.count(label) == 1 else f"{label} ({group[0].name})", tuple(group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def preset_name(settings: Settings) -> str:
    """The nearest preset, with what differs from its adapter."""
    changed = {name: value for name, value in changed_options(settings).items() if name.startswith("--lora.")}
    return ", ".join([nearest_preset(settings), *(_detail(name, value) for name, value in changed.items())])


def _detail(option: str, value: Any) -> str:
    """`refs-per-mr 8` from `--train.refs-per-mr`."""
    return f"{option.split('.')[1]} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _options(result: Result) -> dict[str, Any]:
    """What decides its scores, except base model, adapter and seed."""
    options = as_options(result.settings, "model", "data", "train", "decode")
    without = WITHOUT_EFFECT | {"--train.seed", "--decode.batch-tokens", "--decode.num-return"}
    return {name: value for name, value in options.items() if name not in without}


def _identity(result: Result) -> str:
    """Equal for results that differ only in the seed."""
    scorer = {name: result.scores["signature"][name] for name in METRICS}
    data = {**result.config["data"], "test": result.decoding["test_data"], "base": result.decoding["base"]}
    return json.dumps([_options(result), to_json(result.settings.lora), data, scorer], sort_keys=True)
