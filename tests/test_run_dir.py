from pathlib import Path

from lora_dist.run_dir import RunDir


def test_file_names_are_those_of_the_design() -> None:
    out = RunDir(Path("OUT"))
    assert [path.as_posix() for path in (out.config, out.metrics, out.adapter, out.checkpoint(500))] == [
        "OUT/config.json",
        "OUT/metrics.jsonl",
        "OUT/adapter",
        "OUT/checkpoints/step-000500",
    ]
    assert [path.as_posix() for path in (out.outputs, out.outputs_text, out.references_text, out.scores)] == [
        "OUT/decode/outputs.jsonl",
        "OUT/decode/outputs.txt",
        "OUT/decode/references.txt",
        "OUT/scores.json",
    ]
    assert [path.as_posix() for path in (out.report_markdown, out.report_html)] == ["OUT/report.md", "OUT/report.html"]
