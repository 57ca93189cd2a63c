"""What `run_guard.py` lets a command do to a folder: no run is lost, and nothing that is not a run is touched."""

from collections.abc import Callable
from pathlib import Path

import pytest
from unwritable import may_not_write

from lora_dist.config_io import write_config
from lora_dist.errors import UserError
from lora_dist.files import write_text
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import COMPLETE, RunDir
from lora_dist.run_guard import (
    check_output,
    exclusive,
    prepare_output,
    require_folder,
    require_writable,
    require_writable_file,
)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def power_cut(*_: object) -> None:
    raise OSError("power cut")


def empty(root: Path) -> None:
    root.mkdir()


def run(root: Path) -> None:
    write_config(RunDir(root), IMPROVED, {}, {}, {})


def foreign(root: Path) -> None:
    write_text(root / "thesis.tex", "my thesis")


def half_written(root: Path) -> None:
    """A kill came before the first file was complete."""
    root.mkdir()
    (root / ".part.config.json.abc").write_text("{")


def locked(root: Path) -> None:
    """A kill came before the first file was begun."""
    root.mkdir()
    (root / ".lock").write_text("{}")


def model(root: Path) -> None:
    """A folder of transformers, whose config.json is a model's."""
    write_text(root / "config.json", '{"model_type": "gpt2", "n_layer": 12}')
    write_text(root / "model.safetensors", "weights")


def damaged(root: Path) -> None:
    write_text(root / "config.json", '{"settings": [1, 2]')


def linked_to_nothing(root: Path) -> None:
    root.symlink_to(root.parent.parent / "gone")


def with_checkpoints_elsewhere(root: Path) -> None:
    """A run whose checkpoints were on another disk, which is no longer there."""
    run(root)
    (root / "checkpoints").symlink_to(root.parent / "scratch")


def file(root: Path) -> None:
    root.write_text("not a folder")


def below_a_file(root: Path) -> None:
    root.parent.rmdir()
    root.parent.write_text("not a folder")


def absent(root: Path) -> None:
    """There is nothing at this path."""


ANOTHER_RUN, NOT_A_RUN, A_FILE, UNWRITABLE = "holds another run", "not the folder of a run", "is a file", "written to"


@pytest.mark.parametrize(
    ("before", "plain", "resume", "overwrite"),
    [
        (absent, None, None, None),
        (empty, None, None, None),
        (run, ANOTHER_RUN, None, None),
        (half_written, None, None, None),
        (locked, None, None, None),
        (foreign, NOT_A_RUN, NOT_A_RUN, NOT_A_RUN),
        (model, NOT_A_RUN, NOT_A_RUN, NOT_A_RUN),
        (damaged, NOT_A_RUN, NOT_A_RUN, NOT_A_RUN),
        (with_checkpoints_elsewhere, *3 * ("/checkpoints is a link to .*/scratch, which does not exist",)),
        (linked_to_nothing, "is a link to .*/gone, which does not exist", "is a link", "is a link"),
        (file, A_FILE, A_FILE, A_FILE),
        (below_a_file, UNWRITABLE, UNWRITABLE, UNWRITABLE),
    ],
)
def test_the_check_protects_runs_and_other_files_unless_a_flag_names_them_and_changes_nothing(
    tmp_path: Path, before: Callable[[Path], None], plain: str | None, resume: str | None, overwrite: str | None
) -> None:
    parent = tmp_path / "runs"
    parent.mkdir()
    before(root := parent / "out")
    found = names(tmp_path)
    for message, flags in ((plain, (False, False)), (resume, (True, False)), (overwrite, (False, True))):
        if message is None:
            check_output(RunDir(root), resume=flags[0], overwrite=flags[1])
        else:
            with pytest.raises(UserError, match=message) as error:
                check_output(RunDir(root), resume=flags[0], overwrite=flags[1])
            assert f"--out {root}" in str(error.value)
    assert names(tmp_path) == found


def test_prepare_makes_the_folder_and_deletes_a_run_only_with_overwrite(tmp_path: Path) -> None:
    out = RunDir(tmp_path / "deep" / "out")
    prepare_output(out, overwrite=False)
    run(out.root)
    prepare_output(out, overwrite=False)
    assert names(out.root) == {"config.json"}
    half_written_files(out)
    prepare_output(out, overwrite=False)
    assert names(out.root) == {"config.json", "checkpoints", ".gitignore"}
    assert names(out.checkpoints) == set()
    prepare_output(out, overwrite=True)
    assert names(out.root) == set()


def half_written_files(out: RunDir) -> None:
    (out.checkpoints / ".part.step-000500.abc").mkdir(parents=True)
    (out.checkpoints / ".part.step-000500.abc" / "state.json").write_text("{")
    (out.root / ".part.config.json.abc").write_text("{")
    (out.checkpoint(1)).mkdir()  # without its marker
    (out.root / ".gitignore").write_text("the user's own")


def test_a_kill_while_an_old_run_is_deleted_leaves_a_run_that_overwrite_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out")
    out = RunDir(tmp_path / "out")
    write_text(out.checkpoint(1) / "state.json", "{}")
    write_text(out.checkpoint(1) / COMPLETE, "")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", power_cut)
        with pytest.raises(OSError, match="power cut"):
            prepare_output(out, overwrite=True)
    check_output(out, resume=False, overwrite=True)
    prepare_output(out, overwrite=True)
    assert names(out.root) == set()


def test_a_file_is_refused_by_name_where_a_folder_is_needed(tmp_path: Path) -> None:
    require_folder(RunDir(tmp_path))
    require_folder(RunDir(tmp_path / "absent"))
    file(tmp_path / "file")
    with pytest.raises(UserError, match=f"--out {tmp_path}/file is a file: name a folder"):
        require_folder(RunDir(tmp_path / "file"))


@pytest.mark.parametrize(
    "path", ["locked", "locked/new", "locked/new/er", "file/new", "dangling", "dangling/new", "loop"]
)
def test_a_folder_that_cannot_be_written_to_is_refused_and_unchanged(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    may_not_write(tmp_path / "locked", monkeypatch)
    before = names(tmp_path)

    def lock() -> None:
        with exclusive(RunDir(tmp_path / path)):
            pass

    def check() -> None:
        check_output(RunDir(tmp_path / path), resume=False, overwrite=False)

    def require() -> None:
        require_writable(tmp_path / path)

    for refuse in (require, check, lock):
        with pytest.raises(UserError, match=rf"--out {tmp_path / path} .*: name another folder"):
            refuse()
    assert names(tmp_path) == before


@pytest.mark.parametrize("path", ["locked/new.json", "locked/old.json", "file/new.json", "dangling", "locked", "loop"])
def test_a_file_that_cannot_be_written_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "old.json").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    may_not_write(tmp_path / "locked", monkeypatch)
    with pytest.raises(UserError, match=rf"--json {tmp_path / path}.*: name (a|another) (file|folder)"):
        require_writable_file(tmp_path / path, "--json")
