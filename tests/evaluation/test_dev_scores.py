"""Dev scores by generation while training: those of `decode`, without effect on the training, and a choice of epoch."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import complete_checkpoints
from small_training import small_training

from lora_dist.cli.main import main
from lora_dist.config import DataSettings
from lora_dist.config_io import read_config
from lora_dist.data.e2e import FILES, Example, group_by_mr, load_split, write_csv
from lora_dist.decoding import decoder
from lora_dist.decoding.beam_search import beam_search
from lora_dist.errors import INTERRUPTED, UserError
from lora_dist.evaluation import dev_scores
from lora_dist.evaluation.scoring import score_run
from lora_dist.metrics import suite
from lora_dist.metrics.suite import METRICS
from lora_dist.model.adapter import ADAPTER_FILES
from lora_dist.run_dir import RunDir

pytestmark = [pytest.mark.launched, pytest.mark.usefixtures("scored_once")]
SCORED = ("--train.score-dev", "epoch")
BEST = (*SCORED, "--train.select", "best")
NAMES = tuple(f"dev_{metric}" for metric in METRICS)
FEW = ("--decode.num-beams", "2", "--decode.max-new-tokens", "12")


@pytest.fixture(scope="module")
def corpus(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 20 training and 4 dev MRs, whose dev references are sentences of the three epochs' adapters.

    The scores of the epochs then differ, and are those of texts with something in common. The training does not depend
    on the dev set.
    """
    folder = Path(arguments[arguments.index("--data.dir") + 1])
    with pytest.MonkeyPatch.context() as patch:
        epochs = given(patch, 0.0, 0.0, 0.0)
        assert main([*arguments, *SCORED, "--out", str(tmp_path_factory.mktemp("first") / "run")]) == 0
    examples = load_split(DataSettings(dir=folder), "dev")
    mrs = [group.mr for group in group_by_mr(examples)]
    texts = {mr: epochs[(0, 0, 1, 2)[number]][number] for number, mr in enumerate(mrs)}
    write_csv(folder / FILES["dev"], [Example(e.mr, texts[e.mr] or "nothing") for e in examples])
    return folder


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training with dropout of 9 steps, three epochs of 3, on 20 examples."""
    corpus = tmp_path_factory.mktemp("dev-scores") / "corpus"
    changed: dict[str, object] = {"--train.epochs": 3, "--train.learning-rate": 5e-2, "--train.warmup-steps": 1}
    return [*small_training(tiny_gpt2, corpus, changed), *FEW]


@pytest.fixture(scope="module")
def finished(arguments: list[str], corpus: Path, tmp_path_factory: pytest.TempPathFactory, scored_once: None) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    assert main([*arguments, *SCORED, "--out", str(run.root)]) == 0
    return run


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def rows(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def scores(run: RunDir) -> list[tuple[Any, ...]]:
    """The step and the scores of each epoch, as logged."""
    return [(row["step"], *(row.get(name) for name in NAMES)) for row in rows(run) if "dev_loss" in row]


def given(monkeypatch: pytest.MonkeyPatch, *bleus: float) -> list[Sequence[str]]:
    """Give the epochs these values of BLEU, and return a list to which the outputs of each scoring are added."""
    remaining, scored = iter(bleus), list[Sequence[str]]()

    def score(_: Sequence[Sequence[str]], outputs: Sequence[str]) -> dict[str, float]:
        scored.append(outputs)
        return {"BLEU": next(remaining), "NIST": 1.0}

    monkeypatch.setattr(dev_scores, "score_outputs", score)
    return scored


def interrupt(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Send SIGTERM to this process in the search of chunk `chunk` (from 1)."""
    searched = []

    def search(*parameters: Any) -> Any:
        searched.append(1)
        if len(searched) == chunk:
            os.kill(os.getpid(), signal.SIGTERM)
        return beam_search(*parameters)

    monkeypatch.setattr(decoder, "beam_search", search)


