import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_dist.config import IMPROVED
from lora_dist.errors import UserError
from lora_dist.files import new_folder, write_text
from lora_dist.config_io import versions, write_config
from lora_dist.run_dir import RunDir


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def power_cut(*_: object) -> None:
    raise OSError("power cut")


# Whether a folder may be written to


def empty(root: Path) -> None:
    root.mkdir()


def run(root: Path) -> None:
    write_config(RunDir(root), IMPROVED, {}, {}, {})


def foreign(root: Path) -> None:
    write_text(root / "thesis.tex", "ten years of work")


def half_written(root: Path) -> None:
    """A kill came before the first file was complete."""
    root.mkdir()
    (root / ".part.config.json.abc").write_text("{")


def file(root: Path) -> None:
    root.write_text("not a folder")


def below_a_file(root: Path) -> None:
    root.parent.rmdir()
    root.parent.write_text("not a folder")


def absent(root: Path) -> None:
    """Nothing is there."""


ANOTHER_RUN, NOT_A_RUN, A_FILE, UNWRITABLE = "holds another run", "not the folder of a run", "is a file", "written to"


@pytest.mark.parametrize(
    ("before", "plain", "resume", "overwrite"),
    [
        (absent, None, None, None),
        (empty, None, None, None),
        (run, ANOTHER_RUN, None, None),
        (half_written, ANOTHER_RUN, None, NOT_A_RUN),
        (foreign, ANOTHER_RUN, NOT_A_RUN, NOT_A_RUN),
        (file, A_FILE, A_FILE, A_FILE),
        (below_a_file, UNWRITABLE, UNWRITABLE, UNWRITABLE),
    ],
)
def test_check_lets_no_flag_destroy_what_it_does_not_name_and_changes_nothing(
    tmp_path: Path, before: Callable[[Path], None], plain: str | None, resume: str | None, overwrite: str | None
) -> None:
    parent = tmp_path / "runs"
    parent.mkdir()
    before(root := parent / "out")
    found = names(tmp_path)
    for message, flags in ((plain, (False, False)), (resume, (True, False)), (overwrite, (False, True))):
        if message is None:
            RunDir(root).check(resume=flags[0], overwrite=flags[1])
        else:
            with pytest.raises(UserError, match=message) as error:
                RunDir(root).check(resume=flags[0], overwrite=flags[1])
            assert f"--out {root}" in str(error.value)
    assert names(tmp_path) == found


def test_prepare_makes_the_folder_and_empties_it_only_when_told(tmp_path: Path) -> None:
    out = RunDir(tmp_path / "deep" / "out")
    out.prepare(overwrite=False)
    run(out.root)
    out.prepare(overwrite=False)
    assert names(out.root) == {"config.json"}
    half_written_files(out)
    out.prepare(overwrite=False)
    assert names(out.root) == {"config.json", "checkpoints", ".gitignore"}
    assert names(out.checkpoints) == set()
    out.prepare(overwrite=True)
    assert names(out.root) == set()


def half_written_files(out: RunDir) -> None:
    (out.checkpoints / ".part.step-000500.abc").mkdir(parents=True)
    (out.checkpoints / ".part.step-000500.abc" / "state.json").write_text("{")
    (out.root / ".part.config.json.abc").write_text("{")
    (out.checkpoint(1)).mkdir()  # without its marker
    (out.root / ".gitignore").write_text("the user's own")


def test_a_kill_while_an_old_run_is_deleted_leaves_what_can_be_deleted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out")
    out = RunDir(tmp_path / "out")
    write_checkpoint(out, 1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", power_cut)
        with pytest.raises(OSError, match="power cut"):
            out.prepare(overwrite=True)
    out.check(resume=False, overwrite=True)
    out.prepare(overwrite=True)
    assert names(out.root) == set()


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


def test_config_json_gives_the_settings_back_and_says_what_they_met(tmp_path: Path) -> None:
    out = RunDir(tmp_path)
    write_config(out, IMPROVED, {"size": 2}, {"train": "abc"}, {"trainable": 7})
    assert out.settings() == IMPROVED
    stored = json.loads(out.config.read_text())
    assert (stored["world"], stored["data"], stored["counts"]) == ({"size": 2}, {"train": "abc"}, {"trainable": 7})
    assert stored["versions"] == versions()
    assert {"lora_dist", "python", "torch", "transformers", "accelerate"} <= versions().keys()


@pytest.mark.parametrize("content", [None, "{", b"\xff"])
def test_a_folder_without_a_readable_config_is_no_run(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=f"{tmp_path} is not the folder of a run: .*config.json"):
        RunDir(tmp_path).settings()


# Checkpoints


def write_checkpoint(run: RunDir, step: int) -> None:
    with new_folder(run.checkpoint(step), marker="COMPLETE") as folder:
        (folder / "state.json").write_text("{}")


def test_the_marker_comes_last_and_without_it_a_checkpoint_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = RunDir(tmp_path), os.replace
    made: list[str] = []

    def spy(source: str, target: Path) -> None:
        if Path(target).name == "COMPLETE" and out.checkpoint(2).exists():
            raise OSError("power cut")
        replace(source, target)
        made.append(Path(target).name)

    monkeypatch.setattr(os, "replace", spy)
    write_checkpoint(out, 1)
    assert made == ["step-000001", "COMPLETE"]
    with pytest.raises(OSError, match="power cut"):
        write_checkpoint(out, 2)
    assert (out.checkpoint(2) / "state.json").is_file()
    assert out.steps() == [1]


def test_steps_are_sorted_by_number_and_a_checkpoint_half_written_or_half_deleted_is_none(tmp_path: Path) -> None:
    out = RunDir(tmp_path)
    assert out.steps() == []
    for step in (1_000_000, 500, 999_999):
        write_checkpoint(out, step)
    write_text(out.checkpoint(700) / "state.json", "{}")
    write_text(out.checkpoints / ".step-000800.tmp" / "COMPLETE", "")
    assert out.steps() == [500, 999_999, 1_000_000]


@pytest.mark.parametrize(("keep", "left"), [(1, [30]), (2, [20, 30]), (5, [10, 20, 30])])
def test_keep_newest_deletes_the_oldest_complete_checkpoints(tmp_path: Path, keep: int, left: list[int]) -> None:
    out = RunDir(tmp_path)
    for step in (10, 20, 30):
        write_checkpoint(out, step)
    out.keep_newest(keep)
    assert out.steps() == left
    assert names(out.checkpoints) >= {f"step-{step:06d}/state.json" for step in left}
    assert len(list(out.checkpoints.iterdir())) == len(left)


def test_a_deletion_cut_short_leaves_no_checkpoint_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = RunDir(tmp_path)
    write_checkpoint(out, 1)
    write_checkpoint(out, 2)
    monkeypatch.setattr("shutil.rmtree", power_cut)
    with pytest.raises(OSError, match="power cut"):
        out.keep_newest(1)
    assert out.steps() == [2]
