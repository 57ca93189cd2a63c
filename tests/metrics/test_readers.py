"""References and outputs, paired by MR, by index or in order."""

import json
import logging
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics.readers import Instances, read_pair, read_sources
from lora_dist.metrics.text_files import read_text_file

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_corpus = pytest.mark.skipif(not (SHARED / "e2e").is_dir(), reason="the E2E corpus is not in ../shared/e2e")

TABLE = "mr,ref\na,1\na,2\nb,3\n"
"""References of two MRs."""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def pair(references: Path, outputs: Path, mrs: list[str] | None = None, *, partial: bool = False) -> Instances:
    return read_pair(read_text_file(references), read_text_file(outputs), mrs, partial=partial)


def references_of(folder: Path, name: str, text: str, count: int) -> list[list[str]]:
    """Read references of `count` instances."""
    return pair(write(folder, name, text), write(folder, "outputs.txt", "x\n" * count)).references


# References


def test_empty_lines_separate_the_references_of_instances(tmp_path: Path) -> None:
    text = "one\n two \n\nthree\r\n\t\nfour\nfive\nsix\n"
    for variant in (text, text + "\n", text.rstrip()):
        found = references_of(tmp_path, "refs.txt", variant, 3)
        assert found == [["one", "two"], ["three"], ["four", "five", "six"]]


@pytest.mark.parametrize("text", ["one\ntwo\nthree\n", "one\ntwo\nthree", "one\ntwo\nthree\n\n"])
def test_without_empty_lines_each_line_is_an_instance(tmp_path: Path, text: str) -> None:
    assert references_of(tmp_path, "refs.txt", text, 3) == [["one"], ["two"], ["three"]]


def test_lines_without_an_empty_one_are_the_references_of_a_single_output(tmp_path: Path) -> None:
    assert references_of(tmp_path, "refs.txt", "one\ntwo\nthree\n", 1) == [["one", "two", "three"]]


@pytest.mark.parametrize(("text", "line"), [("a\n\n\nb\n", 3), ("\na\n", 1), ("a\n\nb\n\n\n", 5), ("\n", 1)])
def test_instances_without_references_are_refused(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"refs\.txt, line {line}: an instance has no reference"):
        references_of(tmp_path, "refs.txt", text, 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("refs.csv", 'mr,ref\n"a, b",One.\n"a, b","Two, too."\nc,Three.\n'),
        ("refs.CSV", '"ref","MR"\n"One.","a, b"\n"Two, too.","a, b"\n"Three.","c"\n'),
        ("refs.tsv", "Source\tid\tHuman reference\na, b\t1\tOne.\na, b\t2\tTwo, too.\nc\t3\tThree.\n"),
        ("refs.tsv", "a, b\tOne.\n\na, b\tTwo, too.\r\nc\tThree.\n"),
        ("refs.csv", '\ufeffmr,ref\n"a, b",One.\n"a, b","Two, too."\nc,Three.'),
        ("refs.csv", 'mr,ref\r"a, b",One.\r"a, b","Two, too."\rc,Three.\r'),
        ("refs.csv", 'mr,ref\n"a, b",One.\nc,Three.\n"a, b","Two, too."\n'),
    ],
)
def test_rows_of_one_source_are_the_references_of_one_instance(tmp_path: Path, name: str, text: str) -> None:
    assert references_of(tmp_path, name, text, 2) == [["One.", "Two, too."], ["Three."]]


def test_references_as_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refs\.jsonl holds JSON"):
        references_of(tmp_path, "refs.jsonl", '{"index": 0, "text": "x"}\n', 1)


@pytest.mark.shared
@needs_corpus
def test_the_e2e_test_set_has_630_instances_and_4693_references(tmp_path: Path) -> None:
    groups = references_of(tmp_path, "r.csv", (SHARED / "e2e" / "testset_w_refs.csv").read_text(), 630)
    assert sum(map(len, groups)) == 4693


# Sources


def test_sources_are_read_from_plain_text_tables_and_outputs(tmp_path: Path) -> None:
    expected = ["name[A], food[B]", "name[C]", "name[A], food[B]"]
    for name, text in (
        ("mrs.txt", "\n".join(expected)),
        ("mrs.csv", "\n".join(["MR", *(f'"{mr}"' for mr in expected)])),
        ("refs.csv", "\n".join(["mr,ref", *(f'"{mr}",{text}' for mr in expected for text in "xy")])),
        ("outputs.jsonl", "\n".join(json.dumps({"mr": mr, "text": ""}) for mr in expected)),
    ):
        assert read_sources(read_text_file(write(tmp_path, name, text + "\n"))) == expected
    with pytest.raises(UserError, match=r"outputs\.jsonl has lines without mr"):
        read_sources(read_text_file(write(tmp_path, "outputs.jsonl", '{"index": 0, "text": "x"}\n')))


# Pairs