def test_the_scores_are_those_of_the_dev_set_decoded_by_decode_with_the_epochs_adapter(
    finished: RunDir, tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    swapped = tmp_path / "corpus"
    shutil.copytree(corpus, swapped)
    shutil.copyfile(corpus / FILES["dev"], swapped / FILES["test"])
    texts = set()
    for epoch, logged in enumerate(scores(finished), start=1):
        run = RunDir(tmp_path / f"run-{epoch}")
        command = ["decode", str(finished.epoch(epoch)), "--model.name", str(tiny_gpt2), "--data.dir", str(swapped)]
        assert main([*command, *FEW, "--device", "cpu", "--out", str(run.root)]) == 0
        found = score_run(run)
        assert logged == (3 * epoch, *(found[metric] for metric in METRICS))
        texts.add(run.outputs_text.read_text())
    assert len(texts) == 3
    assert len({logged[1] for logged in scores(finished)}) == 3


def test_scoring_changes_no_bit_of_the_training(arguments: list[str], finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    assert not run.epoch(1).parent.exists()
    assert weights(run.adapter) == weights(finished.adapter) == weights(finished.epoch(3))
    names = ("step", "loss", "lr", "samples", "dev_loss", "dev_nll")
    assert [[row.get(name) for name in names] for row in rows(run)] == [
        [row.get(name) for name in names] for row in rows(finished)
    ]
    assert all(name not in row for row in rows(run) for name in NAMES)
    assert "selection" not in read_config(run)


def test_the_search_has_torchs_default_kernels_and_the_training_keeps_its_own(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, 0.1)
    found = []

    def search(*parameters: Any) -> Any:
        attention = torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        found.append((torch.are_deterministic_algorithms_enabled(), attention))
        return beam_search(*parameters)

    monkeypatch.setattr(decoder, "beam_search", search)
    assert main([*arguments, *SCORED, "--train.epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert found == [(False, True)]


@pytest.mark.parametrize(
    ("bleus", "best"),
    [((0.2, 0.3, 0.1), 2), ((0.3, 0.3, 0.2), 1), pytest.param((0.1, 0.2, 0.3), 3, marks=pytest.mark.slow)],
)
def test_the_best_epochs_adapter_is_the_runs_and_of_equal_ones_the_earliers(
    bleus: tuple[float, ...],
    best: int,
    arguments: list[str],
    finished: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given(monkeypatch, *bleus)
    run = RunDir(tmp_path / "run")
    assert main([*arguments, *BEST, "--out", str(run.root)]) == 0
    assert [weights(run.epoch(n)) for n in (1, 2, 3)] == [weights(finished.epoch(n)) for n in (1, 2, 3)]
    for name in ADAPTER_FILES:
        assert (run.adapter / name).read_bytes() == (run.epoch(best) / name).read_bytes()
    assert read_config(run)["selection"] == {
        "epoch": best,
        "step": 3 * best,
        "dev_scores": [{"epoch": n, "step": 3 * n, "BLEU": bleu, "NIST": 1.0} for n, bleu in enumerate(bleus, 1)],
    }


def test_the_last_epoch_is_recorded_with_the_scores_of_all(finished: RunDir) -> None:
    selection = read_config(finished)["selection"]
    assert (selection["epoch"], selection["step"]) == (3, 9)
    assert [tuple(row[name] for name in ("step", *METRICS)) for row in selection["dev_scores"]] == scores(finished)


def test_selecting_without_dev_scores_is_refused_in_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--train.select", "best", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "--train.select is best: this needs dev scores, add --train.score-dev epoch" in error
    assert not (tmp_path / "run").exists()


def test_a_dev_set_whose_sentences_may_not_fit_is_refused_before_anything_is_deleted(
    arguments: list[str], finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    long = ("--decode.max-new-tokens", "500", "--overwrite")
    assert main([*arguments, *SCORED, *long, "--out", str(run.root)]) == 2
    assert "--decode.max-new-tokens" in capsys.readouterr().err
    assert weights(run.adapter) == weights(finished.adapter)


@pytest.mark.parametrize("killed_after", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 8))])
def test_a_killed_run_is_resumed_to_the_same_scores_and_selection(
    killed_after: int, arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs before the checkpoint are not scored again."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    shutil.rmtree(run.adapter)
    for step in complete_checkpoints(run):
        if step > killed_after:
            (run.checkpoint(step) / "COMPLETE").unlink()
    scored, score = [], dev_scores.score_outputs

    def counted(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> dict[str, float]:
        scored.append(outputs)
        return score(references, outputs)

    monkeypatch.setattr(dev_scores, "score_outputs", counted)
    assert main([*arguments, *SCORED, "--resume", "--out", str(run.root)]) == 0
    assert len(scored) == 3 - killed_after // 3
    assert scores(run) == scores(finished)
    assert weights(run.adapter) == weights(finished.adapter)
    assert read_config(run)["selection"] == read_config(finished)["selection"]


@pytest.mark.parametrize(
    ("chunk", "step"),
    [(2, 3), (12, 9), *(pytest.param(*at, marks=pytest.mark.slow) for at in ((4, 3), (6, 6)))],
)
def test_a_signal_while_decoding_ends_the_training_with_a_checkpoint_and_the_epoch_is_scored_after_resuming(
    chunk: int,
    step: int,
    arguments: list[str],
    finished: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(tmp_path / "run")
    single = ("--decode.batch-tokens", "1")  # four chunks of one MR
    with monkeypatch.context() as patch:
        interrupt(patch, chunk)
        assert main([*arguments, *SCORED, *single, "--out", str(run.root)]) == INTERRUPTED
    assert f"SIGTERM ended the training after step {step} of 9" in capsys.readouterr().err
    assert complete_checkpoints(run)[-1] == step
    assert [row[0] for row in scores(run)] == list(range(3, step, 3))
    assert not run.adapter.exists()
    assert main([*arguments, *SCORED, *single, "--resume", "--out", str(run.root)]) == 0
    assert scores(run) == scores(finished)
    assert weights(run.adapter) == weights(finished.adapter)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_while_scoring_ends_the_training_and_the_scores_are_kept(
    epoch: int, arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    scored, score = [], dev_scores.score_outputs

    def interrupted(references: Sequence[Sequence[str]], outputs: Sequence[str]) -> dict[str, float]:
        scored.append(outputs)
        if len(scored) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(references, outputs)

    monkeypatch.setattr(dev_scores, "score_outputs", interrupted)
    assert main([*arguments, *BEST, "--out", str(run.root)]) == INTERRUPTED
    assert complete_checkpoints(run)[-1] == 3 * epoch
    assert scores(run) == scores(finished)[:epoch]
    assert not run.adapter.exists()
    assert main([*arguments, *BEST, "--resume", "--out", str(run.root)]) == 0
    assert scores(run) == scores(finished)
    assert len(scored) == 3


def test_an_epoch_that_was_evaluated_without_scores_gets_them_on_resuming_with_them(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    assert main([*arguments, "--out", str(run.root)]) == 0
    assert main([*arguments, *SCORED, "--resume", "--out", str(run.root)]) == 0
    empty = (None,) * len(METRICS)
    assert scores(run) == [(3, *empty), (6, *empty), scores(finished)[-1]]
    assert len(read_config(run)["selection"]["dev_scores"]) == 1


def test_settings_of_the_decoding_may_change_on_resuming_unless_an_epoch_is_selected_by_it(
    arguments: list[str], finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    given(monkeypatch, 0.2, 0.3, 0.1)
    last, best = RunDir(tmp_path / "last"), RunDir(tmp_path / "best")
    shutil.copytree(finished.root, last.root)
    other = ("--decode.num-beams", "3")
    assert main([*arguments, *SCORED, *other, "--resume", "--out", str(last.root)]) == 0
    assert main([*arguments, *BEST, "--resume", "--out", str(last.root)]) == 2
    error = capsys.readouterr().err
    assert "--train.select was last, is best" in error
    assert "num-beams" not in error
    assert main([*arguments, *BEST, "--out", str(best.root)]) == 0
    assert main([*arguments, *BEST, *other, "--resume", "--out", str(best.root)]) == 2
    assert "--decode.num-beams was 2, is 3" in capsys.readouterr().err
    assert main([*arguments, *BEST, "--decode.limit", "3", "--resume", "--out", str(best.root)]) == 0


def test_a_checkpoint_made_before_there_was_a_selection_is_resumed(
    arguments: list[str], finished: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    for step in complete_checkpoints(run):
        file = run.checkpoint(step) / "state.json"
        state = json.loads(file.read_text())
        del state["recipe"]["--train.select"]
        file.write_text(json.dumps(state))
    assert main([*arguments, "--resume", "--out", str(run.root)]) == 0
    assert weights(run.adapter) == weights(finished.adapter)


def test_overwrite_deletes_the_epochs_too(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    assert main([*arguments, "--train.epochs", "1", "--overwrite", "--out", str(run.root)]) == 0
    assert not run.epoch(1).parent.exists()


def test_without_java_there_are_bleu_and_nist_and_the_training_goes_on(
    arguments: list[str], finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> dict[str, float]:
        raise UserError("METEOR and the tokenizer need Java")

    monkeypatch.setattr(suite, "score", fails)
    run = RunDir(tmp_path / "run")
    assert main([*arguments, *BEST, "--out", str(run.root)]) == 0
    assert [row[:3] for row in scores(run)] == [row[:3] for row in scores(finished)]
    assert all(row[3:] == (None,) * 3 for row in scores(run))


def test_tensorboard_has_the_dev_scores(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given(monkeypatch, 0.25, 0.5, 0.125)
    run = RunDir(tmp_path / "run")
    assert main([*arguments, *SCORED, "--train.tracker", "tensorboard", "--out", str(run.root)]) == 0
    events = EventAccumulator(str(run.root / "lora_dist"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("dev_BLEU")] == [(3, 0.25), (6, 0.5), (9, 0.125)]
    assert "dev BLEU 0.2500 after 3 steps" in capsys.readouterr().err
