"""Tokenised splits kept on the disk as Arrow files, which are mapped into memory and not read: all ranks share them."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from lora_dist.data.collate import TokenizedExamples, tokenize
from lora_dist.data.e2e import Example, fingerprint
from lora_dist.files import new_folder

FORMAT = 1
"""To be raised whenever `batches.tokenize` gives other tokens for the same text and tokenizer."""


def tokenize_cached(tokenizer: Any, examples: Sequence[Example], max_length: int) -> TokenizedExamples:
    """What `batches.tokenize` gives, from the cache of Hugging Face's datasets if it is there, and put there if not.

    Raises:
        UserError: if an example is longer than the `max_length` positions of the model.
    """
    key = f"{FORMAT} {max_length} {fingerprint(examples)} {tokenizer.backend_tokenizer.to_str()}"
    folder = Path(datasets.config.HF_DATASETS_CACHE, "lora_dist", hashlib.sha256(key.encode()).hexdigest()[:32])
    if (found := _load(folder)) is not None:
        return found
    tokenized = tokenize(tokenizer, examples, max_length)
    with suppress(OSError):  # a cache that cannot be written is no reason not to train
        _save(folder, tokenized)
    return tokenized


def _save(folder: Path, tokenized: TokenizedExamples) -> None:
    ids = np.split(tokenized.ids, tokenized.starts[1:-1])
    columns = {"ids": ids, "prompt_length": tokenized.prompt_lengths, "mr": tokenized.mrs}
    features = {"ids": datasets.List(datasets.Value("int32")), "prompt_length": datasets.Value("int64")}
    table = datasets.Dataset.from_dict(columns, datasets.Features({**features, "mr": datasets.Value("int64")}))
    datasets.disable_progress_bars()
    with new_folder(folder) as temporary:
        table.save_to_disk(temporary)


def _load(folder: Path) -> TokenizedExamples | None:
    """The examples of a cache folder; None if it is not there or damaged."""
    if not folder.is_dir():
        return None
    try:
        table = datasets.load_from_disk(str(folder)).data
    except (OSError, ValueError):
        return None
    ids = table.column("ids").combine_chunks()
    prompt_lengths, mrs = (table.column(name).to_numpy() for name in ("prompt_length", "mr"))
    return TokenizedExamples(ids.flatten().to_numpy(), ids.offsets.to_numpy().astype(np.int64), prompt_lengths, mrs)
