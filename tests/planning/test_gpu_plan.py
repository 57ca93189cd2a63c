"""The plan of a training on a GPU, made where there may be none."""

import json
from pathlib import Path
from typing import Any

from lora_dist.cli.main import main


def test_a_plan_for_a_gpu_has_the_graphs_of_the_strategies_that_are_captured(
    corpus: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    def plan(device: str, *arguments: str) -> dict[str, Any]:
        settings = ["--model.name", str(tiny_gpt2), "--data.dir", str(corpus), "--device", device, *arguments]
        assert main(["plan", "baseline", *settings, "--json", str(tmp_path / "plan.json")]) == 0
        found: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
        return found

    gpu, off, cpu = plan("cuda"), plan("cuda", "--train.cuda-graphs", "off"), plan("cpu")
    captured = {name for name, memory in gpu["memory"].items() if memory["graphs"]}
    assert captured == {"single", "zero1", "zero2"}
    assert gpu["memory"]["single"]["graphs"] == 4 * gpu["trainable"]
    assert not any(memory["graphs"] for plan in (off, cpu) for memory in plan["memory"].values())
    assert [any("CUDA graphs" in note for note in plan["notes"]) for plan in (gpu, off, cpu)] == [True, False, False]
