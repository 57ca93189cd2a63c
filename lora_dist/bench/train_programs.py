"""The programs that `bench train` measures: ours, PEFT with transformers' Trainer, and loralib's layers in a loop.

All start from the same checkpoint and adapter, and make the same steps twice: once as a warm-up, as products of a new
shape take longer, then timed. The peers' options are chosen for speed: no KV cache, the faster of transformers' two
attention implementations, no gradient norm without clipping, batches collated in the process.
"""

import os
import tempfile
import warnings
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

from lora_dist.bench.machine import bench_device
from lora_dist.bench.stopwatch import StepTimes, Stopwatch, time_steps
from lora_dist.config import Precision, Settings
from lora_dist.data.sampler import Indices, global_batch, training_order
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.launcher import MIXED_PRECISION
from lora_dist.distributed.world import world
from lora_dist.model.adapter import load_adapter_state
from lora_dist.model.base import DTYPES
from lora_dist.model.lora import PEFT_PREFIX
from lora_dist.run_dir import RunDir
from lora_dist.training.determinism import reproducible
from lora_dist.training.step import OptimizerStep
from lora_dist.training.trainer import Trainer

NumberFormat = Literal["fp32", "autocast", "bf16"]
"""fp32 throughout, bf16 products of fp32 weights, or frozen weights in bf16 too."""

FIXED_LENGTH = 128
"""Tokens that the seed paper and the LoRA authors pad each example to."""

ENDLESS = 10**9
"""Epochs of a training whose learning rate stays at its peak."""


@dataclass(frozen=True, eq=False)
class TrainInputs:
    """What every program gets."""

    settings: Settings
    """Settings of the training; the model's name is a folder, and the learning rate is the peak throughout."""
    adapter: Path
    """The untrained adapter, in PEFT's layout."""
    examples: TokenizedExamples
    steps: range
    """The steps to make, by their position in the first epoch."""
    pad_id: int

    def batches(self) -> list[Indices]:
        """Return the examples of each step: (<= global batch size,) each."""
        cfg = self.settings.train
        order = training_order(self.examples.mrs, cfg.seed, 0, cfg.refs_per_mr)
        return [global_batch(order, number, cfg.global_batch_size) for number in self.steps]


