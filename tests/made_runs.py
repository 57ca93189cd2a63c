"""Folders of runs as the commands leave them, made without training, decoding or Java."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora_dist.config import Settings
from lora_dist.config_io import to_json, write_config
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.metrics.slots.errors import ATTRIBUTES
from lora_dist.metrics.suite import METRICS
from lora_dist.presets import IMPROVED
from lora_dist.run_dir import RunDir

MRS = (
    "name[The Eagle], eatType[pub], food[French]",
    "name[Blue Spice], eatType[coffee shop], area[riverside]",
    "name[The Mill], familyFriendly[yes]",
)
REFERENCES = (("A French pub: The Eagle.", "The Eagle is a French pub."), ("Blue Spice by the river.",), ("The Mill.",))
TEXTS = ("The Eagle is a French pub.", "Blue Spice is a coffee shop.", "The Mill is family friendly.")
SCORES = (0.71234, 8.9, 0.46, 0.7, 2.5)


def made_run(
    folder: Path,
    settings: Settings = IMPROVED,
    *,
    scores: Sequence[float] = SCORES,
    texts: Sequence[str] = TEXTS,
    mrs: Sequence[str] = MRS,
    adapter: str = "",
    official: bool = True,
    corpus: str | None = None,
    bleu: str = "mteval-v13a-sig.pl, case-insensitive",
    dev_bleus: Sequence[float] = (),
) -> RunDir:
    """A run that was trained for 20 steps with a dev set after them, decoded into `texts`, and scored.

    Args:
        folder: of the run.
        settings: of training and decoding.
        scores: in the order of METRICS.
        texts: one per MR.
        mrs: of the test set.
        adapter: content of the adapter file; if empty, each folder has its own.
        official: whether these were the official test set.
        corpus: name of the corpus; None leaves it out, as earlier versions did.
        bleu: what computed BLEU.
        dev_bleus: BLEU of the dev set after each epoch, as without Java; the adapter is that of the best.
    """
    run = RunDir(folder)
    world = {"processes": 2, "strategy": "ddp", "device": "cpu", "precision": "fp32"}
    write_config(run, settings, world, {"train": "t" * 64, "dev": "d" * 64}, {"trainable": 2359296, "steps": 20})
    steps = [
        {"step": step, "loss": 3 - step / 20, "lr": 1e-4, "examples_per_second": 4.0, "peak_memory_gib": [1.0, 1.25]}
        for step in (10, 20)
    ]
    scored = [
        {"step": 10 * n, "epoch": float(n), "dev_loss": 2.0, "dev_BLEU": value, "dev_NIST": 9 * value}
        for n, value in enumerate(dev_bleus, start=1)
    ]
    write_jsonl(run.metrics, [*steps, *scored, {"step": 20, "dev_loss": 1.9, "dev_nll": 0.1, "dev_perplexity": 1.1}])
    if scored:
        best = dev_bleus.index(max(dev_bleus)) + 1
        write_json(run.config, {**read_object(run.config), "selection": {"epoch": best, "step": 10 * best}})
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_text(adapter or str(folder))
    pairs = list(zip(mrs, texts, strict=True))
    rows = [{"index": i, "mr": mr, "text": text, "score": -1.0} for i, (mr, text) in enumerate(pairs)]
    write_jsonl(run.outputs, rows)
    write_text(run.outputs_text, "".join(f"{text}\n" for text in texts))
    groups = [REFERENCES[i % len(REFERENCES)] for i in range(len(mrs))]
    write_text(run.references_text, "".join("\n".join(group) + "\n\n" for group in groups))
    digest = hashlib.sha256((adapter or str(folder)).encode()).hexdigest()
    decoding = {
        "decode": to_json(settings.decode),
        "adapter": digest,
        "base": "b" * 64,
        "test_data": "e" * 64,
        "official_test_set": official,
        "versions": {"torch": "2.13.0"},
        **({} if corpus is None else {"corpus": corpus}),
    }
    write_json(run.decode_signature, decoding)
    write_json(run.decode_timing, {"sentences": 3, "seconds": 1.5, **world})
    columns = ("src", "sys_out", "BLEU", "sentBLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
    sentences = [f"{mr}\t{text}\t0\t{i / len(mrs):.4f}\tnan\t0.4\t0.5\t1.5" for i, (mr, text) in enumerate(pairs)]
    write_text(run.sentence_scores, "\n".join(["\t".join(columns), *sentences]) + "\n")
    signature = {
        "BLEU": bleu,
        **{name: f"scorer of {name}" for name in METRICS[1:]},
        "outputs": hashlib.sha256(run.outputs_text.read_bytes()).hexdigest(),
        "decode": decoding,
    }
    slots = {"rate": 0.25, "slots": 8, **{kind: dict.fromkeys(ATTRIBUTES, 0) for kind in ("missing", "added")}}
    values = dict(zip(METRICS, scores, strict=True))
    intervals = {name: [value * 0.98, value * 1.02] for name, value in values.items()}
    write_json(
        run.scores,
        {
            **values,
            "bootstrap": {"resamples": 1000, "seed": 0, **intervals},
            "slot_error_rate": {**slots, "contradicted": {**dict.fromkeys(ATTRIBUTES, 0), "food": 2}},
            "signature": signature,
        },
    )
    return run


def seeded(settings: Settings, seed: int) -> Settings:
    """The settings with another seed."""
    return replace(settings, train=replace(settings.train, seed=seed))


def read_object(path: Path) -> dict[str, object]:
    """The JSON object of a file."""
    value: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return value
