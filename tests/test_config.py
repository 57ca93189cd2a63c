import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from lora_dist.config import DataSettings, DecodeSettings, LoraSettings, ModelSettings, TrainSettings
from lora_dist.errors import UserError
from lora_dist.presets import BASELINE, IMPROVED, ORIGINAL, PRESETS

# Each row: a setting, a value it refuses, and how the message shows the two.
REFUSED: list[tuple[Callable[[], object], str, str]] = [
    (lambda: ModelSettings(name=""), "--model.name", "''"),
    (lambda: ModelSettings(dropout=1.0), "--model.dropout", "1.0"),
    (lambda: ModelSettings(dropout=-0.1), "--model.dropout", "-0.1"),
    (lambda: ModelSettings(dropout=math.nan), "--model.dropout", "nan"),
    (lambda: LoraSettings(rank=0), "--lora.rank", "0"),
    (lambda: LoraSettings(rank=-4), "--lora.rank", "-4"),
    (lambda: LoraSettings(alpha=0.0), "--lora.alpha", "0.0"),
    (lambda: LoraSettings(alpha=math.inf), "--lora.alpha", "inf"),
    (lambda: LoraSettings(dropout=1.0), "--lora.dropout", "1.0"),
    (lambda: LoraSettings(dropout=math.nan), "--lora.dropout", "nan"),
    (lambda: LoraSettings(targets=()), "--lora.targets", "empty"),
    (lambda: LoraSettings(targets=("c_attn.q", "c_fc")), "--lora.targets", "c_attn.q c_fc"),
    (lambda: LoraSettings(targets=("c_attn.q",), dora=True), "--lora.targets", "c_attn.q"),
    (lambda: DataSettings(limit_train=0), "--data.limit-train", "0"),
    (lambda: DataSettings(limit_dev=-1), "--data.limit-dev", "-1"),
    (lambda: TrainSettings(epochs=0), "--train.epochs", "0"),
    (lambda: TrainSettings(max_steps=0), "--train.max-steps", "0"),
    (lambda: TrainSettings(global_batch_size=0), "--train.global-batch-size", "0"),
    (lambda: TrainSettings(accumulation_steps=-1), "--train.accumulation-steps", "-1"),
    (lambda: TrainSettings(lora_plus_ratio=0.0), "--train.lora-plus-ratio", "0.0"),
    (lambda: TrainSettings(lora_plus_ratio=math.inf), "--train.lora-plus-ratio", "inf"),
    (lambda: TrainSettings(learning_rate=-2e-4), "--train.learning-rate", "-0.0002"),
    (lambda: TrainSettings(learning_rate=math.nan), "--train.learning-rate", "nan"),
    (lambda: TrainSettings(weight_decay=math.inf), "--train.weight-decay", "inf"),
    (lambda: TrainSettings(warmup_steps=-1), "--train.warmup-steps", "-1"),
    (lambda: TrainSettings(label_smoothing=1.0), "--train.label-smoothing", "1.0"),
    (lambda: TrainSettings(max_grad_norm=0.0), "--train.max-grad-norm", "0.0"),
    (lambda: TrainSettings(seed=-1), "--train.seed", "-1"),
    (lambda: TrainSettings(seed=2**64), "--train.seed", str(2**64)),
    (lambda: TrainSettings(log_steps=0), "--train.log-steps", "0"),
    (lambda: TrainSettings(checkpoint_steps=0), "--train.checkpoint-steps", "0"),
    (lambda: TrainSettings(keep_checkpoints=0), "--train.keep-checkpoints", "0"),
    (lambda: DecodeSettings(num_beams=0), "--decode.num-beams", "0"),
    (lambda: DecodeSettings(length_penalty=math.nan), "--decode.length-penalty", "nan"),
    (lambda: DecodeSettings(no_repeat_ngram_size=-1), "--decode.no-repeat-ngram-size", "-1"),
    (lambda: DecodeSettings(max_new_tokens=0), "--decode.max-new-tokens", "0"),
    (lambda: DecodeSettings(batch_tokens=0), "--decode.batch-tokens", "0"),
    (lambda: DecodeSettings(num_return=0), "--decode.num-return", "0"),
    (lambda: DecodeSettings(num_beams=4, num_return=5), "--decode.num-return", "5"),
    (lambda: DecodeSettings(limit=0), "--decode.limit", "0"),
]

BOUNDARY: list[Callable[[], object]] = [
    lambda: ModelSettings(dropout=0.0),
    lambda: LoraSettings(rank=1, dropout=0.0),
    lambda: TrainSettings(learning_rate=0.0, weight_decay=0.0, warmup_steps=0, label_smoothing=0.0, seed=0),
    lambda: DecodeSettings(num_beams=1, length_penalty=-1.0, no_repeat_ngram_size=0, max_new_tokens=1, limit=1),
]


