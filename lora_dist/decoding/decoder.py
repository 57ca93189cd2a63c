"""A decoder: from texts of meaning representations (MRs) to sentences, with a model and the adapter merged into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_dist.config import DecodeSettings, Settings
from lora_dist.data.e2e import one_line
from lora_dist.data.tokens import encode_prompts
from lora_dist.decoding.beam_search import Sentence, beam_search
from lora_dist.decoding.kv_cache import DecodingModel, lay_out
from lora_dist.decoding.ledger import Found
from lora_dist.model.adapter import load_adapted
from lora_dist.model.base import DTYPES, base_fingerprint
from lora_dist.model.kernels.select import kernels_for
from lora_dist.model.lora import fold


@dataclass(frozen=True)
class Decoder:
    """A model with the adapter merged, laid out for decoding, and its tokenizer."""

    model: DecodingModel
    tokenizer: Any
    base_fingerprint: str
    """See `base.base_fingerprint`."""
    settings: DecodeSettings

    def sentences(self, prompts: Sequence[Sequence[int]]) -> list[Found]:
        """Search the `num_return` best sentences of each prompt, in one batch."""
        searched = beam_search(self.model, prompts, self.settings, self.tokenizer.eos_token_id)
        kept = self.settings.num_return
        return [[(self.to_text(s), s.score) for s in sentences[:kept]] for sentences in searched]

    def to_text(self, sentence: Sentence) -> str:
        """Decode a sentence to one line of text, without special tokens."""
        text: str = self.tokenizer.decode(sentence.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return one_line(text)


def load_decoder(settings: Settings, adapter: Path, device: torch.device) -> Decoder:
    """Load GPT-2 with the adapter merged on `device`, in the precision for decoding.

    Raises:
        UserError: if there is no adapter, or it was trained on another base model.
    """
    kernels_for(device).set_up_process()
    gpt2, tokenizer = load_adapted(settings.model, adapter)
    base = base_fingerprint(gpt2, tokenizer)
    fold(gpt2)
    model = lay_out(gpt2.to(device, DTYPES[settings.decode.precision]))
    return Decoder(model, tokenizer, base, settings.decode)


def generate(settings: Settings, adapter: Path, device: torch.device, mrs: Sequence[str]) -> list[Found]:
    """Return the `num_return` best sentences of each MR."""
    decoder = load_decoder(settings, adapter, device)
    return decoder.sentences(encode_prompts(decoder.tokenizer, mrs, settings.data.linearization))
