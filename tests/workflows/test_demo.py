from pathlib import Path

import pytest

from lora_dist.cli.main import main


@pytest.mark.parametrize("name", ["corpus/trainset.csv", "base/config.json", "run/config.json", "demo/notes.txt"])
def test_a_demo_overwrites_nothing_that_is_not_a_demos(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} is not empty and holds no demo: name another folder" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]
