"""Our training and a plain loop around PEFT's layers have the same loss at each update."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from lora_dist.config import DataSettings, ModelSettings, PRESETS, Settings
from lora_dist.data.sampler import epoch_order, global_batch
from lora_dist.data.synthetic import write_corpus
from lora_dist.data.tokens import TokenizedExamples
from lora_dist.distributed.world import world
from lora_dist.model import lora
from lora_dist.training.step import make_update, replicate
from lora_dist.training.trainer import load_data, load_model, seed_everything

UPDATES = 50


def settings(preset: str, model: Path, corpus: Path) -> Settings:
    start = PRESETS[preset]
    return replace(
        start,
        model=ModelSettings(name=str(model)),
        data=DataSettings(dir=corpus),
        lora=replace(start.lora, dropout=0.0),
        train=replace(start.train, warmup_steps=10, max_steps=UPDATES, learning_rate=2e-3, weight_decay=0.1),
    )


def our_losses(chosen: Settings) -> tuple[list[float], dict[str, Tensor], GPT2LMHeadModel, TokenizedExamples, int]:
    """Loss of each update; the adapter before them, the frozen model, the examples, the padding."""
    recipe, losses = chosen.train, []
    with world("cpu") as here:
        seed_everything(recipe.seed, recipe.deterministic)
        gpt2, tokenizer = load_model(chosen, "fp32")
        examples = load_data(chosen.data, tokenizer, gpt2.config.n_positions).train
        start = {name: value.detach().clone() for name, value in lora.parameters(gpt2).items()}
        replica = replicate(gpt2, recipe, None, tokenizer.eos_token_id, here)
        for number in range(UPDATES):
            done = make_update(replica, examples, recipe, number, UPDATES, tokenizer.eos_token_id, here)
            losses.append(done.sums[0].item() / done.labels)
    return losses, start, gpt2, examples, tokenizer.eos_token_id


def their_losses(
    chosen: Settings, start: Mapping[str, Tensor], frozen: GPT2LMHeadModel, examples: TokenizedExamples, pad_id: int
) -> list[float]:
    """The same of PEFT's layers, rows padded on the right, torch's own loss, AdamW and a schedule written out."""
    recipe = chosen.train
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
    )
    model: Any = peft.get_peft_model(base, config).train()
    assert peft.set_peft_model_state_dict(model, dict(start)).unexpected_keys == []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=recipe.weight_decay)
    losses = []
    for number in range(UPDATES):
        epoch, position = divmod(number, -(-len(examples) // recipe.global_batch_size))
        order = epoch_order(len(examples), recipe.seed, epoch)
        texts, prompts = [], []
        for index in global_batch(order, position, recipe.global_batch_size):
            texts.append(torch.from_numpy(examples.ids[examples.starts[index] : examples.starts[index + 1]]).long())
            prompts.append(int(examples.prompt_lengths[index]))
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
        labels = torch.full_like(ids, -100)
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            labels[row, prompt : len(text)] = text[prompt:]
        logits = model(input_ids=ids, attention_mask=labels.new_tensor([[1] * ids.shape[1]] * len(ids))).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.param_groups[0]["lr"] = 2e-3 * (number / 10 if number < 10 else (UPDATES - number) / (UPDATES - 10))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check(preset: str, model: Path, corpus: Path) -> None:
    chosen = settings(preset, model, corpus)
    ours, *same = our_losses(chosen)
    theirs = their_losses(chosen, *same)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert sum(ours[-5:]) < 0.98 * sum(ours[:5])  # or else the curve would be flat, and say little


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_curve_is_pefts(preset: str, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    write_corpus(tmp_path / "corpus", seed=4, num_train_mrs=40)
    check(preset, tiny_gpt2, tmp_path / "corpus")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_curve_is_pefts_on_e2e(preset: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check(preset, shared / "mini-gpt2", shared / "e2e")
