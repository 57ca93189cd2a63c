"""The programs that `bench train` measures: ours, PEFT with transformers' Trainer, and loralib's layers in a loop.

All start from one checkpoint and one adapter, and make the same updates twice: once to warm up, as products of a shape
that is new take longer, then timed. What the peers can choose is chosen for speed: no cache of keys and values, the
faster attention of transformers' two, no gradient norm where the recipe clips none, batches collated in the process.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from lora_dist.bench.machine import bench_device, now
from lora_dist.config import Precision, Settings
from lora_dist.data.collate import TokenizedExamples
from lora_dist.data.sampler import Indices, global_batch
from lora_dist.distributed.launcher import MIXED_PRECISION
from lora_dist.distributed.world import world
from lora_dist.model.base import DTYPES, load_adapter_state
from lora_dist.model.lora import PEFT_PREFIX
from lora_dist.training.step import make_update, replicate, training_order
from lora_dist.training.trainer import load_model, seed_everything

Format = Literal["fp32", "autocast", "bf16"]
"""fp32 throughout, bf16 products of fp32 weights, or of frozen weights held in bf16 too."""

FIXED_LENGTH = 128
"""Tokens that the seed and the LoRA authors' kind of loop pad an example to."""

ENDLESS = 10**12
"""Updates of a training in which the learning rate stays what it is."""


@dataclass(frozen=True, eq=False)
class Job:
    """What every program does."""

    settings: Settings
    """The model's name is a folder. The learning rate does not change in a training of `ENDLESS` updates."""
    adapter: Path
    """The untrained adapter, in PEFT's layout."""
    examples: TokenizedExamples
    updates: range
    """The updates, by their number in the first epoch."""
    pad_id: int

    def batches(self) -> list[Indices]:
        """The examples of each update."""
        order = training_order(self.examples, self.settings.train, epoch=0)
        return [global_batch(order, number, self.settings.train.global_batch_size) for number in self.updates]


def ours(job: Job, precision: Precision) -> tuple[float, float]:
    """Seconds and mean loss of the updates in this package."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = MIXED_PRECISION[precision]
    recipe = job.settings.train
    with world(str(bench_device())) as here:
        seed_everything(recipe.seed, recipe.deterministic)
        gpt2, _ = load_model(job.settings, here.precision)
        replica = replicate(gpt2, recipe, None, job.pad_id, here)

        def update(k: int) -> Tensor:
            done = make_update(replica, job.examples, recipe, job.updates[k], ENDLESS, job.pad_id, here)
            return done.sums[0] / done.labels

        return _twice(update, len(job.updates))


def trainer(job: Job, numbers: Format, length: int | None, everywhere: bool) -> tuple[float, float]:
    """Seconds and mean loss of the updates in PEFT's layers and transformers' Trainer.

    Args:
        job: the updates.
        numbers: the number formats.
        length: tokens that each example is padded to at least; None is the longest of its batch.
        everywhere: whether the meaning representation is learned too.
    """
    from peft import PeftModel

    warnings.simplefilter("ignore")  # of transformers about names that the Trainer itself uses
    if bench_device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, which the Trainer imports, says that it found no GPU
    recipe, times = job.settings.train, list[float]()
    model = PeftModel.from_pretrained(_gpt2(job, numbers), job.adapter, is_trainable=True)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (len(job.updates), 2 * len(job.updates)):
                times.append(now())

    running = Trainer(
        model,
        TrainingArguments(
            output_dir=str(job.adapter / "trainer"),
            max_steps=2 * len(job.updates),
            per_device_train_batch_size=recipe.global_batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=recipe.weight_decay,
            label_smoothing_factor=recipe.label_smoothing,
            max_grad_norm=recipe.max_grad_norm or 0.0,
            seed=recipe.seed,
            bf16=numbers != "fp32",
            use_cpu=bench_device().type == "cpu",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            logging_steps=len(job.updates),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=lambda chosen: padded(job, np.array(chosen), length, everywhere),
        train_dataset=np.concatenate(job.batches() * 2).tolist(),
        callbacks=[Clock()],
    )
    running.remove_callback(PrinterCallback)
    running.train()
    losses = [line["loss"] for line in running.state.log_history if "loss" in line]
    return times[1] - times[0], float(losses[1])


def loralib(job: Job, numbers: Format) -> tuple[float, float]:
    """Seconds and mean loss of the updates in the LoRA authors' layers and a plain loop, padded to `FIXED_LENGTH`."""
    import loralib as authors

    lora, recipe = job.settings.lora, job.settings.train
    model = _gpt2(job, numbers)
    state = load_adapter_state(job.adapter)
    for path in dict.fromkeys(name.rpartition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in state):
        frozen = model.get_submodule(path)
        layer = authors.Linear(
            *frozen.weight.shape, lora.rank, lora.alpha, lora.dropout, fan_in_fan_out=True, merge_weights=False
        )
        layer.weight, layer.bias = frozen.weight, frozen.bias
        for matrix in ("lora_A", "lora_B"):
            getattr(layer, matrix).data.copy_(state[f"{PEFT_PREFIX}{path}.{matrix}.weight"])
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    authors.mark_only_lora_as_trainable(model)
    model.to(bench_device()).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    batches = job.batches()
    seed_everything(recipe.seed, deterministic=False)

    def update(k: int) -> Tensor:
        batch = {name: value.to(bench_device()) for name, value in padded(job, batches[k], FIXED_LENGTH, False).items()}
        labels = batch.pop("labels")[:, 1:].flatten()
        with torch.autocast(bench_device().type, torch.bfloat16, enabled=numbers != "fp32"):
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return _twice(update, len(batches))


def padded(job: Job, chosen: Indices, length: int | None, everywhere: bool) -> dict[str, Tensor]:
    """Examples `chosen` (n,) as transformers' models take them, padded on the right: each (n, length).

    Padding has no label; with `everywhere` all else has one, or else the reference and its end alone.
    """
    examples, lengths = job.examples, job.examples.lengths[chosen]
    width = max(int(lengths.max()), length or 0)
    ids = torch.full((len(chosen), width), job.pad_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (index, count) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True)):
        start, first = int(examples.starts[index]), 0 if everywhere else int(examples.prompt_lengths[index])
        ids[row, :count] = torch.from_numpy(examples.ids[start : start + count].astype(np.int64))
        labels[row, first:count] = ids[row, first:count]
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _gpt2(job: Job, numbers: Format) -> GPT2LMHeadModel:
    """The checkpoint in transformers' own layers, with the same dropout as ours."""
    transformers_logging.disable_progress_bar()
    dropout = job.settings.model.dropout
    own = {} if dropout is None else dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2LMHeadModel.from_pretrained(
        job.settings.model.name,
        dtype=DTYPES["bf16" if numbers == "bf16" else "fp32"],
        attn_implementation="eager" if bench_device().type == "cpu" else "sdpa",
        use_cache=False,
        **own,
    )


def _twice(update: Callable[[int], Tensor], count: int) -> tuple[float, float]:
    """Seconds of the second time that the `count` updates are made, and its mean loss."""
    for k in range(count):
        update(k)
    start = now()
    losses = [update(k) for k in range(count)]
    return now() - start, float(torch.stack(losses).mean())
