"""Scored runs, read from their folders."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_dist.config import DecodeSettings, Settings
from lora_dist.config_io import from_json, read_config
from lora_dist.data.corpora import E2E
from lora_dist.errors import UserError
from lora_dist.evaluation.decoded import read_decoded, read_decoding
from lora_dist.evaluation.scoring import mteval_variant, score_run
from lora_dist.evaluation.stored import read_scores, read_sentence_scores
from lora_dist.files import read_json
from lora_dist.metrics.readers import Instances
from lora_dist.metrics.suite import METRICS
from lora_dist.report.published import SIZES
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import require_writable
from lora_dist.training.log_rows import DEV, read_log

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A scored run."""

    run: RunDir
    name: str
    """Name of its folder, with folders above it if another run's has the same name."""
    settings: Settings
    """Settings of its training and decoding."""
    config: dict[str, Any]
    """Object of config.json."""
    scores: dict[str, Any]
    """Object of scores.json."""
    decoding: dict[str, Any]
    """Object of decode/signature.json: settings, fingerprints and versions of the decoding."""
    instances: Instances
    """References, outputs and MRs."""
    sentences: list[dict[str, float]]
    """Scores of each output by the column names of the official script."""
    log: list[dict[str, Any]]
    """Objects of metrics.jsonl, one per logged step or dev evaluation."""

    @property
    def base(self) -> str:
        """Name of the base model, without folder or Hub account."""
        return Path(self.settings.model.name).name

    @property
    def corpus(self) -> str:
        """Name of the test set's corpus; that of runs made before there was a choice is E2E."""
        return str(self.decoding.get("corpus", E2E.name))

    @property
    def trained_here(self) -> bool:
        """Whether this package trained it; the training of an imported adapter is unknown."""
        return self.config["world"] is not None

    @property
    def seed(self) -> int | None:
        """Seed of its training; None if it was trained elsewhere."""
        return self.settings.train.seed if self.trained_here else None

    @property
    def worlds(self) -> list[dict[str, Any]]:
        """The processes that trained it, in order: several if it was resumed in another way."""
        return [*self.config.get("earlier_worlds", []), self.config["world"]] if self.trained_here else []

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

    @property
    def seconds_per_mr(self) -> float | None:
        """Seconds to decode a meaning representation; None if that file is missing or damaged."""
        try:
            timing = read_json(self.run.decode_timing, f"{self.run.root} has no timing")
            return float(timing["seconds"] / timing["sentences"])
        except (UserError, KeyError, TypeError, ZeroDivisionError):
            return None

    def logged_steps(self) -> list[dict[str, Any]]:
        """Return the rows of the log with the training loss."""
        return [row for row in self.log if "loss" in row]

    def dev_evaluations(self) -> list[dict[str, Any]]:
        """Return the rows of the log with the dev loss."""
        return [row for row in self.log if "dev_loss" in row]

    def dev_scores(self) -> list[dict[str, Any]]:
        """Return the rows of the log with scores of the decoded dev set, one per epoch."""
        return [row for row in self.log if f"{DEV}BLEU" in row]

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
        if self.settings.model.name.removeprefix("openai-community/") not in SIZES:
            found.append(f"the base model is {self.base}, not GPT-2")
        if self.settings.train.max_steps is not None or self.settings.data.limit_train is not None:
            found.append("trained for fewer steps or on fewer examples than the paper's five epochs")
        if self.corpus != E2E.name:
            found.append(f"the test set is {self.corpus}, not E2E's, so published scores are left out")
        elif not self.decoding.get("official_test_set"):
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
        UserError: if a folder is not a run, a run has not been decoded, or one that has no scores cannot be written to.
    """
    names = unique_names([run.root for run in runs])
    return [_load_result(run, name) for run, name in zip(runs, names, strict=True)]


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as many of its last parts as tell it from the others."""
    paths = [folder.resolve() for folder in folders]

    def name(path: Path, length: int) -> str:
        return str(Path(*path.parts[-length:]))

    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        lengths = range(1, len(path.parts))
        length = next((n for n in lengths if name(path, n) not in [name(other, n) for other in others]), 0)
        names.append(name(path, length))
    return names


def _load_result(run: RunDir, name: str) -> Result:
    config = read_config(run)
    decoding = read_decoding(run)
    instances, hashes = read_decoded(run)
    scores, sentences = read_scores(run), read_sentence_scores(run, instances)
    if scores is None or sentences is None or scores["signature"].get("outputs") != hashes["outputs"]:
        for folder in (run.root, run.outputs.parent):
            require_writable(folder, f"{run.root} has to be scored, but")
        log.info("scoring %s", run.root)
        scores = score_run(run, "perl" if scores is None else mteval_variant(scores))
        sentences = read_sentence_scores(run, instances)
        assert sentences is not None
    training = from_json(Settings, config["settings"])
    settings = replace(training, decode=from_json(DecodeSettings, decoding["decode"]))
    return Result(run, name, settings, config, scores, decoding, instances, sentences, read_log(run.metrics))