def ours(
    inputs: TrainInputs, precision: Precision, cuda_graphs: Literal["auto", "off"], together: int = 1
) -> tuple[float, StepTimes]:
    """Time the steps in this package, of one run or of several that train together; the loss is the first one's."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = MIXED_PRECISION[precision]
    cfg = replace(inputs.settings.train, cuda_graphs=cuda_graphs)
    with (
        tempfile.TemporaryDirectory(prefix="lora-dist-") as folder,
        world(str(bench_device())) as here,
        reproducible(cfg.seed, deterministic=cfg.deterministic),
    ):
        cfgs = [replace(cfg, seed=cfg.seed + number) for number in range(together)]
        runs = [(replace(inputs.settings, train=each), RunDir(Path(folder, str(each.seed)))) for each in cfgs]
        trainer = Trainer(runs, here)
        peaks = [replace(each, epochs=ENDLESS) for each in cfgs]
        make = OptimizerStep(trainer.strategy, inputs.examples, peaks, trainer.shapes, inputs.pad_id, here)

        def step(k: int) -> Tensor:
            done, *_ = make(inputs.steps[k])
            return done.sums[0] / done.labels

        times = time_steps(step, len(inputs.steps))
        return times.seconds, times


def peft_trainer(
    inputs: TrainInputs, number_format: NumberFormat, pad_to: int | None, label_mrs: bool, compiled: bool = False
) -> tuple[float, StepTimes]:
    """Time the steps in PEFT's layers and transformers' Trainer.

    Args:
        inputs: model, adapter and steps.
        number_format: formats of weights and products.
        pad_to: tokens that each example is padded to at least; None is the longest example of its batch.
        label_mrs: whether the meaning representations have labels too.
        compiled: whether to use torch.compile.
    """
    from peft import PeftModel

    warnings.simplefilter("ignore")  # transformers warns about names that its Trainer itself uses
    if bench_device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, which the Trainer imports, warns that it found no GPU
    watch = Stopwatch(len(inputs.steps))
    model = PeftModel.from_pretrained(_gpt2(inputs, number_format), inputs.adapter, is_trainable=True)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step_done()

    trainer = HuggingFaceTrainer(
        model,
        _training_arguments(inputs, watch.total_steps, bf16=number_format != "fp32", compiled=compiled),
        data_collator=lambda chosen: pad_examples(inputs, np.array(chosen), pad_to, label_mrs),
        train_dataset=np.concatenate(inputs.batches() * (watch.total_steps // watch.steps)).tolist(),
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    times = watch.times(float(losses[watch.rounds]))
    return times.seconds, times


def _training_arguments(inputs: TrainInputs, steps: int, *, bf16: bool, compiled: bool) -> TrainingArguments:
    cfg = inputs.settings.train
    return TrainingArguments(
        output_dir=str(inputs.adapter / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=cfg.global_batch_size,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=cfg.weight_decay,
        label_smoothing_factor=cfg.label_smoothing,
        max_grad_norm=cfg.max_grad_norm or 0.0,
        seed=cfg.seed,
        bf16=bf16,
        torch_compile=compiled,
        use_cpu=bench_device().type == "cpu",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=len(inputs.steps),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def loralib(inputs: TrainInputs, number_format: NumberFormat) -> tuple[float, StepTimes]:
    """Time the steps in the LoRA authors' layers and a plain loop, padded to `FIXED_LENGTH`."""
    import loralib as authors

    lora, cfg = inputs.settings.lora, inputs.settings.train
    model = _gpt2(inputs, number_format)
    state = load_adapter_state(inputs.adapter)
    for path in dict.fromkeys(name.rpartition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in state):
        frozen = model.get_submodule(path)
        rank = len(state[f"{PEFT_PREFIX}{path}.lora_A.weight"])  # of all pairs of the layer
        layer = authors.Linear(
            *frozen.weight.shape, rank, lora.scaling * rank, lora.dropout, fan_in_fan_out=True, merge_weights=False
        )
        layer.weight, layer.bias = frozen.weight, frozen.bias
        for matrix in ("lora_A", "lora_B"):
            getattr(layer, matrix).data.copy_(state[f"{PEFT_PREFIX}{path}.{matrix}.weight"])
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    authors.mark_only_lora_as_trainable(model)
    model.to(bench_device()).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    batches = inputs.batches()
    torch.manual_seed(cfg.seed)

    def step(k: int) -> Tensor:
        padded = pad_examples(inputs, batches[k], FIXED_LENGTH, False)
        batch = {name: value.to(bench_device()) for name, value in padded.items()}
        labels = batch.pop("labels")[:, 1:].flatten()
        with torch.autocast(bench_device().type, torch.bfloat16, enabled=number_format != "fp32"):
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=cfg.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        if cfg.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trainable, cfg.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    times = time_steps(step, len(batches))
    return times.seconds, times


def pad_examples(inputs: TrainInputs, chosen: Indices, pad_to: int | None, label_mrs: bool) -> dict[str, Tensor]:
    """Pad examples `chosen` (n,) on the right for transformers' models: tensors (n, length).

    The reference and its end have labels, and with `label_mrs` the meaning representation too.
    """
    examples, lengths = inputs.examples, inputs.examples.lengths[chosen]
    width = max(int(lengths.max()), pad_to or 0)
    ids = torch.full((len(chosen), width), inputs.pad_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (index, length) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True)):
        start, first = int(examples.starts[index]), 0 if label_mrs else int(examples.prompt_lengths[index])
        ids[row, :length] = torch.from_numpy(examples.ids[start : start + length].astype(np.int64))
        labels[row, first:length] = ids[row, first:length]
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _gpt2(inputs: TrainInputs, number_format: NumberFormat) -> GPT2LMHeadModel:
    """Load the checkpoint in transformers' own layers, with the same dropout as ours."""
    transformers_logging.disable_progress_bar()
    dropout = inputs.settings.model.dropout
    own = {} if dropout is None else dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return GPT2LMHeadModel.from_pretrained(
        inputs.settings.model.name,
        dtype=DTYPES["bf16" if number_format == "bf16" else "fp32"],
        attn_implementation="eager" if bench_device().type == "cpu" else "sdpa",
        use_cache=False,
        **own,
    )
