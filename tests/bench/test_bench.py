import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2LMHeadModel

from lora_dist.bench import decode, machine, scaling, score, train, work
from lora_dist.bench.gpu_table import gpu_table
from lora_dist.bench.machine import Measurement
from lora_dist.cli.main import main
from lora_dist.config import LoraSettings
from lora_dist.data.collate import collate
from lora_dist.data.e2e import Example
from lora_dist.data.shapes import RoundedShapes
from lora_dist.data.synthetic import write_corpus
from lora_dist.data.tokens import tokenize
from lora_dist.model import lora
from lora_dist.model.kernels import cpu
from lora_dist.training.loss import ReferenceLoss

SLOW_SCRIPT = """
import sys, time
from pathlib import Path
references, outputs = (Path(name).read_text() for name in sys.argv[1:])
first = [group.split("\\n")[0] for group in references.strip("\\n").split("\\n\\n")]
assert outputs.split("\\n")[:-1] == first
time.sleep(1)
"""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(score, "REPEATS", 1)
    write_corpus(tmp_path / "corpus", seed=3, num_train_mrs=5)
    return tmp_path / "corpus"


@pytest.mark.launched
def test_scoring_is_measured_next_to_the_official_script(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measure_scores.py").write_text(SLOW_SCRIPT)
    rows = tmp_path / "rows.json"
    settings = ["--data.dir", str(corpus), "--official", str(tmp_path), "--json", str(rows)]
    assert main(["bench", "score", *settings]) == 0
    ours, theirs = json.loads(rows.read_text())
    assert (ours["name"], ours["unit"], ours["ratio"]) == ("score: lora_dist", "s", 1)
    assert theirs["value"] >= 1
    assert theirs["ratio"] == pytest.approx(theirs["value"] / ours["value"], abs=2e-3)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == ["score: lora_dist", "score: official script"]


@pytest.mark.launched
@pytest.mark.slow
def test_scaling_is_measured_with_one_and_two_processes(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "ROUNDS", 1)
    monkeypatch.setattr(scaling, "WARM_UP", 2)
    rows = tmp_path / "rows.json"
    settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--updates", "3", "--json", str(rows)]
    assert main(["bench", "scaling", *settings, "--precision", "fp32"]) == 0
    one, two, step, communication, waiting = json.loads(rows.read_text())
    assert one["ratio"] == 1
    assert two["ratio"] == pytest.approx(two["value"] / one["value"], rel=1e-2)
    assert step["value"] == pytest.approx(8e3 / two["value"], rel=1e-2)
    assert 0 < communication["value"] < step["value"]
    assert waiting["value"] >= 0
    assert main(["bench", "scaling", *settings, "--train.global-batch-size", "7"]) == 2


@pytest.mark.launched
def test_a_failing_official_script_is_reported(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measure_scores.py").write_text("raise SystemExit('perl is missing')")
    assert main(["bench", "score", "--data.dir", str(corpus), "--official", str(tmp_path)]) == 2
    assert "measure_scores.py failed with exit code 1: perl is missing" in capsys.readouterr().err


def test_a_missing_official_script_and_a_missing_job_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "score", "--data.dir", str(corpus), "--official", str(tmp_path)]) == 2
    assert "has no measure_scores.py" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert "lora-dist bench score" in capsys.readouterr().err


