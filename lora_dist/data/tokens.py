"""The tokens of the corpus, and which of them have a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_dist.data.e2e import Example
from lora_dist.data.sampler import Indices
from lora_dist.errors import UserError

REFERENCE_TOKEN = "<|ref|>"
"""Stands between a meaning representation and its reference; added to the tokenizer by `base.load_tokenizer`."""


@dataclass(frozen=True, eq=False)
class TokenizedExamples:
    """Examples `MR <|ref|> REFERENCE<eos>` as token ids, end to end in one array."""

    ids: npt.NDArray[np.int32]
    """All tokens: (tokens,)."""
    starts: Indices
    """Where each example begins in `ids`, and the end: (examples + 1,)."""
    prompt_lengths: Indices
    """Tokens before the reference, including `<|ref|>`: (examples,)."""
    mrs: Indices
    """A number for the meaning representation of each example: (examples,)."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> Indices:
        """Tokens of each example: (examples,)."""
        return np.diff(self.starts)

    @property
    def label_counts(self) -> Indices:
        """Tokens of each example that the model learns to predict, including `<eos>`: (examples,)."""
        return self.lengths - self.prompt_lengths

    @property
    def work(self) -> Indices:
        """What each example costs to train, in half tokens: (examples,).

        A label goes through the vocabulary as well, which is half as much again as a token through GPT-2 Small's layers
        (38.6 and 85 million weights); the larger the model, the less it is.
        """
        return 2 * self.lengths + self.label_counts


def encode_prompts(tokenizer: Any, mrs: Sequence[str]) -> list[list[int]]:
    """Token ids of `MR <|ref|>`: what precedes a reference in training, and what decoding starts from."""
    if not mrs:
        return []
    encoded: list[list[int]] = tokenizer([f"{mr} {REFERENCE_TOKEN}" for mr in mrs], add_special_tokens=False).input_ids
    return encoded


def tokenize(tokenizer: Any, examples: Sequence[Example], max_length: int) -> TokenizedExamples:
    """Tokenise `MR <|ref|> REFERENCE<eos>`.

    Prompt and reference are encoded separately; as the reference token is never split or merged, that gives the tokens
    of the whole text.

    Raises:
        UserError: if an example is longer than the `max_length` positions of the model.
    """
    mrs = list(dict.fromkeys(example.mr for example in examples))
    numbers = {mr: number for number, mr in enumerate(mrs)}
    prompts = dict(zip(mrs, encode_prompts(tokenizer, mrs), strict=True))
    references = tokenizer([f" {e.reference.strip()}" for e in examples], add_special_tokens=False).input_ids
    rows = [
        [*prompts[example.mr], *reference, tokenizer.eos_token_id]
        for example, reference in zip(examples, references, strict=True)
    ]
    for row, example in zip(rows, examples, strict=True):
        if len(row) > max_length:
            raise UserError(
                f"an example has {len(row)} tokens, the model takes {max_length}: shorten {example.mr[:60]}..."
            )
    return TokenizedExamples(
        ids=np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]),
        starts=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
        prompt_lengths=np.asarray([len(prompts[example.mr]) for example in examples], dtype=np.int64),
        mrs=np.asarray([numbers[example.mr] for example in examples], dtype=np.int64),
    )
