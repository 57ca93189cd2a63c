import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_dist.config import DataSettings
from lora_dist.data.e2e import (
    FILES,
    SPLITS,
    Example,
    Group,
    Split,
    corpus_name,
    fingerprint,
    format_mr,
    format_outputs,
    format_references,
    group_by_mr,
    is_official,
    load_split,
    one_line,
    parse_mr,
)
from lora_dist.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "e2e").is_dir(), reason="the E2E corpus is not in ../shared/e2e")

SEPARATORS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
ROW = b'"name[A], food[French]",A is French.\n'

Write = Callable[[bytes], DataSettings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the bytes as a development set and gives the settings that read it."""

    def write_devset(data: bytes) -> DataSettings:
        (tmp_path / FILES["dev"]).write_bytes(data)
        return DataSettings(dir=tmp_path)

    return write_devset


# The published corpus


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(
    ("split", "rows", "mrs", "fewest", "most"),
    [("train", 42061, 4862, 2, 46), ("dev", 4672, 547, 2, 43), ("test", 4693, 630, 1, 45)],
)
def test_the_published_corpus_has_the_official_counts(
    split: Split, rows: int, mrs: int, fewest: int, most: int
) -> None:
    examples = load_split(DataSettings(dir=SHARED / "e2e"), split)
    groups = group_by_mr(examples)
    sizes = [len(group.references) for group in groups]
    assert (len(examples), len(groups), sum(sizes)) == (rows, mrs, rows)
    assert (min(sizes), max(sizes)) == (fewest, most)
    assert all(format_mr(parse_mr(group.mr)) == group.mr for group in groups)
    assert is_official(split, examples)
    assert not is_official(split, examples[::-1])
    assert not is_official(split, [*examples[:-1], Example(examples[-1].mr, examples[-1].reference + " ")])


@pytest.mark.shared
@needs_shared
def test_no_published_mr_is_in_two_splits_and_limit_train_cuts_only_the_training_set() -> None:
    data = DataSettings(dir=SHARED / "e2e", limit_train=3)
    assert [len(load_split(data, split)) for split in SPLITS] == [3, 4672, 4693]
    mrs = [{e.mr for e in load_split(DataSettings(dir=SHARED / "e2e"), split)} for split in SPLITS]
    assert len(set.union(*mrs)) == 4862 + 547 + 630


@pytest.mark.shared
@needs_shared
def test_references_are_written_as_in_a_file_the_official_script_has_scored() -> None:
    groups = group_by_mr(load_split(DataSettings(dir=SHARED / "e2e"), "test"))
    scored = (SHARED / "golden" / "test-template.refs.txt").read_text(encoding="utf-8")
    assert format_references(groups) != scored  # which has no double spaces
    assert re.sub(" +", " ", format_references(groups)) == scored


# Reading a folder of CSVs


@pytest.mark.parametrize("mr", ["Alpina art museum", "name[Alpina, kind[art]", "name[Alpina] kind", "name[]"])
def test_an_mr_without_slot_notation_is_refused_with_the_file(write: Write, mr: str) -> None:
    settings = write(b"mr,ref\n" + ROW + f'"{mr}",Some text.\n'.encode())
    with pytest.raises(UserError, match=rf"devset\.csv: '{re.escape(mr)}' is not a meaning representation: write"):
        load_split(settings, "dev")


@pytest.mark.parametrize(
    "data",
    [
        b"mr,ref\n" + ROW,
        b'"mr","ref"\r\n' + ROW,
        b"\xef\xbb\xbfmr,ref\r\n" + ROW,
        b'\xef\xbb\xbf"mr","ref"\n' + ROW.rstrip(),
        b"mr,ref\n\n" + ROW + b"\r\n\n",
    ],
    ids=["plain", "quoted", "bom", "bom-quoted-no-final-newline", "blank-lines"],
)
def test_harmless_variants_of_the_format_read_the_same(write: Write, data: bytes) -> None:
    assert load_split(write(data), "dev") == [Example("name[A], food[French]", "A is French.")]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_inside_a_cell_do_not_end_the_row(write: Write, separator: str) -> None:
    reference = f"A{separator}is  French."
    data = f'mr,ref\r\n"name[A]","{reference}"\r\nname[B],B\r\n'.encode()
    assert load_split(write(data), "dev") == [
        Example("name[A]", reference.replace("\r\n", "\n")),
        Example("name[B]", "B"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"mr,ref\n", "has no rows under its header"),
        (b"MR\nname[A]\n", "no column ref, as in testset.csv: use testset_w_refs.csv"),
        (b"mr,ref,fixed,orig_mr\nname[A],A,0,name[A]\n", "mr, ref, fixed, orig_mr, as in the cleaned E2E corpus"),
        (b"gem_id,meaning_representation,target,references\n1,a,b,c\n", "the cleaned E2E corpus"),
        (b"meaning_representation,human_reference\n" + ROW, "meaning_representation, human_reference, not mr, ref"),
        (ROW, "line 1: the columns are name[A], food[French], A is French., not mr, ref"),
        (b"mr;ref\n" + ROW, "line 1: the columns are mr;ref, not mr, ref"),
        (b"mr,ref\n" + ROW + b"name[B], food[Thai],B is Thai.\n", "line 3: 3 columns"),
        (b"mr,ref\n" + ROW + b"name[B]\n", "line 3: 1 columns"),
        (b"mr,ref\n" + ROW + b'"name[B]",""\n', "line 3: the ref cell is empty ('')"),
        (b"mr,ref\n" + ROW + "name[B],\u2028 \n".encode(), r"line 3: the ref cell is empty ('\u2028 ')"),
        (b"mr,ref\n" + ROW + b" ,B is here.\n", "line 3: the mr cell is empty (' ')"),
        (b"mr,ref\n" + ROW + b"name[B],\0\n", r"line 3: the ref cell is empty ('\x00')"),
        (b'mr,ref\nname[A],"two\nlines"\n,B\n', "line 4: the mr cell is empty"),
        (b"mr,ref\n" + ROW + b"name[B],Caf\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
        ("mr,ref\nname[A],A\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (b"mr,ref\n" + ROW + b'name[B],"B is\n' + ROW * 3, "line 3: not CSV"),
        (b"mr,ref\n" + ROW + b'name[B],"B" is\n' + ROW, "line 3: not CSV"),
        (b"mr,ref\rname[B],B\r", "line 1: not CSV"),
        (
            b"mr,ref\n" + ROW + b"Alan_Bean | birthPlace | Wheeler,Born.\n",
            "line 3: the mr cell 'Alan_Bean | birthPlace",
        ),
    ],
)
def test_a_bad_file_is_refused_with_file_line_value_and_remedy(write: Write, data: bytes, message: str) -> None:
    settings = write(data)
    with pytest.raises(UserError) as error:
        load_split(settings, "dev")
    text = str(error.value)
    assert text.startswith(f"{settings.dir}/devset.csv")
    assert message in text
    assert re.search(r": (use|put|fill|save|end) ", text), "a remedy"
    assert "\n" not in text


def test_the_cleaned_corpus_is_refused_without_its_extra_columns_too(write: Write) -> None:
    rows = [f'"name[{i % 1000}]",{i}\n'.encode() for i in range(4299)]
    with pytest.raises(UserError, match=r"devset\.csv has 4299 rows, as in the cleaned E2E corpus"):
        load_split(write(b"mr,ref\n" + b"".join(rows)), "dev")
    assert len(load_split(write(b"mr,ref\n" + b"".join(rows[1:])), "dev")) == 4298


def test_the_cleaned_corpus_is_read_when_named_whatever_further_columns_it_has(tmp_path: Path) -> None:
    cleaned = DataSettings(dir=tmp_path, corpus="cleaned")
    rows = ['"name[A], food[Thai]",A is Thai.,1,"name[A]"\n'] * 4299
    file = tmp_path / "devel-fixed.no-ol.csv"
    file.write_text("mr,ref,fixed,orig_mr\n" + "".join(rows))
    examples = load_split(cleaned, "dev")
    assert (len(examples), examples[0]) == (4299, Example("name[A], food[Thai]", "A is Thai."))
    file.write_text("mr,ref\n" + "name[A],A\n" * 4298)
    with pytest.raises(UserError, match=r"no-ol\.csv has 4,298 rows, the cleaned E2E corpus 4,299: use the folder"):
        load_split(cleaned, "dev")
    with pytest.raises(UserError, match=r"test-fixed\.csv cannot be read .* github\.com/tuetschek/e2e-cleaning$"):
        load_split(cleaned, "test")


def test_a_test_set_is_named_by_its_rows_or_as_the_cleaned_one_if_so_asked() -> None:
    rows = [Example("name[A]", "A")]
    assert corpus_name(DataSettings(), rows) == "own data"
    assert corpus_name(DataSettings(corpus="cleaned"), rows) == "E2E cleaned"


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", Path(__file__)):
        with pytest.raises(UserError, match=rf"^--data.dir {folder} is not a folder: give .*tuetschek/e2e-dataset"):
            load_split(DataSettings(dir=folder), "train")
    (tmp_path / "trainset.csv").mkdir()
    (tmp_path / "devset.csv").symlink_to("devset.csv")  # unreadable for root as well
    for split, cause in zip(SPLITS, ("Is a directory", "Too many levels", "No such file"), strict=True):
        with pytest.raises(UserError, match=rf"{FILES[split]} cannot be read \({cause}.*testset_w_refs\.csv"):
            load_split(DataSettings(dir=tmp_path), split)


# Reading the hub


@pytest.mark.parametrize(("split", "hub_split"), [("train", "train"), ("dev", "validation"), ("test", "test")])
def test_the_hub_is_read_from_its_parquet_branch(monkeypatch: pytest.MonkeyPatch, split: Split, hub_split: str) -> None:
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, *, revision: str, split: str) -> Any:
        calls.append((path, revision, split))
        return datasets.Dataset.from_dict(
            {"human_reference": ["A.", "Café B."], "meaning_representation": ["name[A]", "name[B]"]}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = [Example("name[A]", "A."), Example("name[B]", "Café B.")]
    assert load_split(DataSettings(limit_train=1), split) == (expected[:1] if split == "train" else expected)
    assert calls == [("tuetschek/e2e_nlg", "refs/convert/parquet", hub_split)]


@pytest.mark.launched
def test_without_the_hub_the_alternative_is_named(tmp_path: Path) -> None:
    code = "from lora_dist import config; from lora_dist.data import e2e; e2e.load_split(config.DataSettings(), 'test')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}  # an empty cache
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("lora_dist.errors.UserError: tuetschek/e2e_nlg cannot be read from the hub (ConnectionError")
    assert "give --data.dir a folder with the CSV files of github.com/tuetschek/e2e-dataset" in last


# Fingerprints and groups


def test_fingerprint_depends_on_every_cell_its_place_and_the_order() -> None:
    variants = [
        [],
        [Example("a", "b")],
        [Example("ab", "")],
        [Example("b", "a")],
        [Example("a", "b"), Example("c", "d")],
        [Example("c", "d"), Example("a", "b")],
        [Example("a", 'b"]\n["c", "d')],
        [Example("a", "é")],
        [Example("a", "\\u00e9")],
    ]
    assert len({fingerprint(examples) for examples in variants}) == len(variants)
    assert fingerprint(variants[1]) == fingerprint([Example("a", "b")])


def test_references_are_grouped_by_exact_mr_in_order_of_first_appearance() -> None:
    examples = [Example("y", "1"), Example("x", "2"), Example("y ", "3"), Example("y", "4"), Example("y", "1")]
    assert group_by_mr(examples) == [Group("y", ("1", "4", "1")), Group("x", ("2",)), Group("y ", ("3",))]


# The official text format


def read_as_the_official_script(text: str, multi_ref: bool = False) -> list[Any]:
    """What the script's reader makes of a file: it ends lines where str.splitlines does, and strips them."""
    lines = [line.strip() for line in text.splitlines()]
    if not multi_ref:
        return lines
    groups: list[list[str]] = [[]]
    for line in lines:
        if line:
            groups[-1].append(line)
        else:
            groups.append([])
    return groups if groups[-1] else groups[:-1]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_one_line_turns_each_separator_into_one_space(separator: str) -> None:
    assert one_line(f"{separator}one{separator}two  three {separator}{separator}") == "one two  three"
    assert one_line(f"one{separator}{separator}two") == "one  two"


def test_one_line_covers_every_separator_of_splitlines() -> None:
    found = {chr(code) for code in range(sys.maxunicode + 1) if len(f"a{chr(code)}b".splitlines()) == 2}
    assert found == set(SEPARATORS) - {"\r\n"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text()))
