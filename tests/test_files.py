"""Files and folders come whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_dist.files import new_folder, read_json, write_json, write_jsonl, write_text


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_text_is_utf8_with_line_feeds_and_json_is_readable(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "é\r\n£\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\r\n£\n".encode()
    write_json(tmp_path / "c.json", {"mr": "Café"})
    assert read_json(tmp_path / "c.json", "") == {"mr": "Café"}
    assert "Café" in (tmp_path / "c.json").read_text(encoding="utf-8")
    write_jsonl(tmp_path / "d.jsonl", [{"n": 1}, {"n": 2}])
    assert (tmp_path / "d.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'


def test_what_is_written_others_may_read(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with new_folder(tmp_path / "folder"):
        pass
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o644, 0o755]


def replace_file(root: Path) -> None:
    write_text(root / "file", "new")


def replace_folder(root: Path) -> None:
    with new_folder(root / "folder") as folder:
        (folder / "inside").write_text("new")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize("write", [replace_file, replace_folder])
def test_a_failed_write_leaves_the_old_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    write_text(tmp_path / "file", "old")
    write_text(tmp_path / "folder" / "inside", "old")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path)
    assert names(tmp_path) == {"file", "folder", "folder/inside"}
    assert [(tmp_path / name).read_text() for name in ("file", "folder/inside")] == ["old", "old"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "folder" / "inside", "old")

    def interrupted() -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "inside").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == {"folder", "folder/inside"}
    assert (tmp_path / "folder" / "inside").read_text() == "old"


def test_a_new_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "folder" / "inside", "old")
    write_text(tmp_path / "folder" / "gone", "old")
    replace_folder(tmp_path)
    assert names(tmp_path) == {"folder", "folder/inside"}
    assert (tmp_path / "folder" / "inside").read_text() == "new"


@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_a_link_is_replaced_and_what_it_leads_to_is_left(target: str, tmp_path: Path) -> None:
    write_text(tmp_path / "elsewhere" / "inside", "old")
    (tmp_path / "folder").symlink_to(tmp_path / target)
    replace_folder(tmp_path)
    assert names(tmp_path) == {"folder", "folder/inside", "elsewhere", "elsewhere/inside"}
    assert not (tmp_path / "folder").is_symlink()
    assert (tmp_path / "elsewhere" / "inside").read_text() == "old"
