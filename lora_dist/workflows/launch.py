"""A run that a workflow makes or finds complete, and what the workflows that make many runs have in common."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lora_dist.config import Settings
from lora_dist.config_io import (
    WITHOUT_EFFECT,
    as_options,
    changed_options,
    nearest_preset,
    read_settings,
    to_arguments,
    to_json,
)
from lora_dist.errors import UserError
from lora_dist.files import read_json
from lora_dist.report.write import check_report_folder, write_report
from lora_dist.run_dir import ADAPTER_WEIGHTS, RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """A run to make, or to decode again with other settings."""

    run: RunDir
    settings: Settings
    source: RunDir | None = None
    """The run whose adapter is decoded; None trains an adapter."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.run.root.name

    def arguments(self) -> list[str]:
        """Return the arguments after `-m lora_dist`."""
        options = changed_options(self.settings)
        if self.source is None:
            preset = nearest_preset(self.settings)
            return ["run", preset, *to_arguments(options), "--out", str(self.run.root), "--resume"]
        decoding = {name: value for name, value in options.items() if name.startswith("--decode.")}
        return ["decode", str(self.source.root), *to_arguments(decoding), "--out", str(self.run.root)]

    def is_complete(self) -> bool:
        """Return whether the run has the sentences of its adapter and settings, and, if it trains, its scores."""
        adapter = (self.source or self.run).adapter / ADAPTER_WEIGHTS
        if not all(p.is_file() for p in (adapter, self.run.config, self.run.decode_signature, self.run.outputs)):
            return False
        signature = read_json(self.run.decode_signature, "no signature")
        same_adapter = signature["adapter"] == hashlib.sha256(adapter.read_bytes()).hexdigest()
        scored = self.run.scores.is_file() or self.source is not None
        return scored and same_adapter and signature["decode"] == to_json(self.settings.decode)

    def check(self) -> None:
        """Refuse a folder with a run of other settings.

        Raises:
            UserError: with the first setting that differs.
        """
        if self.run.config.is_file():
            found = read_settings(self.run)
            own, others = (as_options(s, "model", "lora", "data", "train") for s in (self.settings, found))
            for name in own:
                if own[name] != others[name] and name not in WITHOUT_EFFECT:
                    raise UserError(
                        f"{self.run.root} was made with {name} {others[name]}, not {own[name]}: name another --out, or "
                        "delete that folder"
                    )


def check_folder_of_runs(out: RunDir) -> None:
    """Refuse a folder that is a run or model, or that has other files and was not begun by the same workflow.

    Raises:
        UserError: with the remedy.
    """
    if out.config.is_file():
        raise UserError(f"--out {out.root} is the folder of a run or model: name one that holds runs, or a new one")
    check_report_folder(out, begun=out.lock.is_file())


def report_launches(launches: Sequence[Launch], out: RunDir) -> int:
    """Write the report of all complete runs, print its main table, and name the runs that failed.

    Returns:
        0 if all runs are in the report, 1 if some failed.
    """
    complete = [each for each in launches if each.is_complete()]
    if complete:
        print(write_report([each.run for each in complete], out))
    if failed := [each.name for each in launches if each not in complete]:
        log.error("failed: %s; the same command tries again", ", ".join(failed))
    return 1 if failed else 0
