"""What makes two trainings the same: for resuming one, and for the machines that make one together."""

from typing import Any

from lora_dist.config import Settings
from lora_dist.config_io import WITHOUT_EFFECT, as_options, versions
from lora_dist.data.token_cache import TokenizedCorpus
from lora_dist.distributed.world import World
from lora_dist.model.base import BaseIdentity

SAME_SENTENCES = frozenset(("--decode.batch-tokens", "--decode.limit", "--decode.num-return"))
"""Decoding options that change the dev set's sentences by rounding at most."""


def identity(settings: Settings, base: BaseIdentity, data: TokenizedCorpus) -> dict[str, Any]:
    """Return everything that determines adapter and dev losses; it must be the same when a run resumes."""
    options = as_options(settings, "model", "lora", "train")
    found = {
        "base model": base.fingerprint,
        "--data.linearization": settings.data.linearization,
        "--data.limit-dev": settings.data.limit_dev,  # or the losses of one log would be those of different examples
        "training data": data.fingerprints["train"],
        **{option: value for option, value in options.items() if option not in WITHOUT_EFFECT},
    }
    if settings.train.select == "best":
        decoding = as_options(settings, "decode")
        found["dev data"] = data.fingerprints["dev"]
        found |= {option: value for option, value in decoding.items() if option not in SAME_SENTENCES}
    return found


def must_agree(settings: Settings, base: BaseIdentity, data: TokenizedCorpus, world: World) -> dict[str, Any]:
    """Return what must be the same on all machines, as each has its own command line and files."""
    sections = ("model", "lora", "data", "train", *(["decode"] if settings.train.score_dev == "epoch" else []))
    fingerprints = {f"the {split} split's fingerprint": text for split, text in data.fingerprints.items()}
    found = {"the base model's fingerprint": base.fingerprint, "the precision": world.precision}
    return {**as_options(settings, *sections), **found, **fingerprints, **versions()}
