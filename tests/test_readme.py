"""Every command in the README and the docs can be parsed, and names files that exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest

from lora_dist.cli import arguments, bench
from lora_dist.cli.main import COMMANDS
from lora_dist.cli.parsing import parse, parse_with_preset
from lora_dist.config import Settings
from lora_dist.workflows.settings import ReproduceCommand

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLAIN = {
    "decode": arguments.DecodeCommand,
    "score": arguments.ScoreCommand,
    "report": arguments.ReportCommand,
    "generate": arguments.GenerateCommand,
    "merge": arguments.MergeCommand,
    "verify": arguments.VerifyCommand,
    "reproduce": ReproduceCommand,
    "doctor": arguments.DoctorCommand,
    "demo": arguments.DemoCommand,
}
WITH_PRESET = {
    "run": arguments.TrainCommand,
    "train": arguments.TrainCommand,
    "sweep": arguments.SweepCommand,
    "plan": arguments.PlanCommand,
}
BENCH = {"decode": bench.BenchDecodeCommand, "score": bench.BenchScoreCommand, "scaling": bench.BenchScalingCommand}


def commands(page: Path) -> Iterator[str]:
    """The lines of code blocks, continued ones joined, and inline code, that call the package or its scripts."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    for line in (*lines, *inline):
        command = line.removeprefix("$ ").strip()
        if re.match(r"(lora-dist|accelerate launch|torchrun|bash launch/|sbatch) ", command):
            yield command


def check(words: Sequence[str]) -> None:
    """Parse the arguments after `lora-dist`."""
    name, rest = words[0], list(words[1:])
    assert name in COMMANDS, name
    if name in WITH_PRESET:
        if rest and rest[0] != "PRESET":
            parse_with_preset(WITH_PRESET[name], name, "", rest)
    elif name == "bench":
        if rest and rest[0] == "train":
            parse_with_preset(bench.BenchTrainCommand, "bench train", "", rest[1:] or ["baseline"])
        elif rest:
            parse(BENCH[rest[0]], f"bench {rest[0]}", rest[1:])
    elif rest or name in ("reproduce", "doctor", "demo", "verify"):
        parse(PLAIN[name], name, rest)


CASES = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands(page))]


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{page}: {command[:60]}" for page, command in CASES])
def test_a_documented_command_is_understood(page: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("...", "--help")]
    if re.search(r"\{|\bARGUMENTS\b", command):
        pytest.skip("shows the form of a command, not one")
    for option, word in pairwise(words):
        if option == "--config_file" or (option in ("bash", "sbatch") and word.startswith("launch/")):
            assert (ROOT / word).is_file(), word
    if words[0] == "lora-dist":
        check(words[1:])
    elif "-m" in words and words[words.index("-m") + 1] == "lora_dist":
        check(words[words.index("-m") + 2 :])
    elif "demo.sh" in command or "test.sh" in command or "reproduce.sh" in command:
        return
    elif words[0] in ("bash", "sbatch"):
        script = next(index for index, word in enumerate(words) if word.startswith("launch/"))
        if rest := words[script + 1 :]:
            check(["run", *rest])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_setting_and_extra_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    settings = Settings()
    for section, name in re.findall(r"--(model|lora|data|train|decode)\.([a-z][a-z-]*)", text):
        assert name.removeprefix("no-").replace("-", "_") in {f.name for f in fields(getattr(settings, section))}, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"lora-dist\[([a-z]+)\]", text)) <= set(project["optional-dependencies"])


def test_commands_are_found() -> None:
    assert len(CASES) > 10
