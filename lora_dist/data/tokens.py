"""The corpus as token ids, and which tokens are labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_dist.config import Linearization
from lora_dist.data.e2e import Example, parse_mr
from lora_dist.data.sampler import Indices
from lora_dist.errors import UserError

REFERENCE_TOKEN = "<|ref|>"
"""Separates a meaning representation (MR) from its reference; `base.load_tokenizer` adds it to the tokenizer."""

_AUTHORS_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


@dataclass(frozen=True, eq=False)
class TokenizedExamples:
    """Examples `MR <|ref|> REFERENCE<eos>` as token ids, concatenated in one array."""

    ids: npt.NDArray[np.int32]
    """Token ids of all examples: (tokens,)."""
    starts: Indices
    """Offset of each example in `ids`, and the total length: (examples + 1,)."""
    prompt_lengths: Indices
    """Tokens before the reference, including `<|ref|>`: (examples,)."""
    mrs: Indices
    """Index of each example's MR among the distinct MRs: (examples,)."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> Indices:
        """Tokens of each example: (examples,)."""
        return np.diff(self.starts)

    @cached_property
    def label_counts(self) -> Indices:
        """Tokens of each example that the model learns to predict, including `<eos>`: (examples,)."""
        return self.lengths - self.prompt_lengths

    @cached_property
    def work(self) -> Indices:
        """Cost of training on each example, in units of half a token: (examples,).

        A label also goes through the output projection, which costs about half as much as a token in GPT-2 Small's
        layers (38.6 vs. 85 million weights) and less in larger models.
        """
        return 2 * self.lengths + self.label_counts


def linearize(mr: str) -> str:
    """Write an MR as the LoRA authors do in their copy of the corpus (examples/NLG/data/e2e): `name : X | Type : pub`.

    Raises:
        UserError: if the text is not an MR.
    """
    slots = [(_AUTHORS_NAMES.get(name, name), value.replace("£", "£ ")) for name, value in parse_mr(mr)]
    return " | ".join(f"{name} : {value}" for name, value in slots)


def encode_prompts(tokenizer: Any, mrs: Sequence[str], linearization: Linearization = "csv") -> list[list[int]]:
    """Encode `MR <|ref|>`, which precedes a reference in training and is the prompt in decoding.

    Args:
        tokenizer: the model's tokenizer.
        mrs: the MRs as in the CSV files.
        linearization: how to write them.

    Raises:
        UserError: if a text is not an MR and has to be rewritten.
    """
    if not mrs:
        return []
    prompts = [f"{mr if linearization == 'csv' else linearize(mr)} {REFERENCE_TOKEN}" for mr in mrs]
    encoded: list[list[int]] = tokenizer(prompts, add_special_tokens=False).input_ids
    return encoded


def tokenize(
    tokenizer: Any, examples: Sequence[Example], max_length: int, linearization: Linearization = "csv"
) -> TokenizedExamples:
    """Tokenise `MR <|ref|> REFERENCE<eos>`, with the MR as in `encode_prompts`.

    Prompt and reference are encoded separately. The reference token is never split or merged, so the result is the same
    as for the whole text.

    Raises:
        UserError: if an example is longer than the `max_length` positions of the model.
    """
    mrs = list(dict.fromkeys(example.mr for example in examples))
    mr_indices = {mr: index for index, mr in enumerate(mrs)}
    prompts = dict(zip(mrs, encode_prompts(tokenizer, mrs, linearization), strict=True))
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
        mrs=np.asarray([mr_indices[example.mr] for example in examples], dtype=np.int64),
    )
