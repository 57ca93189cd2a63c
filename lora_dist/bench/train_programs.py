"""The programs that `bench train` measures: ours, PEFT with transformers' Trainer, and loralib's layers in a loop.

All start from one checkpoint and one adapter, and make the same steps twice: once as a warm-up, as products of a new
shape take longer, then timed. What the peers can choose is chosen for speed: no KV cache, the faster attention of
transformers' two, no gradient norm where nothing is clipped, batches collated in the process.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer
from transformers.utils import logging as transformers_logging

from lora_dist.bench.machine import bench_device, now
from lora_dist.config import Precision, Settings
from lora_dist.data.sampler import Indices, global_batch, training_order
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.launcher import MIXED_PRECISION
from lora_dist.distributed.world import world
from lora_dist.model.adapter import load_adapter_state
from lora_dist.model.base import DTYPES
from lora_dist.model.lora import PEFT_PREFIX
from lora_dist.run_dir import RunDir
from lora_dist.training.trainer import Trainer, seed_everything

Format = Literal["fp32", "autocast", "bf16"]
"""fp32 throughout, bf16 products of fp32 weights, or frozen weights in bf16 too."""

FIXED_LENGTH = 128
"""Tokens that the seed paper's and the LoRA authors' kind of loop pad an example to."""

ENDLESS = 10**9
"""Epochs of a training whose learning rate stays at its peak."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What every program does."""

    settings: Settings
    """The model's name is a folder. The learning rate is the peak throughout."""
    adapter: Path
    """The untrained adapter, in PEFT's layout."""
    examples: TokenizedExamples
    steps: range
    """The steps, by their number in the first epoch."""
    pad_id: int

    def batches(self) -> list[Indices]:
        """The examples of each step."""
        cfg = self.settings.train
        order = training_order(self.examples.mrs, cfg.seed, 0, cfg.refs_per_mr)
        return [global_batch(order, number, cfg.global_batch_size) for number in self.steps]


def ours(work: Workload, precision: Precision) -> tuple[float, float]:
    """Seconds and mean loss of the steps in this package."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = MIXED_PRECISION[precision]
    settings = replace(work.settings, train=replace(work.settings.train, epochs=ENDLESS))
    with tempfile.TemporaryDirectory(prefix="lora-dist-") as folder, world(str(bench_device())) as here:
        training = Trainer(settings, RunDir(Path(folder, "run")), here)

        def step(k: int) -> Tensor:
            done = training.step(work.steps[k])
            return done.sums[0] / done.labels

        return _twice(step, len(work.steps))


def trainer(work: Workload, numbers: Format, length: int | None, everywhere: bool) -> tuple[float, float]:
    """Seconds and mean loss of the steps in PEFT's layers and transformers' Trainer.

    Args:
        work: the steps.
        numbers: the number formats.
        length: tokens that each example is padded to at least; None is the longest of its batch.
        everywhere: whether the meaning representation has labels too.
    """
    from peft import PeftModel

    warnings.simplefilter("ignore")  # of transformers about names that the Trainer itself uses
    if bench_device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, which the Trainer imports, says that it found no GPU
    cfg, times = work.settings.train, list[float]()
    model = PeftModel.from_pretrained(_gpt2(work, numbers), work.adapter, is_trainable=True)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step in (len(work.steps), 2 * len(work.steps)):
                times.append(now())

    running = HuggingFaceTrainer(
        model,
        TrainingArguments(
            output_dir=str(work.adapter / "trainer"),
            max_steps=2 * len(work.steps),
            per_device_train_batch_size=cfg.global_batch_size,
            learning_rate=cfg.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=cfg.weight_decay,
            label_smoothing_factor=cfg.label_smoothing,
            max_grad_norm=cfg.max_grad_norm or 0.0,
            seed=cfg.seed,
            bf16=numbers != "fp32",
            use_cpu=bench_device().type == "cpu",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            logging_steps=len(work.steps),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=lambda chosen: padded(work, np.array(chosen), length, everywhere),
        train_dataset=np.concatenate(work.batches() * 2).tolist(),
        callbacks=[Clock()],
    )
    running.remove_callback(PrinterCallback)
    running.train()
    losses = [line["loss"] for line in running.state.log_history if "loss" in line]
    return times[1] - times[0], float(losses[1])


def loralib(work: Workload, numbers: Format) -> tuple[float, float]:
    """Seconds and mean loss of the steps in the LoRA authors' layers and a plain loop, padded to `FIXED_LENGTH`."""
    import loralib as authors

    lora, cfg = work.settings.lora, work.settings.train
    model = _gpt2(work, numbers)
    state = load_adapter_state(work.adapter)
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
    optimizer = torch.optim.AdamW(trained, cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    batches = work.batches()
    seed_everything(cfg.seed, deterministic=False)

    def step(k: int) -> Tensor:
        plain = padded(work, batches[k], FIXED_LENGTH, False)
        batch = {name: value.to(bench_device()) for name, value in plain.items()}
        labels = batch.pop("labels")[:, 1:].flatten()
        with torch.autocast(bench_device().type, torch.bfloat16, enabled=numbers != "fp32"):
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=cfg.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        if cfg.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, cfg.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return _twice(step, len(batches))


def padded(work: Workload, chosen: Indices, length: int | None, everywhere: bool) -> dict[str, Tensor]:
    """Examples `chosen` (n,) as transformers' models take them, padded on the right: each (n, length).

    Padding has no label; with `everywhere` all else has one, otherwise only the reference and its end.
    """
    examples, lengths = work.examples, work.examples.lengths[chosen]
    width = max(int(lengths.max()), length or 0)
    ids = torch.full((len(chosen), width), work.pad_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (index, count) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True)):
        start, first = int(examples.starts[index]), 0 if everywhere else int(examples.prompt_lengths[index])
        ids[row, :count] = torch.from_numpy(examples.ids[start : start + count].astype(np.int64))
        labels[row, first:count] = ids[row, first:count]
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _gpt2(work: Workload, numbers: Format) -> GPT2LMHeadModel:
    """The checkpoint in transformers' own layers, with the same dropout as ours."""
    transformers_logging.disable_progress_bar()
    dropout = work.settings.model.dropout
    own = {} if dropout is None else dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2LMHeadModel.from_pretrained(
        work.settings.model.name,
        dtype=DTYPES["bf16" if numbers == "bf16" else "fp32"],
        attn_implementation="eager" if bench_device().type == "cpu" else "sdpa",
        use_cache=False,
        **own,
    )


def _twice(step: Callable[[int], Tensor], count: int) -> tuple[float, float]:
    """Seconds of the second time that the `count` steps are made, and its mean loss."""
    for k in range(count):
        step(k)
    start = now()
    losses = [step(k) for k in range(count)]
    return now() - start, float(torch.stack(losses).mean())
