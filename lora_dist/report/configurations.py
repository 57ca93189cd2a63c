"""Configurations: runs that differ only in the seed, and the labels that tell them apart."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import WITHOUT_EFFECT, as_options, changed_options, nearest_preset, to_json
from lora_dist.metrics.suite import METRICS
from lora_dist.report.results import Result


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in the seed."""

    label: str
    """Base model, preset, and the settings that differ between the configurations of the report."""
    results: tuple[Result, ...]
    """One run per seed."""
    repeated: tuple[Result, ...] = ()
    """Runs that do not count, as another one has their seed."""

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
    """Group the runs that differ only in the seed; of runs with the same seed the first counts."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_configuration_key(result), []).append(result)
    options = [_score_options(group[0]) for group in groups.values()]
    differing = {name for one in options for name in one if any(one[name] != other[name] for other in options)}
    labels = []
    for group, group_options in zip(groups.values(), options, strict=True):
        details = [_option_label(name, group_options[name]) for name in sorted(differing)]
        labels.append(", ".join([group[0].base, preset_name(group[0].settings), *details]))
    found = []
    for label, group in zip(labels, groups.values(), strict=True):
        by_seed: dict[int | str, Result] = {}
        for result in group:
            by_seed.setdefault(result.seed if result.seed is not None else result.decoding["adapter"], result)
        counted = tuple(by_seed.values())
        # Configurations may differ in data, base model or scorer and have the same label: add the folder's name.
        name = label if labels.count(label) == 1 else f"{label} ({group[0].name})"
        found.append(Configuration(name, counted, tuple(result for result in group if result not in counted)))
    return found


def preset_name(settings: Settings) -> str:
    """Return the name of the nearest preset and the LoRA settings that differ from it."""
    changed = {name: value for name, value in changed_options(settings).items() if name.startswith("--lora.")}
    return ", ".join([nearest_preset(settings), *(_option_label(name, value) for name, value in changed.items())])


def _option_label(option: str, value: Any) -> str:
    """Format `--train.refs-per-mr` with value 8 as `refs-per-mr 8`, and `--lora.dora` as `dora` or `no-dora`."""
    name = option.split(".")[-1]
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _score_options(result: Result) -> dict[str, Any]:
    """Return the options and the worlds of the training that affect the scores, except base model, adapter and seed."""
    options = as_options(result.settings, "model", "data", "train", "decode")
    excluded = WITHOUT_EFFECT | {"--train.seed", "--data.limit-dev", "--decode.batch-tokens", "--decode.num-return"}
    worlds = result.worlds
    names = ("precision", "strategy", "processes")
    world_options = {name: list(dict.fromkeys(world[name] for world in worlds)) for name in names}
    return {**{name: value for name, value in options.items() if name not in excluded}, **world_options}


def _configuration_key(result: Result) -> str:
    """Return a key that is equal for runs that differ only in the seed."""
    scorer = {name: result.scores["signature"][name] for name in METRICS}
    data = {**result.config["data"], "test": result.decoding["test_data"], "base": result.decoding["base"]}
    return json.dumps([_score_options(result), to_json(result.settings.lora), data, scorer], sort_keys=True)
