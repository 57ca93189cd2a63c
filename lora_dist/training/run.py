"""What a run has for itself while it trains, alone or together with others: settings, folder, log and checkpoints."""

import logging
import math
from pathlib import Path
from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import read_config, write_config
from lora_dist.data.token_cache import TokenizedCorpus
from lora_dist.distributed.collectives import barrier, on_main
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.world import World
from lora_dist.files import new_folder
from lora_dist.model.adapter import save_adapter
from lora_dist.model.base import BaseIdentity
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import prepare_output
from lora_dist.training.checkpoint import Checkpoint, Checkpoints
from lora_dist.training.epochs import DevScorer, select_epoch
from lora_dist.training.identity import identity, must_agree
from lora_dist.training.metrics_log import MetricsLog
from lora_dist.training.strategy import TrainingStrategy

log = logging.getLogger(__name__)


class TrainedRun:
    """One of the runs that train together."""

    def __init__(
        self,
        settings: Settings,
        folder: RunDir,
        base: BaseIdentity,
        data: TokenizedCorpus,
        world: World,
        *,
        overwrite: bool,
        scorer: DevScorer | None,
    ) -> None:
        """Check settings and folder, and create the folder. Collective: call on all ranks.

        Args:
            settings: settings of the run.
            folder: the run directory.
            base: the base model.
            data: the corpus.
            world: the ranks.
            overwrite: whether to delete the run that is in the directory.
            scorer: scores the dev set after each epoch; needed if the settings ask for that.

        Raises:
            UserError: on every rank, for settings or files that differ between ranks, or a run with other settings.
        """
        self.settings, self.folder = settings, folder
        self._base, self._data, self._world = base, data, world
        cfg = settings.train
        require_agreement(world, must_agree(settings, base, data, world))
        assert scorer is not None or cfg.score_dev == "off", "dev scores need a scorer"
        self.score_dev = None if scorer is None or cfg.score_dev == "off" else scorer(settings, world)
        require_shared(world, folder.root)
        on_main(world, lambda: prepare_output(folder, overwrite=overwrite))
        self._identity = identity(settings, base, data)
        self.checkpoints = Checkpoints(folder, self._identity, settings.lora, base, cfg.keep_checkpoints)
        self.total_steps = cfg.total_steps(len(data.train))
        self.steps_per_epoch = cfg.steps_per_epoch(len(data.train))
        self.failure: FloatingPointError | None = None
        """Why the run has ended before its last step."""

    def begin(self, saved: Checkpoint | None, trainable: int, *, among: int, shows_bar: bool) -> None:
        """Write config.json and set up the log.

        Args:
            saved: the checkpoint that the run resumes from.
            trainable: trainable parameters.
            among: number of runs that train together.
            shows_bar: whether the progress bar shows this run.
        """
        self.done = 0 if saved is None else saved.steps
        if self._world.is_main:
            self._write_config(trainable)
        self.log = MetricsLog(
            self.folder,
            self._world,
            self._identity,
            self.done,
            self.total_steps,
            scored=self.score_dev is not None,
            shows_bar=shows_bar,
            name="" if among == 1 else f"{self.folder.root.name}: ",
        )

    def _write_config(self, trainable: int) -> None:
        here, earlier = self._world, self._earlier_worlds()
        if earlier and earlier[-1]["precision"] != here.precision:
            log.warning("resuming in %s what was trained in %s", here.precision, earlier[-1]["precision"])
        write_config(
            self.folder,
            self.settings,
            here.describe(),
            self._data.fingerprints,
            {"trainable": trainable, "steps": self.total_steps},
            earlier_worlds=earlier,
            launch=here.launch.agents,
        )

    def _earlier_worlds(self) -> list[dict[str, Any]]:
        """List the worlds in which the steps so far were made, in order; none at the start of a training."""
        if not self.done:
            return []
        config = read_config(self.folder)
        earlier = [world for world in config.get("earlier_worlds", []) if world["until_step"] < self.done]
        return [*earlier, {**config["world"], "until_step": self.done}]

    def log_loss(self, steps: int) -> None:
        """Log the mean loss since the last line, after `steps` steps. Collective: call on all ranks.

        Raises:
            FloatingPointError: on every rank, if it is not finite.
        """
        rate = self.settings.train.learning_rate_at(steps - 1, self.total_steps)
        self.log.write(steps, steps / self.steps_per_epoch, rate)

    def write_adapter(self, path: Path, strategy: TrainingStrategy, number: int) -> None:
        """Write adapter `number` of the strategy, this run's, to a folder. Collective: call on all ranks."""
        adapter = strategy.adapter(number)
        if self._world.is_main:
            with new_folder(path) as folder:
                save_adapter(folder, adapter, self.settings.lora, self._base)
        barrier(self._world)

    def epoch_folder(self, steps: int) -> Path:
        """Return the folder of the adapter of the epoch that ends after `steps` steps."""
        return self.folder.epoch(math.ceil(steps / self.steps_per_epoch))

    def finish(self, strategy: TrainingStrategy, number: int) -> None:
        """Write the adapter of the run after its last step. Collective: call on all ranks."""
        select = self.settings.train.select
        if select == "last":
            self.write_adapter(self.folder.adapter, strategy, number)
        if self.score_dev is not None:
            on_main(self._world, lambda: select_epoch(self.folder, select))
