"""The E2E NLG Challenge corpus: read it from CSV files or the hub, group it by MR, write the official text format.

An example is a meaning representation (MR), such as `name[The Eagle], food[French]`, and one human sentence for it.
Many examples share an MR, which is decoded once and scored against all its references.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_dist.config import DataSettings
from lora_dist.data.corpora import CLEANED, E2E, OWN, Corpus
from lora_dist.data.corpora import FILES as FILES
from lora_dist.data.corpora import SPLITS as SPLITS
from lora_dist.data.corpora import Split as Split
from lora_dist.data.csv_files import decode_text, read_pairs, records
from lora_dist.errors import UserError

_HUB_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
_CLEANED_COLUMNS = {"fixed", "orig_mr", "gem_id"}

# `fingerprint` of the corpus as published.
_OFFICIAL_SHA256: dict[Split, str] = {
    "train": "c2c83bccb291c517b5abbff8505066876197b3df37cafd05073014345cfef59a",
    "dev": "57f23b5e5f173099cb33a96bfaf74a62e41e4e3dd61daca5bf708051a39eea70",
    "test": "e36388a99830d028bb096cd867ceacaf0192b5c9943d246dd1ece949bce4df53",
}
_OFFICIAL_MRS: dict[Split, int] = {"train": 4862, "dev": 547, "test": 630}


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
        UserError: if files or hub cannot be read, or are not those of the corpus.
    """
    corpus = CLEANED if data.corpus == "cleaned" else E2E
    if data.dir is None:
        where, examples = f"{corpus.hub} on the hub", _read_hub(corpus, split)
    elif os.path.isdir(data.dir):  # Path.is_dir raises if a parent folder is not accessible
        where, examples = str(data.dir / corpus.files[split]), _read_csv(data.dir / corpus.files[split], corpus)
    else:
        raise UserError(f"--data.dir {data.dir} is not a folder: give the folder with {corpus.source}")
    if corpus is CLEANED and len(examples) != CLEANED.rows[split]:
        raise UserError(
            f"{where} has {len(examples):,} rows, the cleaned E2E corpus {CLEANED.rows[split]:,}: use {CLEANED.source}"
        )
    if corpus is E2E and len(examples) == CLEANED.rows[split] and len({e.mr for e in examples}) != _OFFICIAL_MRS[split]:
        raise _cleaned(f"{where} has {len(examples)} rows")
    return examples[: data.limit_train] if split == "train" else examples


def _cleaned(evidence: str) -> UserError:
    return UserError(
        f"{evidence}, as in the cleaned E2E corpus (e2e_nlg_cleaned, GEM/e2e_nlg), whose scores do not compare with "
        f"the paper's: use {E2E.source}, or --data.corpus cleaned for that corpus"
    )


def _read_hub(corpus: Corpus, split: Split) -> list[Example]:
    from datasets import load_dataset  # takes seconds to import, and CSV files do not need it

    try:
        # The hub's own branch of Parquet files: the main branch is a loading script, which datasets no longer runs.
        columns = load_dataset(corpus.hub, revision="refs/convert/parquet", split=_HUB_SPLITS[split])[:]
    except Exception as error:  # from datasets, huggingface_hub or the HTTP client: the remedy is the same
        here = f", which the folder {os.path.abspath(corpus.hub)} hides" if os.path.isdir(corpus.hub) else ""
        raise UserError(
            f"{corpus.hub} cannot be read from the hub{here} ({type(error).__name__}: {one_line(str(error))}): "
            f"give --data.dir a folder with {corpus.source}"
        ) from error
    rows = zip(columns["meaning_representation"], columns["human_reference"], strict=True)
    return [Example(mr, reference) for mr, reference in rows]


def _read_csv(path: Path, corpus: Corpus) -> list[Example]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): --data.dir is a folder with "
            f"{', '.join(corpus.files.values())}, {corpus.source}"
            + (" (its testset.csv has no references)" if corpus is E2E else "")
        ) from error
    text = decode_text(path, data)
    line, cells = next(records(path, text), (1, []))
    header = [name.strip() for name in cells]
    _check_header(f"{path}, line {line}", header, corpus)
    pairs = read_pairs(path, text, (header.index("mr"), header.index("ref")), len(header))
    if not pairs:
        raise UserError(f"{path} has no rows under its header: use {corpus.source}")
    for mr in dict.fromkeys(mr for mr, _ in pairs):
        try:
            parse_mr(mr)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return [Example(*pair) for pair in pairs]


def _check_header(where: str, header: list[str], corpus: Corpus) -> None:
    if corpus is E2E and _CLEANED_COLUMNS & set(header):
        raise _cleaned(f"{where}: the columns are {', '.join(header)}")
    if header in (["mr"], ["MR"]):
        raise UserError(f"{where}: there is no column ref, as in testset.csv: use {FILES['test']}, with references")
    if not header:
        raise UserError(f"{where}: the file is empty: use {corpus.source}")
    if header != ["mr", "ref"] and not (corpus is CLEANED and {"mr", "ref"} <= set(header)):
        raise UserError(f"{where}: the columns are {', '.join(header)}, not mr, ref: use {corpus.source}")


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


def corpus_name(data: DataSettings, test: Sequence[Example]) -> str:
    """Name the corpus by its whole test set: E2E, E2E cleaned, or own data."""
    if data.corpus == "cleaned":
        return CLEANED.name
    return E2E.name if is_official("test", test) else OWN


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
