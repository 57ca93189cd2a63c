"""The E2E NLG Challenge corpus: read it from CSV files or the hub, group it by MR, write the official text format.

An example is a meaning representation (MR), such as `name[The Eagle], food[French]`, and one human sentence for it.
Many examples share an MR, which is decoded once and scored against all its references.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_dist.config import DataSettings
from lora_dist.errors import UserError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
FILES: dict[Split, str] = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}

_HUB_NAME = "tuetschek/e2e_nlg"
_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
_ORIGINAL = "the CSV files of github.com/tuetschek/e2e-dataset"

# `fingerprint` of the corpus as published: 42,061, 4,672 and 4,693 rows.
_OFFICIAL_SHA256: dict[Split, str] = {
    "train": "c2c83bccb291c517b5abbff8505066876197b3df37cafd05073014345cfef59a",
    "dev": "57f23b5e5f173099cb33a96bfaf74a62e41e4e3dd61daca5bf708051a39eea70",
    "test": "e36388a99830d028bb096cd867ceacaf0192b5c9943d246dd1ece949bce4df53",
}
_OFFICIAL_MRS: dict[Split, int] = {"train": 4862, "dev": 547, "test": 630}

# The cleaned corpus (github.com/tuetschek/e2e-cleaning, GEM/e2e_nlg) has other MRs and references under the same file
# names, and as many test rows. Scores on it look plausible but are not comparable with published ones.
_CLEANED_COLUMNS = {"fixed", "orig_mr", "gem_id"}
_CLEANED_ROWS: dict[Split, int] = {"train": 33525, "dev": 4299, "test": 4693}


@dataclass(frozen=True)
class Example:
    """A meaning representation and one human sentence for it."""

    mr: str
    reference: str


@dataclass(frozen=True)
class Group:
    """A meaning representation with all its human references."""

    mr: str
    references: tuple[str, ...]


def load_split(data: DataSettings, split: Split) -> list[Example]:
    """Read the examples of a split in official order; `data.limit_train` truncates the training set only.

    A CRLF inside a cell is read as a line feed, as in the hub's copy, so both sources give equal examples. Reading from
    the hub may download: call this through `collectives.first_on_node`.

    Raises:
        UserError: if files or hub cannot be read, or their format is not that of the original E2E corpus.
    """
    if data.dir is None:
        examples = _read_hub(split)
    elif os.path.isdir(data.dir):  # Path.is_dir raises if a parent folder is not accessible
        examples = _read_csv(data.dir / FILES[split])
        if len(examples) == _CLEANED_ROWS[split] and len({e.mr for e in examples}) != _OFFICIAL_MRS[split]:
            raise _cleaned(f"{data.dir / FILES[split]} has {len(examples)} rows")
    else:
        raise UserError(f"--data.dir {data.dir} is not a folder: give the folder with {_ORIGINAL}")
    return examples[: data.limit_train] if split == "train" else examples


def _cleaned(evidence: str) -> UserError:
    return UserError(
        f"{evidence}, as in the cleaned E2E corpus (e2e_nlg_cleaned, GEM/e2e_nlg), whose scores do not compare with "
        f"the paper's: use {_ORIGINAL}"
    )


def _read_hub(split: Split) -> list[Example]:
    from datasets import load_dataset  # takes seconds to import, and CSV files do not need it

    try:
        # The hub's own branch of Parquet files: the main branch is a loading script, which datasets no longer runs.
        columns = load_dataset(_HUB_NAME, revision="refs/convert/parquet", split=_HUB_SPLITS[split])[:]
    except Exception as error:  # from datasets, huggingface_hub or the HTTP client: the remedy is the same
        here = f", which the folder {os.path.abspath(_HUB_NAME)} hides" if os.path.isdir(_HUB_NAME) else ""
        raise UserError(
            f"{_HUB_NAME} cannot be read from the hub{here} ({type(error).__name__}: {one_line(str(error))}): "
            f"give --data.dir a folder with {_ORIGINAL}"
        ) from error
    rows = zip(columns["meaning_representation"], columns["human_reference"], strict=True)
    return [Example(mr, reference) for mr, reference in rows]


def _read_csv(path: Path) -> list[Example]:
    records = _records(path, _read_text(path))
    line, header = next(records, (1, []))
    _check_header(f"{path}, line {line}", [name.strip() for name in header])
    examples = []
    for line, row in records:
        if len(row) != 2:
            raise UserError(
                f"{path}, line {line}: {len(row)} columns, not mr and ref: put a cell that has a comma in double quotes"
            )
        for name, cell in zip(("mr", "ref"), row, strict=True):
            if not one_line(cell):
                raise UserError(f"{path}, line {line}: the {name} cell is empty ({cell!r}): fill it or delete the row")
        examples.append(Example(*row))
    if not examples:
        raise UserError(f"{path} has no rows under its header: use {_ORIGINAL}")
    return examples


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): --data.dir is a folder with {', '.join(FILES.values())}, "
            f"{_ORIGINAL} (its testset.csv has no references)"
        ) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the CSV records of `text`, each with the line number where it starts, skipping blank lines."""
    # StringIO ends a line at a line feed only; str.splitlines would also split references at U+2028 and others.
    # strict, because a quote that is never closed would otherwise silently swallow the rest of the file.
    reader = csv.reader(io.StringIO(text), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not CSV ({error}): end lines with \\n or \\r\\n, close each quoted cell, "
            "and write a double quote inside one twice"
        ) from error


