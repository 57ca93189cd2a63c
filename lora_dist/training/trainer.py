"""The training loop: from the corpus and a frozen GPT-2 to `RUN/adapter`, with checkpoints."""

import logging
import math
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from lora_dist.config import Precision, Settings
from lora_dist.config_io import read_config, write_config
from lora_dist.data.collate import padding_batch
from lora_dist.data.contents import training_shapes
from lora_dist.data.shapes import SMALLEST, StaticShapes
from lora_dist.data.token_cache import load_corpus
from lora_dist.distributed.collectives import StopPoll, barrier, first_on_node, on_main
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.signals import graceful_shutdown
from lora_dist.distributed.world import World
from lora_dist.errors import Interrupted
from lora_dist.files import new_folder
from lora_dist.model import lora
from lora_dist.model.adapter import save_adapter
from lora_dist.model.base import DTYPES, identify, load_base, load_tokenizer
from lora_dist.model.kernels.select import kernels_for
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import prepare_output
from lora_dist.training.captured import CapturedLoss, why_eager
from lora_dist.training.checkpoint import Checkpoint, Checkpoints
from lora_dist.training.determinism import default_kernels, reproducible
from lora_dist.training.epochs import DevScorer, select_epoch
from lora_dist.training.identity import identity, must_agree
from lora_dist.training.loss import ReferenceLoss
from lora_dist.training.metrics_log import MetricsLog
from lora_dist.training.profiler import profile_steps
from lora_dist.training.step import OptimizerStep, dev_losses
from lora_dist.training.strategy import TrainingStrategy

log = logging.getLogger(__name__)