@pytest.mark.parametrize(("make", "flag", "value"), REFUSED, ids=[f"{flag}={value}" for _, flag, value in REFUSED])
def test_a_refusal_names_flag_and_value_and_a_remedy(make: Callable[[], object], flag: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    head, _, remedy = str(error.value).partition(": ")
    assert head == f"{flag} is {value}"
    assert remedy.startswith(("must be ", "give a ", "name at least one "))


@pytest.mark.parametrize("make", BOUNDARY)
def test_values_on_the_boundary_are_accepted(make: Callable[[], object]) -> None:
    make()


def test_presets_are_the_papers_tables_1_and_2() -> None:
    assert [PRESETS[name].settings for name in ("baseline", "improved")] == [BASELINE, IMPROVED]
    baseline, improved = BASELINE.lora, IMPROVED.lora
    assert (baseline.rank, baseline.alpha, baseline.dropout, baseline.targets) == (4, 32, 0.1, ("c_attn",))
    assert (improved.rank, improved.alpha, improved.dropout) == (16, 32, 0.1)
    assert (baseline.init, improved.init) == ("original", "gaussian")
    assert improved.targets == ("c_attn", "c_proj", "c_fc")
    assert (baseline.scaling, improved.scaling) == (8, 2)
    for preset in (BASELINE, IMPROVED):
        train, decode = preset.train, preset.decode
        assert (train.epochs, train.global_batch_size, train.learning_rate) == (5, 8, 2e-4)
        assert (train.weight_decay, train.warmup_steps, train.label_smoothing) == (0.01, 500, 0.1)
        assert train.max_grad_norm is None
        assert (decode.num_beams, decode.length_penalty, decode.no_repeat_ngram_size) == (10, 0.9, 4)


def test_the_preset_original_is_the_lora_authors_configuration_for_medium() -> None:
    assert PRESETS["original"].settings is ORIGINAL
    adapter = LoraSettings(rank=4, alpha=32, dropout=0.1, targets=("c_attn.q", "c_attn.v"), init="kaiming")
    assert (ORIGINAL.lora, adapter.scaling, adapter.parts) == (adapter, 8, (0, 2))
    assert (ORIGINAL.model.name, ORIGINAL.model.dropout) == ("gpt2-medium", 0)
    assert ORIGINAL.train == BASELINE.train
    assert ORIGINAL.decode == replace(BASELINE.decode, length_penalty=0.8)


# The global batch and its micro-batches


@pytest.mark.parametrize(("batch", "world", "accumulation", "micro"), [(8, 1, 1, 8), (8, 2, 2, 2), (12, 3, 1, 4)])
def test_a_micro_batch_is_the_global_batch_over_ranks_and_accumulation_steps(
    batch: int, world: int, accumulation: int, micro: int
) -> None:
    train = TrainSettings(global_batch_size=batch, accumulation_steps=accumulation)
    assert train.micro_batch_size(world) == micro


def test_a_global_batch_that_does_not_divide_is_refused_with_the_multiple_to_choose() -> None:
    with pytest.raises(UserError, match=r"--train\.global-batch-size is 8: .* 3 processes x 2 .* a multiple of 6"):
        TrainSettings(global_batch_size=8, accumulation_steps=2).micro_batch_size(3)


@pytest.mark.parametrize(
    ("examples", "max_steps", "per_epoch", "total"),
    [(16, None, 2, 10), (17, None, 3, 15), (1, None, 1, 5), (17, 4, 3, 4), (17, 99, 3, 15), (42061, None, 5258, 26290)],
)
def test_steps_include_the_smaller_last_batch_and_stop_at_max_steps(
    examples: int, max_steps: int | None, per_epoch: int, total: int
) -> None:
    train = TrainSettings(epochs=5, global_batch_size=8, max_steps=max_steps)
    assert (train.steps_per_epoch(examples), train.total_steps(examples)) == (per_epoch, total)


@pytest.mark.parametrize(("warmup", "total"), [(5, 20), (0, 7), (20, 20), (50, 20), (1, 1)])
def test_the_learning_rate_is_transformers_linear_schedule(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    train = TrainSettings(learning_rate=2e-4, warmup_steps=warmup)
    assert [train.learning_rate_at(step, total) for step in range(total)] == pytest.approx(theirs, rel=1e-12)


def test_the_learning_rate_ends_at_zero() -> None:
    train = TrainSettings(warmup_steps=2)
    assert train.learning_rate_at(10, total=10) == train.learning_rate_at(11, total=10) == 0
