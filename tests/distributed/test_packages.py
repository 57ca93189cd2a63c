from pathlib import Path

import pytest

from lora_dist.distributed.packages import is_installed


def test_a_folder_of_a_packages_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_package" / "run-1").mkdir(parents=True)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("no_package")
    assert not is_installed("nothing")
    assert is_installed("a_package")
    assert is_installed("torch")
