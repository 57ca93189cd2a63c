"""Scored runs read from their folders, and configurations: groups of runs that differ only in the seed."""

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
from lora_dist.config_io import (
    WITHOUT_EFFECT,
    as_options,
    changed_options,
    from_json,
    nearest_preset,
    read_config,
    to_json,
)
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import mteval_variant, score_run
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
    """Settings of its training and decoding."""
    config: dict[str, Any]
    """Object of config.json."""
    scores: dict[str, Any]
    """Object of scores.json."""
    decoding: dict[str, Any]
    """Object of decode/signature.json: settings, fingerprints and versions of the decoding."""
    log: list[dict[str, Any]]
    """Objects of metrics.jsonl, one per logged step or dev evaluation."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.run.root.resolve().name

    @property
    def base(self) -> str:
        """Name of the base model, without folder or Hub account."""
        return Path(self.settings.model.name).name

    @property
    def trained_here(self) -> bool:
        """Whether this package trained it; the training of an imported adapter is unknown."""
        return self.config["world"] is not None

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return int(self.config["counts"]["trainable"])

    @property
    def values(self) -> tuple[float, ...]:
        """The five scores in the order of METRICS."""
        return tuple(self.scores[metric] for metric in METRICS)

    @property
    def slot_error_rate(self) -> float | None:
        """Errors / slots; None if the corpus has other values than E2E."""
        rate: float | None = self.scores.get("slot_error_rate", {}).get("rate")
        return rate

    @property
    def training_seconds(self) -> float | None:
        """Seconds of all logged steps, without dev evaluations and checkpoints; None if there is no log."""
        seconds, previous_step = 0.0, 0
        for row in self.logged_steps():
            examples = (row["step"] - previous_step) * self.settings.train.global_batch_size
            seconds += examples / row["examples_per_second"]
            previous_step = row["step"]
        return seconds or None

    def logged_steps(self) -> list[dict[str, Any]]:
        """Return the rows of the log with the training loss."""
        return [row for row in self.log if "loss" in row]

    def dev_evaluations(self) -> list[dict[str, Any]]:
        """Return the rows of the log with the dev loss."""
        return [row for row in self.log if "dev_loss" in row]

    def dev_scores(self) -> list[dict[str, Any]]:
        """Return the rows of the log with scores of the decoded dev set, one per epoch."""
        return [row for row in self.log if "dev_BLEU" in row]

    @property
    def selected_step(self) -> int | None:
        """Optimizer steps after which the adapter was taken; None if the dev set was not scored."""
        step: int | None = self.config.get("selection", {}).get("step")
        return step

    @property
    def epoch(self) -> str:
        """How the epoch of the adapter was selected; only for a run that was trained here."""
        best = f"best of {len(self.dev_scores())} by dev BLEU"
        return best if self.settings.train.select == "best" else "last"

    def caveats(self) -> list[str]:
        """List why its scores are not directly comparable with the paper's."""
        found = []
        if not self.trained_here:
            found.append("trained elsewhere with unknown settings")
        if self.settings.model.name.removeprefix("openai-community/") not in PUBLISHED_MODELS:
            found.append(f"the base model is {self.base}, not GPT-2")
        if self.settings.train.max_steps is not None or self.settings.data.limit_train is not None:
            found.append("trained for fewer steps or on fewer examples than the paper's five epochs")
        if not self.decoding.get("official_test_set"):
            found.append("not the whole official test set was decoded")
        if self.settings.decode.ngram_scope != "all":
            found.append(
                "the ban on repeated 4-grams covers the generated text only; the paper's also covers the prompt"
            )
        if mteval_variant(self.scores) == "python":
            found.append("BLEU and NIST are computed by the official script's Python program (-p), not its default")
        return found


def load_results(runs: Sequence[RunDir]) -> list[Result]:
    """Load the runs, scoring those that have not been scored since they were decoded.

    Raises:
        UserError: if a folder is not a run, or a run has not been decoded.
    """
    return [load_result(run) for run in runs]


