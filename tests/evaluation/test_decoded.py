"""What a run decoded, and what is said if its files are damaged."""

from pathlib import Path

import pytest
from damage import REWRITES, Rewrite
from made_runs import MRS, TEXTS, made_run

from lora_dist.errors import UserError
from lora_dist.evaluation.decoded import read_decoded, read_decoding


def test_the_outputs_of_a_run_have_its_mrs(tmp_path: Path) -> None:
    instances, hashes = read_decoded(made_run(tmp_path / "run"))
    assert (instances.sources, instances.outputs) == (list(MRS), list(TEXTS))
    assert set(hashes) == {"references", "outputs"}


@pytest.mark.parametrize("damage", REWRITES)
@pytest.mark.parametrize("name", ["outputs", "outputs_text", "references_text"])
def test_damaged_outputs_are_refused_with_the_command_that_writes_them_again(
    name: str, damage: Rewrite, tmp_path: Path
) -> None:
    run = made_run(tmp_path / "run")
    file: Path = getattr(run, name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"{file.name}.*; lora-dist decode {run.root} writes the files"):
        read_decoded(run)


@pytest.mark.parametrize("damage", REWRITES)
def test_a_damaged_signature_is_refused_with_the_command_that_writes_it_again(damage: Rewrite, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    run.decode_signature.write_bytes(damage(run.decode_signature.read_bytes()))
    with pytest.raises(UserError, match=rf"has not been decoded \(lora-dist decode {run.root}\)"):
        read_decoding(run)