def test_outputs_stay_one_per_line_for_any_text(texts: list[str]) -> None:
    written = format_outputs(texts)
    assert read_as_the_official_script(written) == [one_line(text) for text in texts]
    assert len(io.StringIO(written).readlines()) == len(texts)


def test_empty_outputs_stay_rows_at_either_end() -> None:
    assert format_outputs(["", "a", "", "\n"]) == "\na\n\n\n"
    assert format_outputs([]) == ""


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.text().filter(lambda text: bool(one_line(text))), min_size=1), min_size=1))
def test_references_stay_in_their_groups_for_any_text(groups: list[list[str]]) -> None:
    written = format_references([Group("", tuple(references)) for references in groups])
    assert read_as_the_official_script(written, multi_ref=True) == [list(map(one_line, group)) for group in groups]


def test_references_have_a_blank_line_after_each_group_and_none_inside() -> None:
    assert format_references([Group("x", ("1  a", "2\r\nb")), Group("y", ("3",))]) == "1  a\n2 b\n\n3\n\n"
    with pytest.raises(AssertionError, match="blank reference"):
        format_references([Group("x", ("1", "\u2028", "2"))])
    with pytest.raises(AssertionError, match="blank reference"):
        format_references([Group("x", ())])


# The form of an MR


def test_an_mr_is_parsed_into_attributes_and_values() -> None:
    expected = [("name", "The Eagle"), ("customer rating", "5 out of 5"), ("near", "Café, Rouge")]
    assert parse_mr("name[The Eagle], customer rating[5 out of 5], near[Café, Rouge]") == expected
    assert parse_mr(" name[ The Eagle ],customer rating [5 out of 5] ,near[Café, Rouge]\n") == expected
    assert format_mr(expected) == "name[The Eagle], customer rating[5 out of 5], near[Café, Rouge]"


@pytest.mark.parametrize(
    "mr",
    [
        *("", " ", "The Eagle", "name", "name[", "name[]", "name[ ]", "[The Eagle]", " [The Eagle]", "name(The Eagle)"),
        *("name[A] food[B]", "name[A],", ", name[A]", "name[A],, food[B]", "name[A]]", "name[[A]", "name[A], food"),
        *("name[A], food[B", "x, name[A]", "name[A] x"),
    ],
)
def test_other_text_is_no_mr(mr: str) -> None:
    with pytest.raises(UserError, match=r"is not a meaning representation: write .* as in name\[The Eagle\], food"):
        parse_mr(mr)