def _check_header(where: str, header: list[str]) -> None:
    if _CLEANED_COLUMNS & set(header):
        raise _cleaned(f"{where}: the columns are {', '.join(header)}")
    if header in (["mr"], ["MR"]):
        raise UserError(f"{where}: there is no column ref, as in testset.csv: use {FILES['test']}, with references")
    if not header:
        raise UserError(f"{where}: the file is empty: use {_ORIGINAL}")
    if header != ["mr", "ref"]:
        raise UserError(f"{where}: the columns are {', '.join(header)}, not mr, ref: use {_ORIGINAL}")


def write_csv(path: Path, examples: Iterable[Example]) -> None:
    """Write a split in the format of the corpus' own files, into an existing folder."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("mr", "ref"), *((example.mr, example.reference) for example in examples)])


def fingerprint(examples: Sequence[Example]) -> str:
    """Compute the SHA-256 of the rows in order, as hexadecimal digits.

    Each row is hashed as a JSON array on its own line, so different lists of rows give different bytes.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.mr, example.reference]).encode() + b"\n")
    return digest.hexdigest()


def is_official(split: Split, examples: Sequence[Example]) -> bool:
    """Return whether these are exactly the published rows of the split, in order."""
    return fingerprint(examples) == _OFFICIAL_SHA256[split]


def group_by_mr(examples: Iterable[Example]) -> list[Group]:
    """Collect the references of each MR (by exact string), in order of first appearance."""
    references: dict[str, list[str]] = {}
    for example in examples:
        references.setdefault(example.mr, []).append(example.reference)
    return [Group(mr, tuple(texts)) for mr, texts in references.items()]


def one_line(text: str) -> str:
    r"""Put the text on one line: replace each line separator by a space and strip the ends.

    Separators are those of str.splitlines (\n, \r, \r\n, \v, \f, \x1c to \x1e, U+0085, U+2028, U+2029), as the official
    script splits its input at each of them. NUL, which no text file has, becomes a space as well. Other white space,
    such as a double space, is kept.
    """
    return " ".join(text.replace("\0", " ").splitlines()).strip()


def format_outputs(texts: Iterable[str]) -> str:
    """Format outputs for the official script: one per line, an empty output as an empty line."""
    return "".join(one_line(text) + "\n" for text in texts)


def format_references(groups: Iterable[Group]) -> str:
    """Format references for the official script: one per line, a blank line after each group.

    The script reads a file of one group as one reference for each of several outputs, so it cannot score a single MR.
    """
    lines = [[one_line(reference) for reference in group.references] for group in groups]
    assert all(group and all(group) for group in lines), "a blank reference would end its group"
    return "".join("\n".join(group) + "\n\n" for group in lines)


def parse_mr(mr: str) -> list[tuple[str, str]]:
    """Parse an MR into its attributes and values, in order.

    Raises:
        UserError: if the text is not of the form `name[The Eagle], food[French]`.
    """
    slots = [(name.strip(), value.strip()) for name, value in re.findall(r"([^\[\],]+)\[([^\[\]]+)\]", mr)]
    # The slots formatted again must equal the text but for white space: then the pattern has skipped nothing.
    if not slots or not all(map(all, slots)) or _squeeze(format_mr(slots)) != _squeeze(mr):
        raise UserError(
            f"{mr!r} is not a meaning representation: write attributes and values as in name[The Eagle], food[French]"
        )
    return slots


def _squeeze(text: str) -> str:
    return "".join(text.split())


def format_mr(slots: Iterable[tuple[str, str]]) -> str:
    """Format attributes and values as an MR in the corpus' own form."""
    return ", ".join(f"{attribute}[{value}]" for attribute, value in slots)
