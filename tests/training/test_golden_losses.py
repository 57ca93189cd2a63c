"""The losses of a tiny training, step by step at full precision, as they were on 2026-11-26 (and before the package was
laid out in folders). A change that is not meant to change the result must leave them as they are; one that is prints
the new ones here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_dist.config import DataSettings, ModelSettings
from lora_dist.data.synthetic import write_corpus
from lora_dist.distributed.world import world
from lora_dist.presets import PRESETS
from lora_dist.run_dir import RunDir
from lora_dist.training.trainer import Trainer

GOLDEN = json.loads(Path(__file__).with_name("golden_losses.json").read_text())
STEPS = 12
TOLERANCE = 2e-6  # relative, in fp32: other CPUs sum in another order


@pytest.mark.parametrize("preset", list(GOLDEN))
def test_losses_are_the_golden_ones(
    preset: str, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    write_corpus(tmp_path / "corpus", seed=1, num_train_mrs=12)
    settings = PRESETS[preset].settings
    settings = replace(
        settings,
        model=ModelSettings(name=str(tiny_gpt2)),
        data=DataSettings(dir=tmp_path / "corpus"),
        train=replace(settings.train, max_steps=STEPS, warmup_steps=2, learning_rate=1e-2, log_steps=1),
    )
    with world("cpu") as here:
        Trainer([(settings, RunDir(tmp_path / "run"))], here).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row] + [row["dev_loss"] for row in rows if "dev_loss" in row]
    assert losses == pytest.approx(GOLDEN[preset], rel=TOLERANCE), json.dumps(losses)
