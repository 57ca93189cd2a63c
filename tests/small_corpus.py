"""A synthetic corpus whose evaluation on the dev set takes less time than the training's steps."""

from pathlib import Path

from lora_dist.config import DataSettings
from lora_dist.data.e2e import FILES, load_split, write_csv
from lora_dist.data.synthetic import write_corpus

DEV_EXAMPLES = 19


def write_small_corpus(folder: Path, seed: int, num_train_mrs: int) -> None:
    """Write a synthetic corpus whose dev set has `DEV_EXAMPLES` examples instead of about 240."""
    write_corpus(folder, seed, num_train_mrs)
    write_csv(folder / FILES["dev"], load_split(DataSettings(dir=folder), "dev")[:DEV_EXAMPLES])