def test_two_plain_text_files_are_paired_in_order(tmp_path: Path) -> None:
    references, outputs = write(tmp_path, "r.txt", "a\nb\n\nc\n"), write(tmp_path, "o.txt", "x\n\n")
    assert pair(references, outputs) == Instances([["a", "b"], ["c"]], ["x", ""], ["", ""], [0, 1], 2)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("x\n", r"has 1 outputs but .*r\.txt has references for 2: .*unmatched one is line 4 of .*r\.txt"),
        ("x\ny\nz\nv\n", r"has 4 outputs but .*r\.txt has references for 2: .*unmatched one is line 3 of .*o\.txt"),
    ],
)
def test_different_numbers_of_instances_are_refused(tmp_path: Path, outputs: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair(write(tmp_path, "r.txt", "a\nb\n\nc\n"), write(tmp_path, "o.txt", outputs))


def test_two_tables_are_joined_by_source(tmp_path: Path) -> None:
    references = write(tmp_path, "r.csv", "mr,ref\na,one\nb,two\na,three\n")
    outputs = write(tmp_path, "o.tsv", "mr\tout\nb\tB\na\tA\n")
    expected = Instances([["two"], ["one", "three"]], ["B", "A"], ["b", "a"], [1, 0], 2)
    assert pair(references, outputs) == expected
    assert pair(references, outputs, ["a", "b"]) == expected
    with pytest.raises(UserError, match=r"o\.csv, line 3: .*r\.csv has no reference for 'd'"):
        pair(references, write(tmp_path, "o.csv", "mr,out\na,A\nd,D\n"))


def test_outputs_without_sources_are_paired_in_order_and_get_those_of_the_references(tmp_path: Path) -> None:
    references, outputs = write(tmp_path, "r.csv", TABLE), write(tmp_path, "o.txt", "A\nB\n")
    assert pair(references, outputs) == Instances([["1", "2"], ["3"]], ["A", "B"], ["a", "b"], [0, 1], 2)


def test_references_without_sources_get_those_of_the_outputs_or_of_mrs(tmp_path: Path) -> None:
    references, table = write(tmp_path, "r.txt", "1\n2\n\n3\n"), write(tmp_path, "o.csv", "mr,out\nb,B\na,A\n")
    in_order = Instances([["1", "2"], ["3"]], ["B", "A"], ["b", "a"], [0, 1], 2)
    assert pair(references, table) == in_order
    assert pair(references, table, ["b", "a"]) == in_order
    joined = Instances([["3"], ["1", "2"]], ["B", "A"], ["b", "a"], [1, 0], 2)
    assert pair(references, table, ["a", "b"]) == joined
    with pytest.raises(UserError, match=r"there are 1 meaning representations for the 2 instances of .*r\.txt"):
        pair(references, table, ["a"])


def test_sources_that_are_not_among_the_mrs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'b' of .*r\.csv is not in --mrs"):
        pair(write(tmp_path, "r.csv", TABLE), write(tmp_path, "o.txt", "A\nB\n"), ["a", "c"])


@pytest.mark.parametrize("references", ["r.csv", "r.txt"])
def test_outputs_jsonl_is_paired_by_its_own_mr_or_index(references: str, tmp_path: Path) -> None:
    path = write(tmp_path, references, TABLE if references == "r.csv" else "1\n2\n\n3\n")
    rows = [{"index": 1, "mr": "b", "text": "B"}, {"index": 0, "mr": "a", "text": "A"}]
    expected = Instances([["3"], ["1", "2"]], ["B", "A"], ["b", "a"], [1, 0], 2)
    for fields in (["index", "mr"], ["index"], ["mr"]):
        text = "\n".join(json.dumps({name: row[name] for name in (*fields, "text")}) for row in rows)
        mrs = ["a", "b"] if references == "r.txt" and fields == ["mr"] else None
        found = pair(path, write(tmp_path, "o.jsonl", text + "\n"), mrs)
        sources = ["", ""] if references == "r.txt" and fields == ["index"] else expected.sources
        assert found == expected._replace(sources=sources)
    with pytest.raises(UserError, match=r"has index 2 but .* has references for 2 instances"):
        pair(path, write(tmp_path, "o.jsonl", '{"index": 2, "text": "x"}\n'))


# Instances


def test_outputs_for_a_part_of_the_mrs_are_refused_with_the_count_unless_partial(tmp_path: Path) -> None:
    references = write(tmp_path, "r.csv", TABLE)
    for name, text in (("o.tsv", "mr\tout\nb\tB\n"), ("o.jsonl", '{"index": 1, "text": "B"}\n')):
        outputs = write(tmp_path, name, text)
        with pytest.raises(UserError, match=r"no output for 1 of the 2 instances of .*r\.csv, such as a: .*--partial"):
            pair(references, outputs)
        assert pair(references, outputs, partial=True) == Instances([["3"]], ["B"], ["b"], [1], 2)


def test_equal_outputs_for_one_mr_are_merged_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One row per reference, with sources or in the order of the references."""
    outputs = [
        write(tmp_path, "o.tsv", "mr\tout\na\tA\na\tA\nb\tB\n"),
        write(tmp_path, "o.txt", "A\nA\nB\n"),
        write(tmp_path, "o.jsonl", "\n".join(json.dumps({"mr": mr, "text": mr.upper()}) for mr in "aab")),
    ]
    for path in outputs:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = pair(write(tmp_path, "r.csv", TABLE), path)
        assert found == Instances([["1", "2"], ["3"]], ["A", "B"], ["a", "b"], [0, 1], 2)
        assert f"{path}: 3 outputs for 2 instances; equal ones are merged" in caplog.text


@pytest.mark.parametrize(("name", "text"), [("o.tsv", "mr\tout\na\tA\nb\tB\na\tC\n"), ("o.txt", "A\nC\nB\n")])
def test_different_outputs_for_one_mr_are_refused(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lines \d and \d: different outputs for one instance"):
        pair(write(tmp_path, "r.csv", TABLE), write(tmp_path, name, text))
