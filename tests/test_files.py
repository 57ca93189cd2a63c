"""Files and folders come whole or not at all."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_dist.files import new_folder, read_json, save_text, write_json, write_jsonl, write_text


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


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_modes_follow_the_umask_also_of_files_that_a_library_wrote_for_their_owner_alone(
    umask: int, file: int, folder: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new" / "file", "")
        save_text(tmp_path / "saved", "")
        with new_folder(tmp_path / "folder", marker="COMPLETE") as temporary:
            (temporary / "own").touch()
            (temporary / "private").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    files = ("new/file", "saved", "folder/own", "folder/private", "folder/COMPLETE")
    assert modes == {"new": folder, "folder": folder, **dict.fromkeys(files, file)}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO])
def test_a_file_system_that_cannot_flush_folders_or_change_modes_is_written_to(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: refuse() if stat.S_ISDIR(os.fstat(file).st_mode) else fsync(file))
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    write_text(tmp_path / "file", "new")
    replace_folder(tmp_path)
    assert names(tmp_path) == {"file", "folder", "folder/inside"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_files_is_written_to(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "file", "new")
    replace_folder(tmp_path)
    assert names(tmp_path) == {"file", "folder", "folder/inside"}


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
