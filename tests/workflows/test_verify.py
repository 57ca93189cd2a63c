"""The command that proves that every way to train gives the same result: it must find a difference where one is."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from launching import before_all_else
from safetensors.torch import load_file, save_file

from lora_dist.cli.main import main
from lora_dist.config import DataSettings, ModelSettings, Settings
from lora_dist.distributed.device import devices_for, has_bf16
from lora_dist.distributed.launcher import STRATEGIES
from lora_dist.run_dir import RunDir
from lora_dist.workflows import verify
from lora_dist.workflows.verify import cases_here, write_inputs
from lora_dist.workflows.verify_case import Case, compare, train_and_decode

pytestmark = pytest.mark.launched
FEW_STEPS = 8  # two epochs of three steps, and a part of the third


@contextmanager
def few_steps() -> Iterator[None]:
    """Let `verify` make fewer steps and sentences than its users want to see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "STEPS", FEW_STEPS)
        patch.setattr(verify, "TEST_MRS", 4)
        yield


@pytest.fixture(scope="module")
def reference(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("verify")
    run = RunDir(folder / "reference")
    with few_steps():
        settings = write_inputs(folder, ModelSettings(name=str(tiny_gpt2)), None)
    assert train_and_decode(Case(None), settings, run, devices_for(2)) is None
    return run


def test_cases_are_all_strategies_with_all_world_sizes_and_a_batch_that_does_not_divide_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [str(case) for case in cases_here([2, 4], [1, 2])]
    strategies = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
    in_bf16 = ["ddp, 2 x 1, bf16", "ddp, 4 x 1, bf16"] if has_bf16(torch.device("cpu")) else []
    in_fp32 = [
        "single, 1 x 2",
        "single, 1 x 1, 3 together",
        *(f"{s}, {p} x {a}" for s in strategies for p in (2, 4) for a in (1, 2)),
    ]
    assert found == in_fp32 + in_bf16
    assert main(["verify", "--processes", "3"]) == 2
    assert "does not divide among 3 processes" in capsys.readouterr().err


def test_the_reference_logs_every_step_of_epochs_with_the_same_examples(reference: RunDir) -> None:
    rows = [json.loads(line) for line in reference.metrics.read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == list(range(1, FEW_STEPS + 1))
    samples = [row["samples"] for row in trained]
    assert sum(samples[:3]) == sum(samples[3:6])  # each epoch has the same examples, in another order
    assert samples[0] != samples[3]
    assert compare(reference, reference).is_rounding("fp32")
    assert compare(reference, reference).adapter == 0


def rewrite_adapter(run: RunDir) -> None:
    file = run.adapter / "adapter_model.safetensors"
    state = load_file(file)
    first = next(iter(state))
    save_file({**state, first: state[first] * (1 + 1e-3)}, file)


def rewrite_row(key: str, value: Callable[[float], float]) -> Callable[[RunDir], None]:
    def rewrite(run: RunDir) -> None:
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        row = next(row for row in rows if key in row)
        row[key] = value(row[key])
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return rewrite


def drop_last_step(run: RunDir) -> None:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] < FEW_STEPS))


def rewrite_sentence(run: RunDir) -> None:
    run.outputs_text.write_text("Nothing. " + run.outputs_text.read_text())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (rewrite_adapter, "adapter"),
        (rewrite_row("loss", lambda loss: loss + 1e-3), "loss"),
        (rewrite_row("dev_loss", lambda loss: loss + 1e-3), "loss"),
        (rewrite_row("lr", lambda rate: rate + 1e-9), "learning_rates"),
        (rewrite_row("samples", lambda number: number + 1), "samples"),
        (drop_last_step, "samples"),
        (rewrite_sentence, "sentences"),
    ],
)
def test_every_kind_of_difference_is_found(
    change: Callable[[RunDir], None], field: str, reference: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(reference.root, run.root)
    change(run)
    difference = compare(run, reference)
    assert not difference.is_rounding("fp32")
    assert getattr(difference, field) > 0
    assert change is drop_last_step or math.isfinite(difference.loss)


# By default, the comparison is tested with runs that were changed afterwards.
@pytest.mark.slow
def test_a_rank_that_skips_an_example_differs_in_the_table(
    tiny_gpt2: Path,
    reference: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def only_the_case(case: Case, settings: Settings, run: RunDir, devices: Mapping[str, str]) -> str | None:
        if case != Case(None):
            return train_and_decode(case, settings, run, devices)
        shutil.copytree(reference.root, run.root)  # it is the same in every call
        return None

    monkeypatch.setattr(verify, "train_and_decode", only_the_case)
    cases = [Case(None, 1, 2)]
    monkeypatch.setattr(verify, "cases_here", lambda *_: cases)
    command = ["verify", "--model", str(tiny_gpt2)]
    with few_steps():
        assert main(command) == 0
    assert "1 of 1 are the same" in capsys.readouterr().out
    cases[:] = [Case(STRATEGIES["ddp"], 2, 1)]  # test_launch.py shows that it is the same without what follows
    code = """
        import lora_dist.data.sampler as sampler
        original = sampler.micro_batches
        sampler.micro_batches = lambda *a: [part[:2] for part in original(*a)]
    """
    for name, value in before_all_else(tmp_path, code, rank=1).items():
        monkeypatch.setenv(name, value)
    with few_steps():
        assert main(command) == 1
    table = capsys.readouterr().out
    assert "DIFFERS" in table
    assert "0 of 1 are the same" in table


@pytest.mark.slow
def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", str(tmp_path / "typo")]) == 2
    message = capsys.readouterr().err
    assert f"one process cannot train here, see lora-dist doctor: --model.name {tmp_path / 'typo'} cannot" in message


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(3600)
def test_all_strategies_world_sizes_and_accumulations_agree_on_real_data(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of errors: GPT-2's tokens, E2E's examples, 20 steps, global batch 16."""
    model, data = ModelSettings(name=str(shared / "mini-gpt2")), DataSettings(dir=shared / "e2e")
    settings = write_inputs(tmp_path, model, data)
    cases = list(cases_here([2, 4], [1, 2, 4]))
    references = {case.precision: RunDir(tmp_path / f"reference-{case.precision}") for case in cases}
    for precision, reference in references.items():
        assert train_and_decode(Case(None, precision=precision), settings, reference, devices_for(4)) is None
    found = {}
    for number, case in enumerate(cases):
        run = RunDir(tmp_path / str(number))
        assert train_and_decode(case, settings, run, devices_for(4)) is None
        found[case] = compare(run, references[case.precision])
    with capsys.disabled():
        print("\nrelative error of the adapter and of the losses after 20 steps, processes x accumulation steps")
        for name, difference in found.items():
            print(f"{name!s:<24}{difference.adapter:10.1e}{difference.loss:10.1e}")
    assert len(found) == 32 + 2 * ("bf16" in references)
    assert all(difference.is_rounding(case.precision) for case, difference in found.items())
