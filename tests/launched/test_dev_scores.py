"""Dev scores by generation in several processes: those of one, and nothing lost by a signal or a kill."""

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import adapter, attempt, before_all_else, begin, call_here, finish, launcher, lora_dist, train_arguments
from launching import workers as workers_of

from lora_dist.config import DataSettings
from lora_dist.config_io import read_config
from lora_dist.data.e2e import FILES, Example, group_by_mr, load_split, write_csv
from lora_dist.errors import INTERRUPTED
from lora_dist.metrics.suite import METRICS
from lora_dist.run_dir import RunDir

pytestmark = pytest.mark.launched
BEST = ("--train.score-dev", "epoch", "--train.select", "best")
SIGNAL_TO_RANK_1 = """
import signal, time
from lora_dist.decoding.decoder import Decoder

sentences = Decoder.sentences

def search(self, prompts):
    if os.environ["LOCAL_RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # leave a chunk to rank 1
        time.sleep(1)
    return sentences(self, prompts)

Decoder.sentences = search
"""


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, corpus: Path) -> list[object]:
    """Two epochs of 3 steps; each MR of the dev set is a chunk."""
    few = ("--decode.num-beams", 2, "--decode.max-new-tokens", 8, "--decode.batch-tokens", 1)
    return ["train", *train_arguments(tiny_gpt2, corpus), *BEST, *few]


@pytest.fixture(scope="module")
def alone(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("alone") / "run")
    assert call_here(*arguments, "--out", run.root) == 0
    return run


def dev_rows(run: RunDir) -> list[dict[str, Any]]:
    """The steps, epochs and scores of the dev evaluations."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    names = ("step", "epoch", *(f"dev_{metric}" for metric in METRICS))
    return [{name: row[name] for name in names} for row in rows if "dev_loss" in row]


# By default, one process is tested, in tests/evaluation/test_dev_scores.py.
@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp.yaml", "zero3.yaml"])
def test_two_processes_give_the_scores_and_the_selection_of_one(
    config: str, arguments: list[object], alone: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    lora_dist(*arguments, "--out", run.root, launcher=launcher(config, 2))
    assert len(dev_rows(run)) == 2
    assert dev_rows(run) == dev_rows(alone)
    assert read_config(run)["selection"] == read_config(alone)["selection"]
    difference = (adapter(run.root) - adapter(alone.root)).norm() / adapter(alone.root).norm()
    assert difference < 1e-5


# By default, the signal comes to one process without a launcher, in tests/evaluation/test_dev_scores.py.
@pytest.mark.slow
def test_a_signal_to_one_process_while_decoding_ends_all_and_the_epoch_is_scored_after_resuming(
    arguments: list[object], alone: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    hooks = before_all_else(tmp_path, SIGNAL_TO_RANK_1)
    ended = attempt(*arguments, "--out", run.root, launcher=launcher("ddp.yaml", 2), **hooks)
    assert "SIGTERM ended the training after step 3 of 6" in ended.stderr
    assert f"exitcode  : {INTERRUPTED}" in ended.stderr  # the launcher may end the other rank while it ends itself
    assert dev_rows(run) == []
    lora_dist(*arguments, "--resume", "--out", run.root, launcher=launcher("ddp.yaml", 2))
    assert dev_rows(run) == dev_rows(alone)
    assert read_config(run)["selection"] == read_config(alone)["selection"]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1800)
def test_a_run_of_the_stand_in_killed_while_it_decodes_the_dev_set_resumes_to_the_same_scores(
    shared: Path, tmp_path: Path
) -> None:
    """With the first 80 MRs of the dev set and 10 of the test set, as all of them would take half an hour."""
    corpus = tmp_path / "corpus"
    shutil.copytree(shared / "e2e", corpus)
    write_csv(corpus / FILES["dev"], first_mrs(load_split(DataSettings(dir=corpus), "dev"), 80))
    settings = ("--model.name", shared / "mini-gpt2", "--data.dir", corpus, "--data.limit-train", 800)
    few = ("--train.epochs", 2, "--train.learning-rate", 2e-3, "--train.warmup-steps", 20, "--train.log-steps", 50)
    decoding = ("--decode.num-beams", 4, "--decode.max-new-tokens", 40, "--decode.limit", 10, "--device", "cpu")
    arguments = ("run", "improved", *settings, *few, "--train.checkpoint-steps", 60, *BEST, *decoding)
    undisturbed, killed = RunDir(tmp_path / "undisturbed"), RunDir(tmp_path / "killed")
    two = launcher("ddp.yaml", 2)
    finish_or_fail(begin(*arguments, "--out", undisturbed.root, launcher=two))
    process = begin(*arguments, "--out", killed.root, launcher=two)
    while not killed.epoch(2).is_dir():  # it is written right before the dev set is decoded the second time
        assert process.poll() is None
        time.sleep(0.2)
    for worker in workers_of(process):
        os.kill(worker.pid, signal.SIGKILL)
    finish(process)
    assert len(dev_rows(killed)) == 1
    finish_or_fail(begin(*arguments, "--resume", "--out", killed.root, launcher=two))
    assert dev_rows(killed) == dev_rows(undisturbed)
    assert read_config(killed)["selection"] == read_config(undisturbed)["selection"]
    assert (killed.adapter / "adapter_model.safetensors").read_bytes() == (
        undisturbed.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert dev_rows(undisturbed)[1]["dev_BLEU"] > 0.05


def first_mrs(examples: Sequence[Example], number: int) -> list[Example]:
    """The examples of the first MRs."""
    mrs = [group.mr for group in group_by_mr(examples)][:number]
    return [example for example in examples if example.mr in mrs]


def finish_or_fail(process: Any) -> None:
    output, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, output + errors
