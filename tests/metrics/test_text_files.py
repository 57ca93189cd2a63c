"""Encodings and line ends of the files that are scored."""

import codecs
import hashlib
from pathlib import Path

import pytest

from lora_dist.errors import UserError
from lora_dist.metrics.text_files import read_text_file


def lines(folder: Path, content: bytes) -> list[str]:
    path = folder / "texts.txt"
    path.write_bytes(content)
    return read_text_file(path).lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks_are_dropped_and_all_line_ends_are_accepted(mark: str, end: str, tmp_path: Path) -> None:
    assert lines(tmp_path, f"{mark}one{end}{end}{mark}three{end}".encode()) == ["one", "", "three"]
    assert lines(tmp_path, f"{mark}one{end}two".encode()) == ["one", "two"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r"])
def test_no_other_character_ends_a_line(mark: str, tmp_path: Path) -> None:
    assert lines(tmp_path, f"a{mark}b\nc\n".encode()) == [f"a{mark}b", "c"]


def test_the_hash_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    content = "\ufeffone\r\ntwo".encode()
    assert lines(tmp_path, content)
    assert read_text_file(tmp_path / "texts.txt").sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le"), "is UTF-16: save the file as UTF-8"),
        (codecs.BOM_UTF16_BE + "one\n".encode("utf-16-be"), "is UTF-16: "),
        (codecs.BOM_UTF32_LE + "one\n".encode("utf-32-le"), "is UTF-32: "),
        (codecs.BOM_UTF32_BE + "one\n".encode("utf-32-be"), "is UTF-32: "),
        ("one\n".encode("utf-16-le"), "line 1: a NUL byte, as in UTF-16"),
        ("a\nb\ncafé\n".encode("latin-1"), "line 3: this is not UTF-8"),
        (b"a\nb\0c\n", "line 2: a NUL byte"),
        (b"", "is empty"),
        (codecs.BOM_UTF8, "is empty"),
    ],
)
def test_other_encodings_are_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"texts\.txt,? {message}"):
        lines(tmp_path, content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read \(No such file"):
        read_text_file(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_text_file(tmp_path)
