import csv
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics import readers

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_corpus = pytest.mark.skipif(not (SHARED / "e2e").is_dir(), reason="the E2E corpus is not in ../shared/e2e")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# Plain text


def test_empty_lines_separate_the_references_of_instances(tmp_path: Path) -> None:
    text = "one\n two \n\nthree\r\n\t\nfour\nfive\nsix\n"
    expected = [["one", "two"], ["three"], ["four", "five", "six"]]
    assert readers.read_references(write(tmp_path, "refs.txt", text)) == expected
    assert readers.read_references(write(tmp_path, "more.txt", text + "\n")) == expected
    assert readers.read_references(write(tmp_path, "less.txt", text.rstrip())) == expected


@pytest.mark.parametrize("text", ["one\ntwo\nthree\n", "one\ntwo\nthree", "one\ntwo\nthree\n\n"])
def test_without_empty_lines_each_line_is_an_instance(tmp_path: Path, text: str) -> None:
    assert readers.read_references(write(tmp_path, "refs.txt", text)) == [["one"], ["two"], ["three"]]


def test_outputs_are_one_per_line_and_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "out.txt", "one\n\n  \nfour\r\n\n")
    assert readers.read_outputs(path) == ["one", "", "", "four", ""]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, mark: str) -> None:
    assert readers.read_outputs(write(tmp_path, "out.txt", f"a{mark}b\nc\n")) == [f"a{mark}b", "c"]
    assert readers.read_references(write(tmp_path, "r.txt", f"a{mark}b\n\nc\n")) == [[f"a{mark}b"], ["c"]]
    table = write(tmp_path, "out.csv", f'mr,out\nx,"a{mark}b"\ny,c\n')
    assert readers.read_outputs(table) == [f"a{mark}b", "c"]


def test_special_characters_are_read_unchanged(tmp_path: Path) -> None:
    texts = ["a ||| b", '"quoted', "<b>&amp;</b>", "x" * 10_000, "tab\there", ".,;", "£ é Â£ 中"]
    assert readers.read_outputs(write(tmp_path, "out.txt", "\n".join(texts))) == texts


@pytest.mark.parametrize(("text", "line"), [("a\n\n\nb\n", 3), ("\na\n", 1), ("a\n\nb\n\n\n", 5), ("\n", 1)])
def test_instances_without_references_are_refused(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(UserError, match=rf"refs\.txt, line {line}: an instance has no reference"):
        readers.read_references(write(tmp_path, "refs.txt", text))


# Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("refs.csv", 'mr,ref\n"a, b",One.\n"a, b","Two, too."\nc,Three.\n'),
        ("refs.CSV", '"ref","MR"\n"One.","a, b"\n"Two, too.","a, b"\n"Three.","c"\n'),
        ("refs.tsv", "Source\tid\tHuman reference\na, b\t1\tOne.\na, b\t2\tTwo, too.\nc\t3\tThree.\n"),
        ("refs.tsv", "a, b\tOne.\n\na, b\tTwo, too.\r\nc\tThree.\n"),
        ("refs.csv", '\ufeffmr,ref\n"a, b",One.\n"a, b","Two, too."\nc,Three.'),
    ],
)
def test_consecutive_rows_of_one_source_are_one_instance(tmp_path: Path, name: str, text: str) -> None:
    assert readers.read_references(write(tmp_path, name, text)) == [["One.", "Two, too."], ["Three."]]


def test_later_rows_of_the_same_source_are_another_instance(tmp_path: Path) -> None:
    assert readers.read_references(write(tmp_path, "r.csv", "mr,ref\na,1\nb,2\na,3\n")) == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize("header", ["mr,output", "source,System output", "MRs,sys", "dialogue act,ref"])
def test_the_column_of_outputs_is_found_by_its_header(tmp_path: Path, header: str) -> None:
    assert readers.read_outputs(write(tmp_path, "out.csv", f"{header}\na,One\nb,\n")) == ["One", ""]


def test_quoted_fields_may_contain_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, "out.csv", 'mr,out\na,"say ""hi"""\nb,"two\nlines"\nc,x\n')
    assert readers.read_outputs(path) == ['say "hi"', "twolines", "x"]


