"""Tokenised splits cached on disk as Arrow files; they are memory-mapped, so the ranks of a machine share them."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from lora_dist.config import DataSettings, Linearization
from lora_dist.data.e2e import Example, fingerprint, load_split
from lora_dist.data.tokens import TokenizedExamples, tokenize
from lora_dist.files import new_folder

FORMAT = 2
"""Version of the file layout, part of the cache key."""

PROBES = 50
"""Examples whose tokens are part of the cache key: it then depends on what the tokenizer does, not only on its file,
and on the linearization of the MRs."""


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """The two splits that training reads."""

    train: TokenizedExamples
    dev: TokenizedExamples
    """The examples of the dev loss."""
    fingerprints: dict[str, str]
    """SHA-256 of each split's text, of the whole dev set even where its loss is that of a part."""


def load_corpus(settings: DataSettings, tokenizer: Any, max_length: int) -> TokenizedCorpus:
    """Load training and dev set as tokens, of the dev set only what its loss is computed on.

    Raises:
        UserError: if the corpus cannot be read, or an example is longer than the `max_length` positions of the model.
    """
    train, dev = load_split(settings, "train"), load_split(settings, "dev")
    return TokenizedCorpus(
        train=tokenize_cached(tokenizer, train, max_length, settings.linearization),
        dev=tokenize_cached(tokenizer, dev[: settings.limit_dev], max_length, settings.linearization),
        fingerprints={"train": fingerprint(train), "dev": fingerprint(dev)},
    )


def tokenize_cached(
    tokenizer: Any, examples: Sequence[Example], max_length: int, linearization: Linearization = "csv"
) -> TokenizedExamples:
    """Tokenise examples as `tokens.tokenize` does, or load them from the cache folder of Hugging Face's datasets.

    Raises:
        UserError: if an example is longer than the `max_length` positions of the model.
    """
    probe = hashlib.sha256(tokenize(tokenizer, examples[:PROBES], max_length, linearization).ids.tobytes()).hexdigest()
    key = f"{FORMAT} {max_length} {fingerprint(examples)} {probe} {tokenizer.backend_tokenizer.to_str()}"
    folder = Path(datasets.config.HF_DATASETS_CACHE, "lora_dist", hashlib.sha256(key.encode()).hexdigest()[:32])
    if (found := _load(folder)) is not None:
        return found
    tokenized = tokenize(tokenizer, examples, max_length, linearization)
    with suppress(OSError):  # a cache that cannot be written does not prevent training
        _save(folder, tokenized)
    return tokenized


def _save(folder: Path, tokenized: TokenizedExamples) -> None:
    ids = np.split(tokenized.ids, tokenized.starts[1:-1])
    columns = {"ids": ids, "prompt_length": tokenized.prompt_lengths, "mr": tokenized.mrs}
    features = {"ids": datasets.List(datasets.Value("int32")), "prompt_length": datasets.Value("int64")}
    dataset = datasets.Dataset.from_dict(columns, datasets.Features({**features, "mr": datasets.Value("int64")}))
    datasets.disable_progress_bars()
    with new_folder(folder) as temporary:
        dataset.save_to_disk(temporary)


def _load(folder: Path) -> TokenizedExamples | None:
    """Load the examples of a cache folder; return None if it is missing or damaged."""
    if not folder.is_dir():
        return None
    try:
        dataset = datasets.load_from_disk(str(folder)).data
    except (OSError, ValueError):
        return None
    ids = dataset.column("ids").combine_chunks()
    prompt_lengths, mrs = (dataset.column(name).to_numpy() for name in ("prompt_length", "mr"))
    return TokenizedExamples(ids.flatten().to_numpy(), ids.offsets.to_numpy().astype(np.int64), prompt_lengths, mrs)
