"""Two processes whose steps are captured, with a stand-in for the graphs, compared with two eager ones."""

import json
import re
from pathlib import Path

import pytest
from launching import ROOT, assert_same_training, attempt, before_all_else, launcher, metrics, train_arguments

pytestmark = pytest.mark.launched

STAND_IN = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import recorded_graph
recorded_graph.use_stand_in()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captured")


@pytest.fixture(scope="module")
def arguments(tiny_gpt2: Path, corpus: Path) -> list[object]:
    """Two micro-batches per step, clipping, and dropout; of the last batch of an epoch, one rank has no example."""
    own = ("--train.accumulation-steps", 2, "--model.dropout", 0.1, "--lora.dropout", 0.1)
    return [*train_arguments(tiny_gpt2, corpus)[:-4], *own]


@pytest.fixture(scope="module")
def eager(arguments: list[object], folder: Path) -> Path:
    done = train("ddp.yaml", arguments, folder / "eager", "--train.cuda-graphs", "off")
    assert "steps run eagerly, without CUDA graphs: --train.cuda-graphs is off" in done
    return folder / "eager"


def train(config: str, arguments: list[object], out: Path, *others: str) -> str:
    """Train in two processes with the stand-in, and return what they print."""
    variables = before_all_else(out.parent, STAND_IN)
    done = attempt("train", *arguments, *others, "--out", out, launcher=launcher(config), **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["world"]["processes"] == 2
    return done.stderr


# By default, one process is tested, in tests/training/test_captured.py.
@pytest.mark.slow
def test_captured_steps_under_ddp_give_the_bytes_of_eager_ones(
    arguments: list[object], folder: Path, eager: Path
) -> None:
    run = folder / "ddp"
    assert re.search(r"captured \d+ CUDA graphs", train("ddp.yaml", arguments, run))
    for key in ("loss", "dev_loss"):
        assert metrics(run, key) == metrics(eager, key)
    file = Path("adapter") / "adapter_model.safetensors"
    assert (run / file).read_bytes() == (eager / file).read_bytes()


@pytest.mark.slow
def test_captured_steps_under_zero2_train_what_eager_ones_train_under_ddp(
    arguments: list[object], folder: Path, eager: Path
) -> None:
    assert re.search(r"captured \d+ CUDA graphs", train("zero2.yaml", arguments, folder / "zero2"))
    assert_same_training(folder / "zero2", eager)