def test_mojibake_is_fixed_in_tables_only(tmp_path: Path) -> None:
    text = "mr\tout\na\tŁ20 Â£20 £20 cafÃ© cafã© café\n"
    assert readers.read_outputs(write(tmp_path, "out.tsv", text)) == ["£20 £20 £20 café café café"]
    assert readers.read_outputs(write(tmp_path, "out.txt", "Ł20 cafÃ©\n")) == ["Ł20 cafÃ©"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mr,ref\na,b\n\nc,d,e\n", "line 4: 3 columns but the first line has 2"),
        ("mr,other\na,b\n", "line 1: 1 of 2 columns look like sources and 0 like texts"),
        ("mr,ref,target\na,b,c\n", "line 1: 1 of 3 columns look like sources and 2 like texts"),
        ("a,b,c\n", "line 1: 0 of 3 columns"),
        ("mr,ref\n", "only a header"),
        ("\n\n", "has no row"),
        ("mr,ref\na," + "x" * 140_000 + "\n", "line 2: field larger than field limit"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"refs\.csv.*{message}"):
        readers.read_references(write(tmp_path, "refs.csv", text))


def test_the_message_for_a_missing_last_column_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'line 2: 1 columns .* as ""'):
        readers.read_outputs(write(tmp_path, "out.tsv", "mr\tout\na\t\n"))


# Sources


def test_sources_are_read_from_plain_text_and_tables(tmp_path: Path) -> None:
    expected = ["name[A], food[B]", "name[C]", "name[A], food[B]"]
    (tmp_path / "mrs.txt").write_text("\n".join(expected) + "\n")
    assert readers.read_sources(tmp_path / "mrs.txt") == expected
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["MR"], *([mr] for mr in expected)])
    assert readers.read_sources(tmp_path / "test.csv") == expected
    with (tmp_path / "refs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["mr", "ref"], *([mr, text] for mr in expected for text in "xy")])
    assert readers.read_sources(tmp_path / "refs.csv") == expected
    (tmp_path / "none.csv").write_text("ref\nx\n")
    with pytest.raises(UserError, match=r"none\.csv, line 1: 0 of 1 columns look like sources"):
        readers.read_sources(tmp_path / "none.csv")


# Files that cannot be read


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for read in (readers.read_references, readers.read_outputs):
        with pytest.raises(UserError, match=r"nowhere\.txt cannot be read \(No such file"):
            read(tmp_path / "nowhere.txt")
        with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
            read(tmp_path)
        with pytest.raises(UserError, match=r"none\.txt is empty"):
            read(write(tmp_path, "none.txt", ""))
        (tmp_path / "latin.txt").write_bytes("a\nb\ncafé\n".encode("latin-1"))
        with pytest.raises(UserError, match=r"latin\.txt, line 3: this is not UTF-8"):
            read(tmp_path / "latin.txt")


# Pairs


def test_two_plain_text_files_are_paired_in_order(tmp_path: Path) -> None:
    references, outputs = write(tmp_path, "r.txt", "a\nb\n\nc\n"), write(tmp_path, "o.txt", "x\n\n")
    assert readers.read_pair(references, outputs) == ([["a", "b"], ["c"]], ["x", ""], ["", ""])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("x\n", r"has 1 outputs but .*r\.txt has references for 2: .*unmatched one is line 4 of .*r\.txt"),
        ("x\ny\nz\n", r"has 3 outputs but .*r\.txt has references for 2: .*unmatched one is line 3 of .*o\.txt"),
    ],
)
def test_different_numbers_of_instances_are_refused(tmp_path: Path, outputs: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        readers.read_pair(write(tmp_path, "r.txt", "a\nb\n\nc\n"), write(tmp_path, "o.txt", outputs))


def test_two_tables_are_joined_by_source(tmp_path: Path) -> None:
    references = write(tmp_path, "r.csv", "mr,ref\na,one\nb,two\na,three\nc,four\n")
    outputs = write(tmp_path, "o.tsv", "mr\tout\nb\tB\na\tA\n")
    assert readers.read_pair(references, outputs) == ([["two"], ["one", "three"]], ["B", "A"], ["b", "a"])
    with pytest.raises(UserError, match=r"o\.csv, line 3: .*r\.csv has no reference for 'd'"):
        readers.read_pair(references, write(tmp_path, "o.csv", "mr,out\na,A\nd,D\n"))


def test_a_table_and_plain_text_are_paired_in_order(tmp_path: Path) -> None:
    references = write(tmp_path, "r.csv", "mr,ref\na,1\na,2\nb,3\n")
    outputs = write(tmp_path, "o.txt", "A\nB\n")
    assert readers.read_pair(references, outputs) == ([["1", "2"], ["3"]], ["A", "B"], ["a", "b"])
    texts = write(tmp_path, "r.txt", "1\n2\n\n3\n")
    outputs = write(tmp_path, "o.csv", "mr,out\nb,B\na,A\n")
    assert readers.read_pair(texts, outputs) == ([["1", "2"], ["3"]], ["B", "A"], ["b", "a"])


@pytest.mark.shared
@needs_corpus
def test_the_e2e_test_set_has_630_instances_and_4693_references() -> None:
    groups = readers.read_references(SHARED / "e2e" / "testset_w_refs.csv")
    assert (len(groups), sum(map(len, groups))) == (630, 4693)
