"""The training loop: from the corpus and a frozen GPT-2 to `RUN/adapter` of one run or of several, with checkpoints.

Runs that differ in their adapters only are trained together: a step computes a batch of each of them in one forward and
backward pass of the base model. One run is the case of one adapter.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

from transformers import GPT2LMHeadModel

from lora_dist.config import Precision, Settings
from lora_dist.data.collate import padding_batch, stack
from lora_dist.data.contents import training_shapes
from lora_dist.data.shapes import StaticShapes
from lora_dist.data.token_cache import load_corpus
from lora_dist.distributed.collectives import StopPoll, first_on_node
from lora_dist.distributed.signals import graceful_shutdown
from lora_dist.distributed.world import World
from lora_dist.errors import Interrupted
from lora_dist.model import lora
from lora_dist.model.base import DTYPES, identify, load_base, load_tokenizer
from lora_dist.model.kernels.select import kernels_for
from lora_dist.run_dir import RunDir
from lora_dist.training.captured import why_eager
from lora_dist.training.checkpoint import Checkpoint
from lora_dist.training.determinism import default_kernels, reproducible
from lora_dist.training.epochs import DevScorer
from lora_dist.training.profiler import profile_steps
from lora_dist.training.run import TrainedRun
from lora_dist.training.step import OptimizerStep, dev_losses, why_no_peak
from lora_dist.training.wrap import wrap

log = logging.getLogger(__name__)

Runs = Sequence[tuple[Settings, RunDir]]
"""Settings and folder of each run."""


class Trainer:
    """One training of one or several runs, from their checkpoints if there are any; to be used within `reproducible`.

    Several runs start from the newest step that all of them have reached, and each then repeats the bits that it has
    beyond it.
    """

    def __init__(self, runs: Runs, world: World, *, overwrite: bool = False, scorer: DevScorer | None = None) -> None:
        """Load what the training needs, write config.json and wrap the model. Collective: call on all ranks.

        Args:
            runs: the runs. Several differ only in the values, scaling and dropout of their adapters, and in seed,
                learning rate, warm-up, weight decay and label smoothing.
            world: the ranks; one for several runs.
            overwrite: whether to delete the runs that are in the directories.
            scorer: scores the dev set after each epoch; needed if the settings ask for that.

        Raises:
            UserError: on every rank, for settings, data or a model that cannot be trained.
        """
        self.settings, self.run_dir = runs[0]
        self.world, cfg = world, self.settings.train
        cfg.micro_batch_size(world.size)  # raises before anything is loaded
        kernels_for(world.device).set_up_process()
        gpt2, tokenizer = first_on_node(world, lambda: load_model(self.settings, world.precision))
        self.data = first_on_node(world, lambda: load_corpus(self.settings.data, tokenizer, gpt2.config.n_positions))
        self.base = identify(gpt2, tokenizer, self.settings.model.name)
        self.pad_id: int = tokenizer.eos_token_id
        self.total_steps = cfg.total_steps(len(self.data.train))
        self.steps_per_epoch = cfg.steps_per_epoch(len(self.data.train))
        self.runs = [
            TrainedRun(settings, folder, self.base, self.data, world, overwrite=overwrite, scorer=scorer)
            for settings, folder in runs
        ]
        saved = self._newest()
        self.done = 0 if saved[0] is None else saved[0].steps
        trainable = lora.trainable_count(gpt2)
        self._announce(trainable)
        for number, run in enumerate(self.runs):
            run.begin(saved[number], trainable, among=len(runs), shows_bar=number == 0)
        self.shapes = training_shapes(
            self.data.train,
            cfg,
            world.size,
            kernels_for(world.device).SHAPE_STEP,
            kernels_for(world.device).STATIC_SHAPES,
            [settings.train for settings, _ in runs[1:]],
        )
        self.module, self.strategy = wrap(gpt2, self.runs, saved, self.data.train, self.pad_id, world)
        self._capture()
        cfgs = [settings.train for settings, _ in runs]
        self.step = OptimizerStep(self.strategy, self.data.train, cfgs, self.shapes, self.pad_id, world)

    @property
    def active(self) -> Iterator[tuple[int, TrainedRun]]:
        """The runs whose loss is finite, with their numbers.

        The rows of another stay in the batch, as no result of a run depends on those of others.
        """
        return ((number, run) for number, run in enumerate(self.runs) if run.failure is None)

    def run(self) -> None:
        """Make the remaining steps and write the adapters. Collective: call on all ranks.

        Raises:
            FloatingPointError: on every rank, when the loss of no run is finite any longer.
            Interrupted: on every rank, after a checkpoint, when one of them received a signal.
        """
        cfg, watchdog = self.settings.train, self.world.watchdog
        with ExitStack() as resources:
            request = resources.enter_context(graceful_shutdown())
            end_of_step = resources.enter_context(profile_steps(self.run_dir, self.world, enabled=cfg.profile))
            resources.enter_context(closing(self.module))
            for run in self.runs:
                resources.enter_context(run.log)
            poll = StopPoll(self.world, request)
            self.evaluate(self.done, poll)  # in case a signal interrupted this evaluation
            for number in range(self.done, self.total_steps):
                steps = number + 1
                watchdog.progress(f"step {steps} of {self.total_steps}")
                for run, result in zip(self.runs, self.step(number), strict=True):
                    if run.failure is None:
                        run.log.add(result)
                end_of_step()
                save_now = steps % cfg.checkpoint_steps == 0 or steps == self.total_steps
                if steps % cfg.log_steps == 0 or steps % self.steps_per_epoch == 0 or save_now:
                    self._log_losses(steps)
                if save_now:
                    self.save(steps)
                self._end_if_asked(steps, poll)
                self.evaluate(steps, poll)
        for number, run in self.active:
            run.finish(self.strategy, number)

    def evaluate(self, steps: int, poll: StopPoll) -> None:
        """Log the dev evaluation if an epoch or the training ends after `steps` steps. Collective: call on all ranks.

        Raises:
            Interrupted: on every rank, after a checkpoint, when one of them received a signal.
        """
        if not steps or (steps % self.steps_per_epoch and steps != self.total_steps):
            return
        for number, run in self.active:
            if steps in run.log.evaluated:
                continue
            losses = dev_losses(
                self.strategy, self.data.dev, self.pad_id, self.world, lambda: self._end_if_asked(steps, poll), number
            )
            scores = self._score_epoch(run, number, steps, poll)
            run.log.write_dev(steps, steps / self.steps_per_epoch, losses, scores)
            self._end_if_asked(steps, poll)  # scoring takes seconds, and no step may follow

    def _score_epoch(self, run: TrainedRun, number: int, steps: int, poll: StopPoll) -> dict[str, float]:
        """Keep the adapter of the epoch that ends after `steps` steps and score the dev set, if the settings say so."""
        if run.score_dev is None:
            return {}
        run.write_adapter(folder := run.epoch_folder(steps), self.strategy, number)
        with default_kernels():
            return run.score_dev(folder, lambda: poll.asked, lambda: self._end_if_asked(steps, poll, wait=True))

    def save(self, steps: int) -> None:
        """Write the checkpoints after `steps` steps. Collective: call on all ranks."""
        for number, run in self.active:
            run.checkpoints.save(steps, self.strategy, self.world, number)
        for _, run in self.active:
            run.checkpoints.delete_old(self.world)

    def _log_losses(self, steps: int) -> None:
        """Log the loss of each run; one whose loss is not finite ends, and the others continue."""
        for _, run in self.active:
            try:
                run.log_loss(steps)
            except FloatingPointError as error:
                run.failure = error
                if not any(self.active):
                    raise
                log.error("%s ends: %s", run.folder.root, error)

    def _end_if_asked(self, steps: int, poll: StopPoll, *, wait: bool = False) -> None:
        if (name := poll(wait=wait or steps == self.total_steps)) is not None:
            if any(run.log.pending for _, run in self.active):
                self._log_losses(steps)
            self.save(steps)
            raise Interrupted(f"{name} ended the training after step {steps} of {self.total_steps}: add --resume")

    def _newest(self) -> list[Checkpoint | None]:
        """Load the checkpoints after the most steps that all runs have reached; None for each if one has none."""
        newest = [run.checkpoints.newest() for run in self.runs]
        start = min(0 if saved is None else saved.steps for saved in newest)
        found = [
            saved if saved is None or saved.steps == start else run.checkpoints.newest(start)
            for saved, run in zip(newest, self.runs, strict=True)
        ]
        assert {0 if saved is None else saved.steps for saved in found} == {start}, "the runs have no common step"
        return found

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
        padding = [padding_batch(self.data.train, self.pad_id, shape) for shape in reversed(self.shapes.shapes)]
        largest_first = [stack([batch] * len(self.runs)) for batch in padding]
        self.module.capture(largest_first, recorder, show_progress=here.shows_progress)

    def _announce(self, trainable: int) -> None:
        """Log what will be trained, on rank 0."""
        here, cfg = self.world, self.settings.train
        if here.is_main and (note := why_no_peak(cfg, self.total_steps)) is not None:
            log.warning(note)
        if here.is_main:
            together = f"{len(self.runs)} runs together, each with " if len(self.runs) > 1 else ""
            log.info(
                f"{together}{trainable:,} trainable parameters, {len(self.data.train):,} examples, "
                f"{self.total_steps:,} steps of {cfg.global_batch_size} examples on {here.size} x "
                f"{here.describe()['device']} ({here.strategy}, {here.precision})"
                + (f", resuming after step {self.done:,}" if self.done else "")
            )


def train(runs: Runs, world: World, *, overwrite: bool = False, scorer: DevScorer | None = None) -> None:
    """Train as `Trainer` and `Trainer.run` do, with the settings' seed and kernels. Collective: call on all ranks."""
    cfg = runs[0][0].train
    with reproducible(cfg.seed, deterministic=cfg.deterministic):
        Trainer(runs, world, overwrite=overwrite, scorer=scorer).run()


def load_model(settings: Settings, precision: Precision) -> tuple[GPT2LMHeadModel, Any]:
    """Load the frozen GPT-2 with an untrained adapter, and the tokenizer."""
    tokenizer = load_tokenizer(settings.model)
    gpt2 = load_base(settings.model, tokenizer, DTYPES[precision])
    lora.inject(gpt2, settings.lora, settings.train.seed)
    return gpt2, tokenizer
