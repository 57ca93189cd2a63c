"""The whole pipeline offline: a synthetic corpus, a tiny GPT-2 pre-trained on its text, then an ordinary run."""

import subprocess
from pathlib import Path

from lora_dist.data.synthetic import plain_texts, write_corpus
from lora_dist.distributed.device import default_processes
from lora_dist.distributed.launcher import launch_command, refuse_launcher
from lora_dist.errors import UserError
from lora_dist.files import new_folder, write_json
from lora_dist.model.tiny import pretrain
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import exclusive, has_content, require_folder

RUN_SETTINGS = {
    "--train.epochs": "2",
    "--train.global-batch-size": "16",
    "--train.learning-rate": "5e-3",  # suits a model this small
    "--train.warmup-steps": "50",
    "--model.dropout": "0.0",
}


MARKER = "demo.json"
"""File that tells the folder of a demo, which the next one may replace, from any other."""


def run_demo(folder: Path, seed: int) -> int:
    """Write corpus and base model to `folder`, then train, decode, score and report in one launch.

    Returns:
        The exit code of the run.

    Raises:
        UserError: if `folder` holds anything but an earlier demo, or another process writes to it.
    """
    refuse_launcher("demo")
    corpus, base, run = folder / "corpus", folder / "base", RunDir(folder / "run")
    require_folder(RunDir(folder))
    if has_content(folder) and not (folder / MARKER).is_file():
        raise UserError(f"--out {folder} is not empty and holds no demo: name another folder")
    with exclusive(RunDir(folder)):
        write_json(folder / MARKER, {"seed": seed})
        print("1/3 a synthetic corpus in E2E's format", flush=True)
        write_corpus(corpus, seed)
        print("2/3 a tiny GPT-2, pre-trained on the corpus' plain text", flush=True)
        with new_folder(base) as temporary:
            pretrain(plain_texts(corpus), temporary, seed)
        processes = default_processes()
        print(f"3/3 LoRA on {processes} processes, beam search, scores, report", flush=True)
        command = [*launch_command(processes), "-m", "lora_dist", "run", "improved"]
        settings = {**RUN_SETTINGS, "--train.seed": str(seed), "--model.name": str(base), "--data.dir": str(corpus)}
        arguments = [text for pair in settings.items() for text in pair]
        overwrite = ["--overwrite"] if run.config.exists() else []
        return subprocess.run([*command, *arguments, "--out", str(run.root), *overwrite], check=False).returncode
