"""The E2E NLG Challenge corpus: read from a folder of CSVs or the hub, group by MR, write the official text format.

An example is a meaning representation (MR), such as `name[The Eagle], food[French]`, and one sentence a person wrote
for it. Many examples share an MR: it is decoded once and scored against all its references.
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

# The cleaned corpus (github.com/tuetschek/e2e-cleaning, GEM/e2e_nlg) has other MRs and references under the same
# names, and the same number of test rows, so scores on it look plausible and compare with nothing.
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
    """The examples of a split in official order; `data.limit_train` cuts the training set only.

    A CRLF inside a cell is read as a line feed: the hub's copy has it so, and both sources give equal examples.
    Reading the hub may download, so the caller lets one process of a node go first.

    Raises:
        UserError: if the files or the hub cannot be read, or do not hold the original E2E corpus' format.
    """
    if data.dir is None:
        examples = _read_hub(split)
    elif os.path.isdir(data.dir):  # Path.is_dir raises where a parent folder is closed to us
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
    from datasets import load_dataset  # takes seconds to import, and a folder of CSVs does not need it

    try:
        # The hub's own branch of Parquet files: the main branch holds a script, and scripts no longer load.
        columns = load_dataset(_HUB_NAME, revision="refs/convert/parquet", split=_HUB_SPLITS[split])[:]
    except Exception as error:  # whatever of datasets, huggingface_hub or the HTTP client: the remedy is the same
        raise UserError(
            f"{_HUB_NAME} cannot be read from the hub ({type(error).__name__}: {one_line(str(error))}): "
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
            if not cell.strip():
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
    """The CSV records of `text`, blank lines left out, each with the number of the line where it starts."""
    # StringIO ends a line at a line feed only: str.splitlines would also cut references at U+2028 and its like.
    # strict, because a quote that is never closed would otherwise swallow the rest of the file in silence.
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
    """Write a split as the corpus' own files are written, into an existing folder."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("mr", "ref"), *((example.mr, example.reference) for example in examples)])


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 of the rows in their order, as hexadecimal digits.

    A row enters as a JSON array on a line, so no two lists of rows give the same bytes.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.mr, example.reference]).encode() + b"\n")
    return digest.hexdigest()


def is_official(split: Split, examples: Sequence[Example]) -> bool:
    """Whether these are exactly the published rows of the split, in their order."""
    return fingerprint(examples) == _OFFICIAL_SHA256[split]


def group_by_mr(examples: Iterable[Example]) -> list[Group]:
    """The references of each MR, by its exact string, in the order in which the MRs first appear."""
    references: dict[str, list[str]] = {}
    for example in examples:
        references.setdefault(example.mr, []).append(example.reference)
    return [Group(mr, tuple(texts)) for mr, texts in references.items()]


def one_line(text: str) -> str:
    r"""The text on one physical line for any reader: a line separator becomes a space, the ends are stripped.

    Separators are those of str.splitlines (\n, \r, \r\n, \v, \f, \x1c to \x1e, U+0085, U+2028, U+2029): the official
    script splits its input at each of them. Other white space, such as a double space, stays.
    """
    return " ".join(text.splitlines()).strip()


def format_outputs(texts: Iterable[str]) -> str:
    """System outputs as the official script reads them: one a line, an empty output as an empty line."""
    return "".join(one_line(text) + "\n" for text in texts)


def format_references(groups: Iterable[Group]) -> str:
    """References as the official script reads them: one a line, a blank line after each group.

    The script takes a file of one group for single references of several outputs: it cannot score one MR alone.
    """
    lines = [[one_line(reference) for reference in group.references] for group in groups]
    assert all(group and all(group) for group in lines), "a blank reference would end its group"
    return "".join("\n".join(group) + "\n\n" for group in lines)


def parse_mr(mr: str) -> list[tuple[str, str]]:
    """Attributes and values of an MR, in its order.

    Raises:
        UserError: if the text is not of the form `name[The Eagle], food[French]`.
    """
    slots = [(name.strip(), value.strip()) for name, value in re.findall(r"([^\[\],]+)\[([^\[\]]+)\]", mr)]
    # Written again without white space it must be the whole text: nothing was skipped, nothing came twice.
    if not slots or not all(map(all, slots)) or _squeeze(format_mr(slots)) != _squeeze(mr):
        raise UserError(
            f"{mr!r} is not a meaning representation: write attributes and values as in name[The Eagle], food[French]"
        )
    return slots


def _squeeze(text: str) -> str:
    return "".join(text.split())


def format_mr(slots: Iterable[tuple[str, str]]) -> str:
    """Attributes and values as an MR in the corpus' own form."""
    return ", ".join(f"{attribute}[{value}]" for attribute, value in slots)
