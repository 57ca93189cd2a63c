"""Text files of any origin: their bytes are read once, and give lines and a hash.

UTF-8 with or without byte-order marks, with lines that end in a line feed, a carriage return and a line feed, or, in a
file without any line feed, a carriage return. Other characters at which Python splits lines, such as U+2028, are text.
"""

import codecs
import hashlib
from pathlib import Path
from typing import NamedTuple

from lora_dist.errors import UserError

_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte-order marks of encodings that are refused by name."""


class TextFile(NamedTuple):
    """A file as it was read."""

    path: Path
    sha256: str
    """Hexadecimal hash of the bytes."""
    lines: list[str]
    """Without white space at their ends; line `number` of an editor is lines[number - 1]."""


def read_text_file(path: Path) -> TextFile:
    """Read a file of one or more lines.

    Raises:
        UserError: if the file cannot be read, is empty, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file of references or outputs") from error
    text = _decode(path, data).replace("\ufeff", "")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise UserError(f"{path} is empty: write one reference or output per line")
    return TextFile(path, hashlib.sha256(data).hexdigest(), [line.rstrip() for line in lines])


def _decode(path: Path, data: bytes) -> str:
    for mark, encoding in _OTHER_ENCODINGS:
        if data.startswith(mark):
            raise UserError(f"{path} is {encoding}: save the file as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: this is not UTF-8: save the file as UTF-8") from error
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {number}: a NUL byte, as in UTF-16 or a damaged file: save the file as UTF-8")
    return text
