"""The command line of a training with dropout that takes a second, on a small corpus."""

from pathlib import Path

from small_corpus import write_small_corpus


def small_training(tiny_gpt2: Path, corpus: Path, settings: dict[str, object]) -> list[str]:
    """Write the corpus and return the arguments of two epochs of 3 steps on 20 examples, with `settings` instead."""
    write_small_corpus(corpus, seed=2, num_train_mrs=12)
    all_settings = {
        "--model.name": tiny_gpt2,
        "--model.dropout": 0.1,
        "--data.dir": corpus,
        "--data.limit-train": 20,
        "--train.epochs": 2,
        "--train.learning-rate": 1e-2,
        "--train.warmup-steps": 2,
        "--train.log-steps": 1,
        "--train.checkpoint-steps": 2,
        "--train.keep-checkpoints": 9,
        "--device": "cpu",
        **settings,
    }
    return ["train", "improved", *(str(part) for pair in all_settings.items() for part in pair)]