def test_training_is_measured_next_to_its_peers(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_here(program: Callable[..., tuple[float, Any]], *arguments: Any, threads: int) -> Measurement:
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a separate process, but faster
        seconds, result = program(*arguments)
        return Measurement(seconds, 2**30, result)

    monkeypatch.setattr(train, "CPU_ROUNDS", 1)
    monkeypatch.setattr(train, "measure_apart", measure_here)
    monkeypatch.setattr(machine, "compute_precision", lambda _: "bf16")
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # which programs set; restored afterwards
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    file = tmp_path / "rows.json"
    settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--train.global-batch-size", "4"]
    same_start = ["--lora.dropout", "0", "--train.learning-rate", "0"]
    start = ["bench", "train", "improved", *settings, *same_start, "--threads", "1", "--json", str(file)]
    assert main([*start, "--updates", "2"]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    programs = [name for name, row in rows.items() if row["unit"] == "examples/s"]
    formats = ["fp32", "bf16 autocast", "bf16 weights"]
    expected = ["ours, fp32", "ours, bf16", "ours, 8 references per MR, bf16"]
    expected += [f"loralib, {name}" for name in formats[:2]] if find_spec("loralib") else []
    expected += ["the seed paper's, fp32", *(f"PEFT and Trainer, {n}" for n in formats)] if find_spec("peft") else []
    assert sorted(programs) == sorted(expected)
    for name in programs:
        ours = f"ours, {'fp32' if 'fp32' in name else 'bf16'}"
        assert rows[name]["ratio"] == pytest.approx(rows[ours]["value"] / rows[name]["value"], rel=1e-2)
        assert rows[f"{name}: share of the matmul ceiling"]["value"] >= 0
        assert rows[f"{name}: peak memory"]["value"] == 1
        if "seed" not in name and "references" not in name:  # the same adapter, examples and labels
            loss, tolerance = rows[f"{name}: mean loss"]["value"], 1e-3 if "fp32" in name else 5e-2
            assert loss == pytest.approx(rows["ours, fp32: mean loss"]["value"], abs=tolerance)
    best = max((rows[name]["value"] for name in programs if name.startswith("PEFT")), default=1.0)
    for name in expected[1:3] if find_spec("peft") else []:
        gain = rows[f"{name}: over PEFT's best"]["value"]
        assert gain == pytest.approx(rows[name]["value"] / best, rel=1e-2)
    shutil.copy(file, tmp_path / "train-small-improved.json")
    table = gpu_table(tmp_path)
    assert "| step, captured, bf16, ms |" in table
    assert ("| PEFT and Trainer's best, times our step |" in table) == (find_spec("peft") is not None)
    assert main([*start, "--updates", "99"]) == 2
    assert main([*start, "--updates", "2", "--programs", "ours, fp32", "ours, b"]) == 0
    few = [row["name"] for row in json.loads(file.read_text()) if row["unit"] == "examples/s"]
    assert few == ["ours, fp32", "ours, bf16"]
    assert main([*start, "--updates", "2", "--programs", "theirs"]) == 2
    assert "--programs theirs matches none of: " in capsys.readouterr().err
    assert main(["bench", "train", *settings]) == 2


def test_decoding_is_measured_next_to_its_peers(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_here(program: Callable[..., tuple[float, None]], *arguments: Any, threads: int) -> Measurement:
        return Measurement(program(*arguments)[0], 2**30, None)

    def measure_in_turn(program: Callable[..., tuple[float, None]], shards: Sequence[tuple[Any, ...]]) -> Measurement:
        return Measurement(max(program(*shard)[0] for shard in shards), 2**30, None)

    monkeypatch.setattr(decode, "NEW_TOKENS", 4)
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.1)
    monkeypatch.setattr(decode, "measure_apart", measure_here)
    monkeypatch.setattr(decode, "measure_together", measure_in_turn)
    monkeypatch.setattr(decode, "is_installed", lambda _: False)  # CTranslate2 wants another kind of tokenizer
    monkeypatch.setattr(decode, "bench_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(machine, "compute_precision", lambda _: "fp32")
    file = tmp_path / "rows.json"
    settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--decode.num-beams", "2"]
    assert main(["bench", "decode", *settings, "--count", "6", "--threads", "1", "--json", str(file)]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    peers = [*(f"generate, batch {n}, fp32" for n in (8, 16)), "generate, one at a time, fp32 (the seed paper's way)"]
    assert [name for name, row in rows.items() if row["unit"] == "s/MR"][:-1] == ["ours, fp32", *peers]
    for name in peers:
        assert rows[name]["value"] > 0
        assert rows[name]["ratio"] == pytest.approx(rows[name]["value"] / rows["ours, fp32"]["value"], rel=0.1)
    assert not any("bf16" in name for name in rows)


def test_the_necessary_work_is_that_of_the_products_torch_counts(gpt2: GPT2LMHeadModel, tokenizer: Any) -> None:
    mrs = ["name[Larkspur], food[Greek]", "name[Larkspur], food[Greek]", "name[Aster]"]
    examples = tokenize(tokenizer, [Example(mr, text) for mr, text in zip(mrs, "abc", strict=True)], 512)
    lora.inject(gpt2, LoraSettings(rank=3, targets=("mlp.c_proj", "c_attn")), seed=1)
    loss = ReferenceLoss(gpt2, cpu, 0.1, partitioned=True)  # plain weights, whose products torch counts
    for share_mrs in (False, True):
        found = work.count_tokens(examples, [np.arange(3)], share_mrs)
        batch = collate(examples, np.arange(3), 0, RoundedShapes(1), share_mrs=share_mrs)
        with FlopCounterMode(display=False) as counter:
            loss(batch)[0].backward()
        by_kind = counter.get_flop_counts()["Global"]
        products = sum(n for kind, n in by_kind.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm))
        assert work.necessary_work(gpt2, replace(found, pairs=0, label_pairs=0)) == products
    # Attention, one token after the other: two products forward and four backward for each visible pair.
    visible = [length * (length + 1) // 2 for length in examples.lengths - 1]
    unlabelled = [length * (length + 1) // 2 for length in examples.prompt_lengths - 1]
    found = work.count_tokens(examples, [np.arange(3)], share_mrs=False)
    assert (found.pairs, found.label_pairs) == (sum(visible), sum(visible) - sum(unlabelled))
    pairs = work.necessary_work(gpt2, found) - work.necessary_work(gpt2, replace(found, pairs=0, label_pairs=0))
    assert pairs == 6 * 2 * 32 * (found.pairs + found.label_pairs)
