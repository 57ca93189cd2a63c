"""The comparison of two runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import MRS, TEXTS, made_run

from lora_dist.errors import UserError
from lora_dist.presets import IMPROVED
from lora_dist.report.compare import compare

pytestmark = [pytest.mark.launched, pytest.mark.usefixtures("scored_once")]


def test_a_comparison_has_the_settings_scores_and_sentences_that_differ(tmp_path: Path) -> None:
    other = replace(IMPROVED, decode=replace(IMPROVED.decode, length_penalty=0.8))
    changed = (TEXTS[0], "Blue Spice is a coffee shop by the river in the city.", TEXTS[2])
    text = compare(made_run(tmp_path / "a"), made_run(tmp_path / "b", other, texts=changed))
    assert "| --decode.length-penalty | 0.9 | 0.8 |" in text
    assert "--train." not in text
    assert "## Sentences that differ: 1 of 3" in text
    assert f"| 1 | {MRS[1]} | {TEXTS[1]} | {changed[1]} |" in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    first, second, difference = map(float, rows["BLEU"][:3])
    assert difference == pytest.approx(second - first, abs=2e-4)


def test_a_version_that_one_run_lacks_is_a_difference(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / "a"), made_run(tmp_path / "b")]
    signature = json.loads(runs[1].decode_signature.read_text())
    signature["versions"]["deepspeed"] = "0.19"
    runs[1].decode_signature.write_text(json.dumps(signature))
    assert "| version of deepspeed | None | 0.19 |" in compare(*runs)


def test_runs_with_different_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have different references"):
        compare(made_run(tmp_path / "a"), made_run(tmp_path / "b", texts=TEXTS[:2], mrs=MRS[:2]))
