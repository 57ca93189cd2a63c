import json
from pathlib import Path

import pytest

from lora_dist.bench import scaling, score
from lora_dist.cli import main
from lora_dist.demo_corpus import write_corpus

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


def test_scoring_beside_the_official_script(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_scaling_of_two_processes(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "ROUNDS", 1)
    rows = tmp_path / "rows.json"
    settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--updates", "3", "--json", str(rows)]
    assert main(["bench", "scaling", *settings, "--precision", "fp32"]) == 0
    one, two, update, communication, waiting = json.loads(rows.read_text())
    assert one["ratio"] == 1
    assert two["ratio"] == pytest.approx(two["value"] / one["value"], rel=1e-2)
    assert update["value"] == pytest.approx(8e3 / two["value"], rel=1e-2)
    assert 0 < communication["value"] < update["value"]
    assert waiting["value"] >= 0
    assert main(["bench", "scaling", *settings, "--train.global-batch-size", "7"]) == 2


def test_what_can_go_wrong(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["bench", "score", "--data.dir", str(corpus), "--official", str(tmp_path)]
    assert main(start) == 2
    assert "has no measure_scores.py" in capsys.readouterr().err
    (tmp_path / "measure_scores.py").write_text("raise SystemExit('perl is missing')")
    assert main(start) == 2
    assert "measure_scores.py failed with exit code 1: perl is missing" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert "lora-dist bench score" in capsys.readouterr().err
