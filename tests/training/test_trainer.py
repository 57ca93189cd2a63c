"""Training in one process: repeatable to the bit, resumed to the bit, and refusing what would spoil a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import complete_checkpoints
from safetensors.torch import load_file
from small_training import small_training
from transformers import AutoTokenizer, GPT2LMHeadModel

from lora_dist.cli.main import main
from lora_dist.config import DataSettings
from lora_dist.config_io import read_settings
from lora_dist.data.e2e import load_split, write_csv
from lora_dist.errors import UserError
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir
from lora_dist.training import profiler
from lora_dist.training.step import why_no_peak


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training with dropout of 6 steps, two epochs of 3, on 20 examples."""
    return small_training(tiny_gpt2, tmp_path_factory.mktemp("train") / "corpus", {})


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    return run


def weights(run: RunDir) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def rows(run: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_the_same_settings_give_the_same_bits_and_another_seed_others(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    again, other = RunDir(tmp_path / "again"), RunDir(tmp_path / "other")
    assert main([*arguments, "--out", str(again.root)]) == 0
    assert main([*arguments, "--train.seed", "7", "--out", str(other.root)]) == 0
    assert weights(again) == weights(finished)
    assert weights(other) != weights(finished)


@pytest.mark.parametrize("steps", [9, 10])
def test_a_warm_up_that_takes_the_whole_training_is_told(steps: int) -> None:
    note = why_no_peak(replace(IMPROVED.train, warmup_steps=9, learning_rate=0.5), steps)
    short = (
        "the warm-up takes 9 steps and the training 9: the learning rate never reaches 0.5; lower --train.warmup-steps"
    )
    assert note == (short if steps == 9 else None)


def test_training_lowers_the_loss_and_changes_every_matrix(arguments: list[str], tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--train.epochs", "8", "--lora.init", "original", "--out", str(run.root)]) == 0
    dev = [row["dev_loss"] for row in rows(run) if "dev_loss" in row]
    assert len(dev) == 8
    assert dev[-1] < dev[0] - 0.2
    state = load_file(run.adapter / "adapter_model.safetensors")
    assert len(state) == 2 * 2 * 4  # A and B of four layers in each of two blocks
    assert all(tensor.dtype == torch.float32 and tensor.abs().sum() > 0 for tensor in state.values())


@pytest.mark.parametrize("killed_after", [2, 4])  # the middle of the first epoch, and of the second
def test_a_resumed_run_ends_in_the_same_bits_and_log(
    killed_after: int, arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    shutil.rmtree(run.adapter)
    for step in complete_checkpoints(run):
        if step > killed_after:
            (run.checkpoint(step) / "COMPLETE").unlink()  # as a kill in the middle of writing would leave it
    assert main([*arguments, "--resume", "--out", str(run.root)]) == 0
    assert weights(run) == weights(finished)
    assert [(row["step"], row.get("loss"), row.get("dev_loss")) for row in rows(run)] == [
        (row["step"], row.get("loss"), row.get("dev_loss")) for row in rows(finished)
    ]


def test_a_log_file_gets_lines_with_losses_and_rates_instead_of_a_progress_bar(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_dist.distributed.logs.LINE_SECONDS", 0.0)
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "%|" not in text
    for row in rows(run):
        if "loss" in row:
            values = f"loss {row['loss']:.4f}, lr {row['lr']:.1e}, {row['examples_per_second']:.1f} examples/s"
            assert f"\nstep {row['step']} of 6: {values}, 00:0" in text
        else:
            assert f"\ndev loss {row['dev_loss']:.4f}, perplexity {row['dev_perplexity']:.3f} after" in text


def test_checkpoints_hold_only_trainable_parameters_and_optimizer_state(finished: RunDir) -> None:
    assert complete_checkpoints(finished) == [2, 4, 6]
    trainable = sum(tensor.numel() for tensor in load_file(finished.adapter / "adapter_model.safetensors").values())
    folder = finished.checkpoint(6)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5 * 3 * 4 * trainable + 8192
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json", ""}


def test_resuming_with_other_settings_is_refused_with_the_difference(
    arguments: list[str], finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(finished)
    assert main([*arguments, "--lora.rank", "8", "--resume", "--out", str(finished.root)]) == 2
    assert "--lora.rank was 16, is 8" in capsys.readouterr().err
    assert weights(finished) == before


def test_the_dev_loss_of_the_first_examples_is_that_of_a_dev_set_which_has_no_others(
    arguments: list[str], finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited, cut, corpus = RunDir(tmp_path / "limited"), RunDir(tmp_path / "cut"), tmp_path / "corpus"
    assert main([*arguments, "--data.limit-dev", "5", "--out", str(limited.root)]) == 0
    whole = DataSettings(dir=Path(arguments[arguments.index("--data.dir") + 1]))
    shutil.copytree(whole.dir or "", corpus)
    write_csv(corpus / "devset.csv", load_split(whole, "dev")[:5])
    assert main([*arguments, "--data.dir", str(corpus), "--out", str(cut.root)]) == 0

    def losses(run: RunDir) -> list[tuple[float, float]]:
        return [(row["dev_loss"], row["dev_nll"]) for row in rows(run) if "dev_loss" in row]

    assert losses(limited) == losses(cut)
    assert len(losses(limited)) == len(losses(finished)) == 2
    assert losses(limited) != losses(finished)
    assert weights(limited) == weights(finished)
    assert main([*arguments, "--data.limit-dev", "6", "--resume", "--out", str(limited.root)]) == 2
    assert "other settings: --data.limit-dev was 5, is 6" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [(), ("--train.seed", "7", "--lora.rank", "8")])
def test_an_adapter_without_checkpoints_is_not_trained_over(
    changed: tuple[str, ...], arguments: list[str], finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    shutil.rmtree(run.checkpoints)
    assert main([*arguments, *changed, "--resume", "--out", str(run.root)]) == 2
    message = "--lora.rank was 16, is 8, --train.seed was 42, is 7" if changed else "has an adapter and no checkpoint"
    assert message in capsys.readouterr().err
    assert weights(run) == weights(finished)


@pytest.mark.parametrize("began", [True, False])
def test_a_restart_resumes_only_what_its_launch_began(
    began: bool,
    arguments: list[str],
    finished: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    shutil.rmtree(run.checkpoint(6))
    shutil.rmtree(run.adapter)
    if not began:
        run.config.write_text(json.dumps({**json.loads(run.config.read_text()), "launch": ["another:1:2.00"]}))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main([*arguments, "--out", str(run.root)]) == (0 if began else 2)
    if began:
        assert weights(run) == weights(finished)
    else:
        assert "holds another run: add --resume" in capsys.readouterr().err
        assert complete_checkpoints(run) == [2, 4]


def test_copies_of_checkpoints_under_other_names_neither_count_nor_are_deleted(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    (run.checkpoint(6) / "COMPLETE").unlink()
    copies = (
        "step-2",
        "step-000009.bak",
        "step-000004-mine",
        "step-0000009",
        "step-",
        "step-x",
        "STEP-000009",
        "latest",
    )
    for number, name in enumerate(copies):
        shutil.copytree(run.checkpoint(2 + number % 2 * 2), run.checkpoints / name)
    (run.checkpoints / "step-000004-mine" / "COMPLETE").unlink()
    assert main([*arguments, "--train.keep-checkpoints", "1", "--resume", "--out", str(run.root)]) == 0
    assert {path.name for path in run.checkpoints.iterdir()} == {*copies, "step-000006"}
    assert weights(run) == weights(finished)


def test_accumulation_and_clipping_from_the_environment_change_no_bit(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1000")
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.001")
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    assert weights(run) == weights(finished)


def test_a_resume_in_another_precision_is_recorded(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    shutil.rmtree(run.checkpoint(6))
    config = json.loads(run.config.read_text())
    config["world"]["precision"] = "another"
    run.config.write_text(json.dumps(config))
    assert main([*arguments, "--resume", "--out", str(run.root)]) == 0
    assert "what was trained in another" in caplog.text
    (earlier,) = json.loads(run.config.read_text())["earlier_worlds"]
    assert (earlier["precision"], earlier["until_step"]) == ("another", 4)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_message_and_no_checkpoint_of_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--train.learning-rate", "1e30", "--out", str(run.root)]) == 1
    assert "--train.learning-rate" in capsys.readouterr().err
    assert not run.adapter.exists()
    # The first step has a learning rate of 0, so step 2 may still have a finite loss.
    assert len(complete_checkpoints(run)) <= 1


def test_overwrite_replaces_a_run_but_not_before_the_new_one_can_start(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    assert main([*arguments, "--overwrite", "--model.name", str(tmp_path / "typo"), "--out", str(run.root)]) == 2
    assert weights(run) == weights(finished)
    assert main([*arguments, "--overwrite", "--train.max-steps", "2", "--out", str(run.root)]) == 0
    assert complete_checkpoints(run) == [2]


def test_merge_writes_a_plain_gpt2_that_generates_what_the_run_generates(
    finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", str(finished.root), str(merged)]) == 0
    settings = ["--decode.max-new-tokens", "8", "--decode.ngram-scope", "all", "--device", "cpu"]
    capsys.readouterr()
    assert main(["generate", str(finished.root), "name[Larkspur], food[Greek]", *settings]) == 0
    ours = capsys.readouterr().out.strip()
    tokenizer, model = AutoTokenizer.from_pretrained(merged), GPT2LMHeadModel.from_pretrained(merged)
    assert model.config.resid_pdrop == 0  # the base's; the training had 0.1
    prompt = tokenizer("name[Larkspur], food[Greek] <|ref|>", return_tensors="pt")
    beam = {"num_beams": 10, "length_penalty": 0.9, "no_repeat_ngram_size": 4, "early_stopping": True}
    tokens = model.generate(**prompt, **beam, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id)
    expected = tokenizer.decode(tokens[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    assert ours == expected.strip()
    assert main(["merge", str(finished.root), str(merged)]) == 2  # it exists already


def test_a_run_stores_its_settings(finished: RunDir, tmp_path: Path) -> None:
    settings = read_settings(finished)
    assert (settings.lora.rank, settings.train.epochs, settings.train.checkpoint_steps) == (16, 2, 2)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_settings(RunDir(tmp_path))


def test_tensorboard_has_the_losses_of_metrics_jsonl(arguments: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--train.tracker", "tensorboard", "--out", str(run.root)]) == 0
    events = EventAccumulator(str(run.root / "lora_dist"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in rows(run) if "loss" in row}, rel=1e-6)


def test_a_profile_changes_nothing_and_names_the_operations(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "SKIPPED", 0)
    monkeypatch.setattr(profiler, "PROFILED", 2)
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--train.profile", "--out", str(run.root)]) == 0
    assert weights(run) == weights(finished)
    assert "aten::addmm" in run.profile_table.read_text()
    events = json.loads(run.profile_trace.read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::softmax"]
    assert len(products) == 2 * 2  # one per layer and step
