"""Two processes whose steps are captured, with a stand-in for the graphs, compared with two eager ones."""

import json
from pathlib import Path

import pytest
import torch
from launching import ROOT, adapter, assert_same_training, attempt, before_all_else, launcher, metrics, train_arguments

pytestmark = pytest.mark.launched

STAND_IN = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import recorded_graph
recorded_graph.use_stand_in()
"""


def train(
    config: str, arguments: list[object], out: Path, variables: dict[str, str], graphs: str
) -> tuple[bytes, list[float]]:
    """The adapter's bytes and all losses of two processes."""
    extra = ("--train.cuda-graphs", graphs, "--out", out)
    done = attempt("train", *arguments, *extra, launcher=launcher(config), **variables)
    assert done.returncode == 0, done.stderr
    assert ("captured 10 CUDA graphs" in done.stderr) == (graphs == "auto"), done.stderr
    assert ("steps run eagerly, without CUDA graphs: --train.cuda-graphs is off" in done.stderr) == (graphs == "off")
    assert json.loads((out / "config.json").read_text())["world"]["processes"] == 2
    losses = metrics(out, "loss") + metrics(out, "dev_loss")
    return (out / "adapter" / "adapter_model.safetensors").read_bytes(), losses


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, corpus: Path) -> list[object]:
    """Two micro-batches per step, clipping, and dropout; of the last batch of an epoch, one rank has no example."""
    own = ("--train.accumulation-steps", 2, "--model.dropout", 0.1, "--lora.dropout", 0.1)
    return [*train_arguments(tiny_gpt2, corpus)[:-4], *own]


def test_captured_processes_under_ddp_and_zero_train_what_eager_ones_train(
    arguments: list[object], tmp_path: Path
) -> None:
    variables = before_all_else(tmp_path, STAND_IN)
    eager = train("ddp.yaml", arguments, tmp_path / "eager", variables, "off")
    assert train("ddp.yaml", arguments, tmp_path / "ddp", variables, "auto") == eager
    # ZeRO-2 averages in another order than DDP, but nothing else differs.
    train("zero2.yaml", arguments, tmp_path / "zero2", variables, "auto")
    assert_same_training(tmp_path / "zero2", tmp_path / "eager")
    assert not torch.equal(adapter(tmp_path / "zero2"), torch.zeros(1))
