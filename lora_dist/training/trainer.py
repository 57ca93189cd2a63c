"""The training loop: from the corpus and a frozen GPT-2 to `RUN/adapter`, with checkpoints on the way."""

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from lora_dist.config import DataSettings, Precision, Settings
from lora_dist.config_io import WITHOUT_EFFECT, as_options
from lora_dist.data.collate import TokenizedExamples
from lora_dist.data.e2e import fingerprint, load_split
from lora_dist.data.token_cache import tokenize_cached
from lora_dist.distributed.consistency import require_agreement, require_shared
from lora_dist.distributed.signals import Interrupted, heed_signals
from lora_dist.distributed.world import World, barrier, first_on_node, on_main, stop_asked
from lora_dist.files import new_folder
from lora_dist.model.base import (
    DTYPES,
    BaseIdentity,
    identify,
    inject,
    load_base,
    load_tokenizer,
    save_adapter,
    trainable_count,
)
from lora_dist.run_dir import RunDir, versions, write_config
from lora_dist.training import checkpoint
from lora_dist.training.metrics_log import TrainingLog
from lora_dist.training.profiler import profile_updates
from lora_dist.training.step import dev_losses, make_update, replicate


@dataclass(frozen=True)
class TokenizedData:
    """The two splits that training reads."""

    train: TokenizedExamples
    dev: TokenizedExamples
    fingerprints: dict[str, str]
    """SHA-256 of each split's text."""


def train(settings: Settings, run: RunDir, world: World, *, overwrite: bool = False) -> None:
    """Train from the newest complete checkpoint, or from the start, and write config.json and the adapter.

    Raises:
        UserError: for settings, data or a model that cannot be trained.
        FloatingPointError: on every rank, when the loss is no longer finite.
        Interrupted: on every rank, after a checkpoint, when a signal asked one of them to end.
    """
    recipe = settings.train
    recipe.micro_batch_size(world.size)  # refuses before anything is loaded
    seed_everything(recipe.seed, recipe.deterministic)
    gpt2, tokenizer = first_on_node(world, lambda: load_model(settings, world.precision))
    data = first_on_node(world, lambda: load_data(settings.data, tokenizer, gpt2.config.n_positions))
    base, count = identify(gpt2, tokenizer, settings.model.name), trainable_count(gpt2)
    total, updates_per_epoch = recipe.total_updates(len(data.train)), recipe.updates_per_epoch(len(data.train))
    identity = _identity(settings, base, data)
    _require_agreement(settings, base, data, world)
    require_shared(world, run.root)
    on_main(world, lambda: run.prepare(overwrite=overwrite))
    saved = checkpoint.load_newest(run, identity)
    done = 0 if saved is None else saved.updates
    if world.is_main:
        print(
            f"{count:,} trainable numbers, {len(data.train):,} examples, {total:,} updates of "
            f"{recipe.global_batch_size} examples on {world.size} x {world.device.type} ({world.strategy}, "
            f"{world.precision})" + (f", going on after update {done:,}" if done else ""),
            flush=True,
        )
        write_config(run, settings, world.describe(), data.fingerprints, {"trainable": count, "updates": total})
    pad_id = tokenizer.eos_token_id
    replica = replicate(gpt2, recipe, saved, pad_id, world)
    log = TrainingLog(run, world, identity, done, total)
    with heed_signals() as request, profile_updates(run, world, recipe.profile) as end_of_update:

        def save(step: int) -> None:
            checkpoint.save(run, replica, world, step, identity, settings.lora, base, recipe.keep_checkpoints)

        def log_loss(step: int) -> None:
            log.write(step, step / updates_per_epoch, recipe.learning_rate_at(step - 1, total))

        def end_if_asked(step: int) -> None:
            if (name := stop_asked(world, request)) is not None:
                if log.pending:
                    log_loss(step)
                save(step)
                raise Interrupted(f"{name} ended the training after update {step} of {total}: go on with --resume")

        def evaluate(step: int) -> None:
            if step and (step % updates_per_epoch == 0 or step == total) and step not in log.evaluated:
                sums = dev_losses(replica, data.dev, pad_id, world, lambda: end_if_asked(step))
                log.write_dev(step, step / updates_per_epoch, *sums)

        evaluate(done)  # what an end in the middle of it left to do
        for update in range(done, total):
            step = update + 1
            world.watchdog.note(f"update {step} of {total}")
            log.add(make_update(replica, data.train, recipe, update, total, pad_id, world))
            end_of_update()
            save_now = step % recipe.checkpoint_steps == 0 or step == total
            if step % recipe.log_steps == 0 or step % updates_per_epoch == 0 or save_now:
                log_loss(step)
            if save_now:
                save(step)
            end_if_asked(step)
            evaluate(step)
    log.close()
    adapter = replica.adapter()
    if world.is_main:
        with new_folder(run.adapter) as folder:
            save_adapter(folder, adapter, settings.lora, base)
    barrier(world)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; with `deterministic` let CUDA use kernels that repeat to the bit.

    An operation that has none warns, rather than end a run that was fine until then.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS splits sums differently without it
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward adds up in any order
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Torch would fill each fresh tensor with NaN then, a pass over all of them; nothing here reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def load_model(settings: Settings, precision: Precision) -> tuple[GPT2LMHeadModel, Any]:
    """The frozen GPT-2 with its untrained adapter, and the tokenizer."""
    tokenizer = load_tokenizer(settings.model)
    gpt2 = load_base(settings.model, tokenizer, DTYPES[precision])
    inject(gpt2, settings.lora, settings.train.seed)
    return gpt2, tokenizer


def load_data(settings: DataSettings, tokenizer: Any, max_length: int) -> TokenizedData:
    """Training and dev set as tokens."""
    train_split, dev_split = load_split(settings, "train"), load_split(settings, "dev")
    return TokenizedData(
        train=tokenize_cached(tokenizer, train_split, max_length),
        dev=tokenize_cached(tokenizer, dev_split, max_length),
        fingerprints={"train": fingerprint(train_split), "dev": fingerprint(dev_split)},
    )


def _identity(settings: Settings, base: BaseIdentity, data: TokenizedData) -> dict[str, Any]:
    """What decides the trained numbers; a resumed run must agree in it."""
    options = as_options(settings, "model", "lora", "train")
    return {
        "base model": base.fingerprint,
        "training data": data.fingerprints["train"],
        **{option: value for option, value in options.items() if option not in WITHOUT_EFFECT},
    }


def _require_agreement(settings: Settings, base: BaseIdentity, data: TokenizedData, world: World) -> None:
    """Refuse machines that would not train the same: each has a command line and files of its own."""
    fingerprints = {f"the {split} split's fingerprint": text for split, text in data.fingerprints.items()}
    found = {"the base model's fingerprint": base.fingerprint, "the precision": world.precision, **fingerprints}
    require_agreement(world, {**as_options(settings, "model", "lora", "data", "train"), **found, **versions()})
