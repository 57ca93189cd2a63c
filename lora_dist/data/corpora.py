"""The corpora: their files, sizes and names."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
FILES: dict[Split, str] = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is, and how many rows it has."""

    name: str
    files: dict[Split, str]
    hub: str
    """Dataset on the Hugging Face hub, with the columns meaning_representation and human_reference."""
    rows: dict[Split, int]
    source: str
    """What to give --data.dir, for messages."""


E2E = Corpus(
    "E2E",
    FILES,
    "tuetschek/e2e_nlg",
    {"train": 42061, "dev": 4672, "test": 4693},
    "the CSV files of github.com/tuetschek/e2e-dataset",
)
CLEANED = Corpus(
    "E2E cleaned",
    {"train": "train-fixed.no-ol.csv", "dev": "devel-fixed.no-ol.csv", "test": "test-fixed.csv"},
    "tuetschek/e2e_nlg_cleaned",
    {"train": 33525, "dev": 4299, "test": 4693},
    "the folder cleaned-data of github.com/tuetschek/e2e-cleaning",
)
"""Dusek et al. 2019; the rows are those of the dataset card of tuetschek/e2e_nlg_cleaned. It has other MRs and
references than E2E, and as many test rows: scores on it look plausible but are not comparable with published ones."""
OWN = "own data"
"""Name of any other corpus."""
