"""The example of docs/data.md: a corpus that is not E2E, from training to report."""

import json
import re
from pathlib import Path

import pytest
from launching import call_here

pytestmark = pytest.mark.launched

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_documented_corpus_is_trained_decoded_scored_and_reported_as_not_e2e(
    tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hotels, run = tmp_path / "hotels", tmp_path / "run"
    hotels.mkdir()
    files = re.findall(r"`hotels/(\w+\.csv)`:\n\n```csv\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in files] == ["trainset.csv", "devset.csv", "testset_w_refs.csv"]
    for name, text in files:
        (hotels / name).write_text(text, encoding="utf-8")
    options = ["--model.name", tiny_gpt2, "--train.max-steps", 2, "--decode.max-new-tokens", 8, "--device", "cpu"]
    assert call_here("run", "improved", "--data.dir", hotels, "--out", run, *options) == 0
    printed = capsys.readouterr().out
    assert "  test set: own data, not comparable with scores on E2E" in printed
    reason = json.loads((run / "scores.json").read_text())["slot_error_rate"]["reason"]
    assert f"no slot error rate: {reason}" in printed
    signature = json.loads((run / "decode" / "signature.json").read_text())
    assert (signature["corpus"], signature["official_test_set"]) == ("own data", False)
    report = (run / "report.md").read_text()
    assert "the test set is own data, not E2E's, so published scores are left out" in report
    assert f"- No slot error rate: {reason}\n" in report.split("## Table 1")[0]
    assert "paper |" not in report.split("## Table 1")[0]
    card = (run / "adapter" / "README.md").read_text()
    assert "for own data" in card
    assert "tuetschek" not in card
