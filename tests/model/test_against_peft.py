"""Our training and a plain loop around PEFT's layers have the same loss at each step."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import DataSettings, ModelSettings, Settings
from lora_dist.data.sampler import epoch_order, global_batch
from lora_dist.data.synthetic import write_corpus
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.world import world
from lora_dist.presets import PRESETS
from lora_dist.run_dir import RunDir
from lora_dist.training.trainer import Trainer, load_model

WARM_UP = 10


def settings(preset: str, model: Path, corpus: Path, steps: int) -> Settings:
    start = PRESETS[preset].settings
    return replace(
        start,
        model=ModelSettings(name=str(model)),
        data=DataSettings(dir=corpus),
        lora=replace(start.lora, dropout=0.0),
        train=replace(start.train, warmup_steps=WARM_UP, max_steps=steps, learning_rate=2e-3, weight_decay=0.1),
    )


def our_losses(
    chosen: Settings, out: Path
) -> tuple[list[float], dict[str, Tensor], GPT2LMHeadModel, TokenizedExamples, int]:
    """Loss of each step; the adapter before them, the frozen model, the examples, the padding's token id."""
    losses = []
    with world("cpu") as here:
        trainer = Trainer([(chosen, RunDir(out))], here)
        start = trainer.strategy.adapter()
        for number in range(chosen.train.total_steps(len(trainer.data.train))):
            (done,) = trainer.step(number)
            losses.append(done.sums[0].item() / done.labels)
    frozen, _ = load_model(chosen, "fp32")
    return losses, start, frozen, trainer.data.train, trainer.pad_id


def their_losses(
    chosen: Settings, start: Mapping[str, Tensor], frozen: GPT2LMHeadModel, examples: TokenizedExamples, pad_id: int
) -> list[float]:
    """The same from PEFT's layers, rows padded on the right, torch's own loss, AdamW and a schedule written out."""
    cfg = chosen.train
    no_dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    base = GPT2LMHeadModel.from_pretrained(chosen.model.name, dtype=torch.float32, **no_dropout)
    base.resize_token_embeddings(len(frozen.transformer.wte.weight), mean_resizing=False)
    with torch.no_grad():
        base.transformer.wte.weight.copy_(frozen.transformer.wte.weight)  # with the reference token's row
    config = peft.LoraConfig(
        r=chosen.lora.rank,
        lora_alpha=int(chosen.lora.alpha),
        lora_dropout=0.0,
        target_modules=list(chosen.lora.targets),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        use_rslora=chosen.lora.rslora,
        use_dora=chosen.lora.dora,
    )
    model: Any = peft.get_peft_model(base, config).train()
    assert peft.set_peft_model_state_dict(model, dict(start)).unexpected_keys == []
    optimizer = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=1.0,
        loraplus_lr_ratio=cfg.lora_plus_ratio,
        loraplus_weight_decay=cfg.weight_decay,
    )
    ratios = [group["lr"] for group in optimizer.param_groups]
    losses, steps = [], cfg.total_steps(len(examples))
    for number in range(steps):
        epoch, position = divmod(number, -(-len(examples) // cfg.global_batch_size))
        order = epoch_order(len(examples), cfg.seed, epoch)
        texts, prompts = [], []
        for index in global_batch(order, position, cfg.global_batch_size):
            ids_of_one = examples.ids[examples.starts[index] : examples.starts[index + 1]]
            texts.append(torch.from_numpy(ids_of_one.astype(np.int64)))
            prompts.append(int(examples.prompt_lengths[index]))
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
        labels = torch.full_like(ids, -100)
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            labels[row, prompt : len(text)] = text[prompt:]
        logits = model(input_ids=ids, attention_mask=labels.new_tensor([[1] * ids.shape[1]] * len(ids))).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = 2e-3 * ratio * min(number / WARM_UP, (steps - number) / (steps - WARM_UP))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check(chosen: Settings, out: Path) -> None:
    ours, *same = our_losses(chosen, out)
    theirs = their_losses(chosen, *same)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert sum(ours[-5:]) < 0.98 * sum(ours[:5])  # a flat curve would prove little


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rsLoRA": ({"rslora": True, "alpha": 8.0}, {}),
    "DoRA and LoRA+": ({"dora": True}, {"lora_plus_ratio": 8.0}),
}
"""Changes of the adapter's and of the training's settings."""


@pytest.mark.parametrize(
    ("preset", "variant"),
    [
        pytest.param("baseline", "plain", marks=pytest.mark.slow),
        ("improved", "plain"),
        pytest.param("improved", "rsLoRA", marks=pytest.mark.slow),
        ("improved", "DoRA and LoRA+"),
    ],
)
def test_the_loss_curve_is_pefts(
    preset: str, variant: str, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    write_corpus(tmp_path / "corpus", seed=4, num_train_mrs=40)
    chosen, (lora, train) = settings(preset, tiny_gpt2, tmp_path / "corpus", steps=25), VARIANTS[variant]
    check(replace(chosen, lora=replace(chosen.lora, **lora), train=replace(chosen.train, **train)), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("preset", ["baseline", "improved"])
def test_the_loss_curve_is_pefts_on_e2e(
    preset: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check(settings(preset, shared / "mini-gpt2", shared / "e2e", steps=50), tmp_path / "run")