def load_result(run: RunDir) -> Result:
    """Load one run as `load_results` does."""
    config = read_config(run)
    decoding = read_json(run.decode_signature, f"{run.root} has not been decoded (lora-dist decode {run.root})")
    if not run.outputs_text.is_file():
        raise UserError(f"{run.outputs_text} is missing: lora-dist decode {run.root}")
    scores = read_json(run.scores, "no scores") if run.scores.is_file() else {}
    up_to_date = scores.get("signature", {}).get("outputs") == hashlib.sha256(run.outputs_text.read_bytes()).hexdigest()
    if not (up_to_date and run.sentence_scores.is_file() and all(metric in scores for metric in METRICS)):
        logger.info("scoring %s", run.root)
        scores = score_run(run, mteval_variant(scores) if "signature" in scores else "perl")
    training = from_json(Settings, config["settings"])
    settings = replace(training, decode=from_json(DecodeSettings, decoding["decode"]))
    log = read_jsonl(run.metrics) if run.metrics.is_file() else []  # an imported adapter has no log
    return Result(run, settings, config, scores, decoding, log)


def read_sentence_scores(run: RunDir) -> list[dict[str, float]]:
    """Read the scores of each output, keyed by the column names of the official script."""
    with run.sentence_scores.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    return [{name: float(row[name]) for name in row if name not in ("src", "sys_out")} for row in rows]


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed."""

    label: str
    """Base model, preset, and the settings that differ between the configurations of the report."""
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """A representative run, for what all of them have in common."""
        return self.results[0]

    def mean(self) -> tuple[float, ...]:
        """Compute the mean of each score over the seeds, in the order of METRICS."""
        return tuple(statistics.mean(values) for values in zip(*(r.values for r in self.results), strict=True))

    def std(self) -> tuple[float, ...] | None:
        """Compute the sample standard deviation (n - 1) of each score over the seeds; None for a single run."""
        if len(self.results) == 1:
            return None
        return tuple(statistics.stdev(values) for values in zip(*(r.values for r in self.results), strict=True))


def one_per_adapter(results: Sequence[Result]) -> list[Result]:
    """Keep the first run of each adapter; the others differ from it only in how they were decoded."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.decoding["adapter"], result)
    return list(first.values())


def configurations(results: Sequence[Result]) -> list[Configuration]:
    """Group the runs that differ only in the seed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_configuration_key(result), []).append(result)
    options = [_score_options(group[0]) for group in groups.values()]
    differing = {name for one in options for name in one if any(one[name] != other[name] for other in options)}
    labels = []
    for group, group_options in zip(groups.values(), options, strict=True):
        details = [_option_label(name, group_options[name]) for name in sorted(differing)]
        labels.append(", ".join([group[0].base, preset_name(group[0].settings), *details]))
    return [
        # Configurations may differ in data, base model or scorer and have the same label: add the folder's name.
        Configuration(label if labels.count(label) == 1 else f"{label} ({group[0].name})", tuple(group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def preset_name(settings: Settings) -> str:
    """Return the name of the nearest preset and the LoRA settings that differ from it."""
    changed = {name: value for name, value in changed_options(settings).items() if name.startswith("--lora.")}
    return ", ".join([nearest_preset(settings), *(_option_label(name, value) for name, value in changed.items())])


def _option_label(option: str, value: Any) -> str:
    """Format `--train.refs-per-mr` with value 8 as `refs-per-mr 8`."""
    return f"{option.split('.')[1]} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _score_options(result: Result) -> dict[str, Any]:
    """Return the options that affect the scores, except base model, adapter and seed."""
    options = as_options(result.settings, "model", "data", "train", "decode")
    excluded = WITHOUT_EFFECT | {"--train.seed", "--decode.batch-tokens", "--decode.num-return"}
    return {name: value for name, value in options.items() if name not in excluded}


def _configuration_key(result: Result) -> str:
    """Return a key that is equal for runs that differ only in the seed."""
    scorer = {name: result.scores["signature"][name] for name in METRICS}
    data = {**result.config["data"], "test": result.decoding["test_data"], "base": result.decoding["base"]}
    return json.dumps([_score_options(result), to_json(result.settings.lora), data, scorer], sort_keys=True)