class Trainer:
    """One training, from its newest complete checkpoint if there is one; to be made and run within `reproducible`."""

    def __init__(
        self, settings: Settings, run: RunDir, world: World, *, overwrite: bool = False, scorer: DevScorer | None = None
    ) -> None:
        """Load what the training needs, write config.json and wrap the model. Collective: call on all ranks.

        Args:
            settings: settings of the run.
            run: the run directory.
            world: the ranks.
            overwrite: whether to delete the run that is in the directory.
            scorer: scores the dev set after each epoch; needed if the settings ask for that.

        Raises:
            UserError: on every rank, for settings, data or a model that cannot be trained.
        """
        self.settings, self.run_dir, self.world = settings, run, world
        cfg = settings.train
        cfg.micro_batch_size(world.size)  # raises before anything is loaded
        kernels_for(world.device).set_up_process()
        gpt2, tokenizer = first_on_node(world, lambda: load_model(settings, world.precision))
        self.data = first_on_node(world, lambda: load_corpus(settings.data, tokenizer, gpt2.config.n_positions))
        self.base = identify(gpt2, tokenizer, settings.model.name)
        self.pad_id: int = tokenizer.eos_token_id
        self.total_steps = cfg.total_steps(len(self.data.train))
        self.steps_per_epoch = cfg.steps_per_epoch(len(self.data.train))
        require_agreement(world, must_agree(settings, self.base, self.data, world))
        assert scorer is not None or cfg.score_dev == "off", "dev scores need a scorer"
        self.score_dev = None if scorer is None or cfg.score_dev == "off" else scorer(settings, world)
        require_shared(world, run.root)
        on_main(world, lambda: prepare_output(run, overwrite=overwrite))
        fixed = identity(settings, self.base, self.data)
        self.checkpoints = Checkpoints(run, fixed, settings.lora, self.base, cfg.keep_checkpoints)
        saved = self.checkpoints.newest()
        self.done = 0 if saved is None else saved.steps
        self._announce(lora.trainable_count(gpt2))
        kernels = kernels_for(world.device)
        self.shapes = training_shapes(self.data.train, cfg, world.size, kernels.SHAPE_STEP, kernels.STATIC_SHAPES)
        self.module, self.strategy = self._wrap(gpt2, saved)
        self._capture()
        self.step = OptimizerStep(self.strategy, self.data.train, cfg, self.shapes, self.pad_id, world)
        self.log = MetricsLog(run, world, fixed, self.done, self.total_steps, scored=self.score_dev is not None)

    def run(self) -> None:
        """Make the remaining steps and write the adapter. Collective: call on all ranks.

        Raises:
            FloatingPointError: on every rank, when the loss is no longer finite.
            Interrupted: on every rank, after a checkpoint, when one of them received a signal.
        """
        cfg, watchdog = self.settings.train, self.world.watchdog
        with (
            graceful_shutdown() as request,
            profile_steps(self.run_dir, self.world, enabled=cfg.profile) as end_of_step,
            closing(self.module),
            self.log,
        ):
            poll = StopPoll(self.world, request)
            self.evaluate(self.done, poll)  # in case a signal interrupted this evaluation
            for number in range(self.done, self.total_steps):
                steps = number + 1
                watchdog.progress(f"step {steps} of {self.total_steps}")
                self.log.add(self.step(number))
                end_of_step()
                save_now = steps % cfg.checkpoint_steps == 0 or steps == self.total_steps
                if steps % cfg.log_steps == 0 or steps % self.steps_per_epoch == 0 or save_now:
                    self._log_loss(steps)
                if save_now:
                    self.save(steps)
                self._end_if_asked(steps, poll)
                self.evaluate(steps, poll)
        if cfg.select == "last":
            self._write_adapter(self.run_dir.adapter)
        if self.score_dev is not None:
            on_main(self.world, lambda: select_epoch(self.run_dir, cfg.select))

    def evaluate(self, steps: int, poll: StopPoll) -> None:
        """Log the dev evaluation if an epoch or the training ends after `steps` steps. Collective: call on all ranks.

        Raises:
            Interrupted: on every rank, after a checkpoint, when one of them received a signal.
        """
        ends = steps and (steps % self.steps_per_epoch == 0 or steps == self.total_steps)
        if ends and steps not in self.log.evaluated:
            losses = dev_losses(
                self.strategy, self.data.dev, self.pad_id, self.world, lambda: self._end_if_asked(steps, poll)
            )
            self.log.write_dev(steps, steps / self.steps_per_epoch, losses, self._score_epoch(steps, poll))
            self._end_if_asked(steps, poll)  # scoring takes seconds, and no step may follow

    def _score_epoch(self, steps: int, poll: StopPoll) -> dict[str, float]:
        """Keep the adapter of the epoch that ends after `steps` steps and score the dev set, if the settings say so."""
        if self.score_dev is None:
            return {}
        self._write_adapter(folder := self.run_dir.epoch(math.ceil(steps / self.steps_per_epoch)))
        with default_kernels():
            return self.score_dev(folder, lambda: poll.asked, lambda: self._end_if_asked(steps, poll, wait=True))

    def save(self, steps: int) -> None:
        """Write the checkpoint after `steps` steps. Collective: call on all ranks."""
        self.checkpoints.save(steps, self.strategy, self.world)

    def _log_loss(self, steps: int) -> None:
        rate = self.settings.train.learning_rate_at(steps - 1, self.total_steps)
        self.log.write(steps, steps / self.steps_per_epoch, rate)

    def _end_if_asked(self, steps: int, poll: StopPoll, *, wait: bool = False) -> None:
        if (name := poll(wait=wait or steps == self.total_steps)) is not None:
            if self.log.pending:
                self._log_loss(steps)
            self.save(steps)
            raise Interrupted(f"{name} ended the training after step {steps} of {self.total_steps}: add --resume")

    def _write_adapter(self, path: Path) -> None:
        adapter = self.strategy.adapter()
        if self.world.is_main:
            with new_folder(path) as folder:
                save_adapter(folder, adapter, self.settings.lora, self.base)
        barrier(self.world)

    def _capture(self) -> None:
        """Capture the forward and backward pass if the device has CUDA graphs and the settings allow it."""
        here = self.world
        recorder = kernels_for(here.device).graph_recorder(here.device)
        if recorder is None:
            return
        if (reason := why_eager(self.settings.train, here.zero_stage, offload=here.offload)) is not None:
            log.info("steps run eagerly, without CUDA graphs: %s", reason)
            return
        assert isinstance(self.shapes, StaticShapes)
        largest_first = [padding_batch(self.data.train, self.pad_id, s) for s in reversed(self.shapes.shapes)]
        self.module.capture(largest_first, recorder, show_progress=here.is_main)

    def _wrap(self, gpt2: GPT2LMHeadModel, saved: Checkpoint | None) -> tuple[CapturedLoss, TrainingStrategy]:
        """Wrap loss and AdamW for the strategy, in their initial state or that of the checkpoint `saved`."""
        cfg, world = self.settings.train, self.world
        if saved is not None:
            lora.load(gpt2, saved.adapter)
        partitioned = world.zero_stage == 3
        loss = ReferenceLoss(
            gpt2 if partitioned else gpt2.to(world.device),
            kernels_for(world.device),
            cfg.label_smoothing,
            gradient_checkpointing=cfg.gradient_checkpointing,
            partitioned=partitioned,
        )
        strategy = TrainingStrategy(
            world,
            module := CapturedLoss(loss),
            loss.adapter,
            weight_decay=cfg.weight_decay,
            lora_plus_ratio=cfg.lora_plus_ratio,
            micro_batch_size=cfg.micro_batch_size(world.size),
            max_grad_norm=cfg.max_grad_norm,
        )
        if saved is not None:
            strategy.load_moments(saved.moments, saved.steps, padding_batch(self.data.train, self.pad_id, SMALLEST))
        return module, strategy

    def _earlier_worlds(self) -> list[dict[str, Any]]:
        """List the worlds in which the steps so far were made, in order; none at the start of a training."""
        if not self.done:
            return []
        config = read_config(self.run_dir)
        earlier = [world for world in config.get("earlier_worlds", []) if world["until_step"] < self.done]
        return [*earlier, {**config["world"], "until_step": self.done}]

    def _announce(self, trainable: int) -> None:
        """Log what will be trained, and write config.json, on rank 0."""
        here, cfg = self.world, self.settings.train
        if here.is_main:
            earlier = self._earlier_worlds()
            if earlier and earlier[-1]["precision"] != here.precision:
                log.warning("resuming in %s what was trained in %s", here.precision, earlier[-1]["precision"])
            log.info(
                f"{trainable:,} trainable parameters, {len(self.data.train):,} examples, {self.total_steps:,} steps of "
                f"{cfg.global_batch_size} examples on {here.size} x {here.describe()['device']} ({here.strategy}, "
                f"{here.precision})" + (f", resuming after step {self.done:,}" if self.done else "")
            )
            counts = {"trainable": trainable, "steps": self.total_steps}
            write_config(
                self.run_dir,
                self.settings,
                here.describe(),
                self.data.fingerprints,
                counts,
                earlier_worlds=earlier,
                launch=here.launch.agents,
            )


def train(
    settings: Settings, run: RunDir, world: World, *, overwrite: bool = False, scorer: DevScorer | None = None
) -> None:
    """Train as `Trainer` and `Trainer.run` do, with the settings' seed and kernels. Collective: call on all ranks."""
    with reproducible(settings.train.seed, deterministic=settings.train.deterministic):
        Trainer(settings, run, world, overwrite=overwrite, scorer=scorer).run()


def load_model(settings: Settings, precision: Precision) -> tuple[GPT2LMHeadModel, Any]:
    """Load the frozen GPT-2 with an untrained adapter, and the tokenizer."""
    tokenizer = load_tokenizer(settings.model)
    gpt2 = load_base(settings.model, tokenizer, DTYPES[precision])
    lora.inject(gpt2, settings.lora, settings.train.seed)
    return gpt2, tokenizer
