"""Tables of references and outputs: columns, quotes, and what is refused by line."""

import csv
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics.tables import OUTPUT, REFERENCE, source_column, table_rows
from lora_dist.metrics.text_files import read_text_file

EAGLE = "name[The Eagle], food[French]"
MILL = "name[The Mill], food[Indian]"
LARKSPUR = "name[Larkspur], food[Greek]"


def texts(folder: Path, name: str, text: str) -> list[str]:
    (folder / name).write_bytes(text.encode())
    return [row.text for row in table_rows(read_text_file(folder / name), OUTPUT)]


@pytest.mark.parametrize("header", ["mr,output", "source,System output", "MRs,sys", "dialogue act,ref"])
def test_the_column_of_outputs_is_found_by_its_header(tmp_path: Path, header: str) -> None:
    assert texts(tmp_path, "out.csv", f"{header}\na,One\nb,\n") == ["One", ""]


@pytest.mark.parametrize("separator", ["\t", ","])
def test_the_index_that_pandas_writes_is_ignored(tmp_path: Path, separator: str) -> None:
    rows = [("", "mr", "output"), ("0", "a", "One"), ("1", "b", "Two")]
    assert texts(tmp_path, "out.csv", "\n".join(map(separator.join, rows))) == ["One", "Two"]


def test_mojibake_is_fixed(tmp_path: Path) -> None:
    text = "mr\tout\na\tŁ20 Â£20 £20 cafÃ© cafã© café\n"
    assert texts(tmp_path, "out.tsv", text) == ["£20 £20 £20 café café café"]


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
    (tmp_path / "refs.csv").write_text(text)
    with pytest.raises(UserError, match=rf"refs\.csv.*{message}"):
        table_rows(read_text_file(tmp_path / "refs.csv"), REFERENCE)


def test_the_message_for_a_missing_last_column_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'line 2: 1 columns .* as ""'):
        texts(tmp_path, "out.tsv", "mr\tout\na\t\n")


# Quotes


def test_quoted_cells_may_contain_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = 'mr,out\na,"say ""hi"""\nb,"two\nlines"\nc,x\n'
    assert texts(tmp_path, "out.csv", text) == ['say "hi"', "twolines", "x"]
    assert texts(tmp_path, "out.tsv", text.replace(",", "\t")) == ['say "hi"', "twolines", "x"]


def test_a_quote_inside_a_cell_is_a_character(tmp_path: Path) -> None:
    assert texts(tmp_path, "out.tsv", 'mr\tout\na\tThe "Eagle" is 6" wide\n') == ['The "Eagle" is 6" wide']


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t")])
@pytest.mark.parametrize("line", [2, 3, 4])
@pytest.mark.parametrize("closing", ["", "It is a pub.", 'It is a "pub".', '"It is a pub."'])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(
    closing: str, line: int, name: str, separator: str, tmp_path: Path
) -> None:
    """Whatever the later rows are, even with quotes of their own, no row is swallowed."""
    rows = [("mr", "output"), (EAGLE, "One."), (MILL, "Two."), (LARKSPUR, "Three."), (MILL, closing or "Two.")]
    quoted = [[f'"{mr}"' if separator == "," and "," in mr else mr, text] for mr, text in rows]
    quoted[line - 1][1] = f'"{rows[line - 1][1]}'
    (tmp_path / name).write_text("\n".join(map(separator.join, quoted)) + "\n")
    file = read_text_file(tmp_path / name)
    for read in (lambda: table_rows(file, OUTPUT), lambda: source_column(file)):
        with pytest.raises(UserError, match=rf"t\.[ct]sv, line {line}: a double quote opens a cell"):
            read()


def test_a_quote_that_opens_the_last_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: a double quote opens a cell"):
        texts(tmp_path, "out.tsv", 'mr\tout\na\t"One')


def test_an_open_quote_in_a_long_file_is_refused_without_reading_it_as_one_cell(tmp_path: Path) -> None:
    rows = [f"name[{index}]\t{'' if index else chr(34)}It is a place." for index in range(20_000)]
    with pytest.raises(UserError, match=r"line 2: "):
        texts(tmp_path, "out.tsv", "\n".join(["mr\tout", *rows]))


# Sources


def test_sources_are_those_of_the_column_of_sources(tmp_path: Path) -> None:
    expected = [EAGLE, MILL, EAGLE]
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["MR"], *([mr] for mr in expected)])
    assert source_column(read_text_file(tmp_path / "test.csv")) == expected
    (tmp_path / "none.csv").write_text("ref\nx\n")
    with pytest.raises(UserError, match=r"none\.csv, line 1: 0 of 1 columns look like sources"):
        source_column(read_text_file(tmp_path / "none.csv"))
