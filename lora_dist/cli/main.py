"""The command line: parse, build, call. What a command does is written where its name says.

Modules that need torch are imported by the commands that need them, so that scoring and `--help` start at once.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import tyro

from lora_dist.cli.commands import (
    DecodeCommand,
    DemoCommand,
    DoctorCommand,
    GenerateCommand,
    MergeCommand,
    PlanCommand,
    ReportCommand,
    ReproduceCommand,
    ScoreCommand,
    TrainCommand,
    VerifyCommand,
)
from lora_dist.cli.parsing import parse_again, parse_with_preset
from lora_dist.config import DataSettings, ModelSettings, UserError
from lora_dist.distributed.launcher import restarts
from lora_dist.distributed.signals import EXIT_CODE as INTERRUPTED
from lora_dist.distributed.signals import Interrupted
from lora_dist.files import save_text
from lora_dist.run_dir import RunDir

if TYPE_CHECKING:
    from lora_dist.distributed.world import World


def run(argv: Sequence[str]) -> int:
    """Train, decode, score and report in one launch: run {baseline,improved} --out DIR."""
    from lora_dist.data.e2e import load_split
    from lora_dist.decoding.decode import decode
    from lora_dist.distributed.world import on_main
    from lora_dist.evaluation.scoring import score_run, table
    from lora_dist.metrics.java import find_java
    from lora_dist.report.write import write_report
    from lora_dist.training.trainer import train as train_adapter

    command = parse_with_preset(TrainCommand, "run", run.__doc__, argv)
    folder = RunDir(command.out)
    with _training_world(command) as here:
        on_main(here, lambda: (str(find_java()), len(load_split(command.data, "test"))))  # not after hours of training
        train_adapter(command.sections(), folder, here, overwrite=command.overwrite and not restarts())
        decode(command.sections(), folder, here)
        is_main = here.is_main
    if is_main:  # no rank waits while Java computes METEOR
        print(table(score_run(folder)))
        print(write_report([folder], folder))
    return 0


def train(argv: Sequence[str]) -> int:
    """Train an adapter to OUT/adapter: train {baseline,improved} --out DIR."""
    from lora_dist.training.trainer import train as train_adapter

    command = parse_with_preset(TrainCommand, "train", train.__doc__, argv)
    folder = RunDir(command.out)
    with _training_world(command) as here:
        train_adapter(command.sections(), folder, here, overwrite=command.overwrite and not restarts())
        if here.is_main:
            print(f"adapter in {folder.adapter}; next: lora-dist decode {folder.root}")
    return 0


def decode(argv: Sequence[str]) -> int:
    """Write one sentence for each test MR to RUN/decode: decode RUN."""
    from lora_dist.decoding.decode import decode as decode_test_set
    from lora_dist.decoding.derived_run import copy_to, saved_settings
    from lora_dist.distributed.world import on_main, world

    parsed = tyro.cli(DecodeCommand, prog="lora-dist decode", args=argv)
    folder = RunDir(parsed.out or parsed.run)
    with world(parsed.device, hang_timeout=parsed.hang_timeout) as here:
        saved = on_main(here, lambda: saved_settings(parsed.run, parsed.out))  # another machine may not see it
        command = parse_again(parsed, saved, "decode", argv)
        settings = replace(saved, model=command.model, data=command.data, decode=command.decode)
        if command.out is not None:
            on_main(here, lambda: copy_to(folder, command.run, settings))
        decode_test_set(settings, folder, here)
        if here.is_main:
            print(f"sentences in {folder.outputs}; next: lora-dist report {folder.root}")
    return 0


def score(argv: Sequence[str]) -> int:
    """The five official metrics of any outputs: score REFERENCES OUTPUTS."""
    from lora_dist.evaluation.scoring import score_files, table
    from lora_dist.metrics.readers import read_sources

    command = tyro.cli(ScoreCommand, prog="lora-dist score", args=argv)
    scores = score_files(
        command.references,
        command.outputs,
        command.mteval,
        mrs=None if command.mrs is None else read_sources(command.mrs),
        sentence_level=command.sentence_level,
        resamples=command.bootstrap,
        against=command.against,
    )
    text = json.dumps(scores, indent=2)
    if command.save is not None:
        save_text(command.save, text + "\n")
    print(text if command.json else table(scores))
    return 0


def report(argv: Sequence[str]) -> int:
    """The paper's tables with runs beside them, plots and sentences: report RUN..."""
    command = tyro.cli(ReportCommand, prog="lora-dist report", args=argv)
    if not command.runs:
        raise UserError("report needs the folder of at least one decoded run: lora-dist report RUN...")
    runs = [RunDir(path) for path in command.runs]
    if command.compare:
        from lora_dist.report.compare import compare

        print(compare(*runs))
        return 0
    from lora_dist.report.write import write_report

    print(write_report(runs, RunDir(command.out or command.runs[0])))
    if command.push is not None:
        from lora_dist.evaluation.model_card import push

        print(push(runs[0], command.push))
    return 0


def generate(argv: Sequence[str]) -> int:
    """A sentence for each MR: generate RUN "name[The Eagle], food[French]" ..."""
    from lora_dist.data.e2e import format_mr, parse_mr
    from lora_dist.decoding.decode import generate as generate_sentences
    from lora_dist.distributed.world import world

    parsed = tyro.cli(GenerateCommand, prog="lora-dist generate", args=argv)
    command = parse_again(parsed, RunDir(parsed.run).settings(), "generate", argv)
    if not command.mrs:
        raise UserError('generate needs a meaning representation, such as "name[The Eagle], food[French]"')
    mrs = [format_mr(parse_mr(mr)) for mr in command.mrs]
    folder = RunDir(command.run)
    settings = replace(folder.settings(), model=command.model, decode=command.decode)
    with world(command.device) as here:
        for sentences in generate_sentences(settings, folder.adapter, here.device, mrs):
            for text, score in sentences:
                print(text if settings.decode.num_return == 1 else f"{score:.4f}\t{text}")
    return 0


def merge(argv: Sequence[str]) -> int:
    """A plain GPT-2 checkpoint with the adapter in its weights: merge RUN OUT."""
    from lora_dist.decoding.decode import load_merged
    from lora_dist.files import new_folder

    parsed = tyro.cli(MergeCommand, prog="lora-dist merge", args=argv)
    command = parse_again(parsed, RunDir(parsed.run).settings(), "merge", argv)
    if command.out.exists() and (not command.out.is_dir() or any(command.out.iterdir())):
        raise UserError(f"{command.out} exists already: name a new folder")
    model, tokenizer = load_merged(command.model, RunDir(command.run).adapter)
    with new_folder(command.out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"merged model in {command.out}")
    return 0


def bench(argv: Sequence[str]) -> int:
    """Our time beside others' for the same job: bench {decode,scaling,score,train}."""
    from lora_dist.cli.bench import bench as bench_job

    return bench_job(argv)


def plan(argv: Sequence[str]) -> int:
    """Memory, traffic and schedule of a training, before anything is loaded: plan {baseline,improved}."""
    from lora_dist.planning.plan import check_memory, make_plan, to_json
    from lora_dist.planning.table import table

    command = parse_with_preset(PlanCommand, "plan", plan.__doc__, argv)
    available = None if command.memory is None else int(command.memory * 2**30)
    planned = make_plan(command, command.processes, command.device, command.precision, available)
    print(table(planned))
    if command.json is not None:
        save_text(command.json, json.dumps(to_json(planned), indent=2) + "\n")
    check_memory(planned)
    return 0


def doctor(argv: Sequence[str]) -> int:
    """What this machine offers: devices, launcher, Java, DeepSpeed, versions, a two-process all-reduce."""
    from lora_dist.workflows.doctor import examine

    tyro.cli(DoctorCommand, prog="lora-dist doctor", args=argv, description=doctor.__doc__)
    return examine()


def verify(argv: Sequence[str]) -> int:
    """Proof on this machine that every strategy and number of processes gives the same result."""
    from lora_dist.distributed.device import default_processes
    from lora_dist.workflows.verify import verify as verify_here

    command = tyro.cli(VerifyCommand, prog="lora-dist verify", args=argv)
    return verify_here(
        None if command.model is None else ModelSettings(name=str(command.model)),
        None if command.data is None else DataSettings(dir=command.data),
        command.processes or (default_processes(),),
        command.accumulation,
    )


def reproduce(argv: Sequence[str]) -> int:
    """Base models x presets x seeds, then the paper's tables: reproduce --out DIR."""
    from lora_dist.workflows.reproduce import reproduce as reproduce_tables

    return reproduce_tables(tyro.cli(ReproduceCommand, prog="lora-dist reproduce", args=argv))


def demo(argv: Sequence[str]) -> int:
    """The whole job offline on a synthetic corpus, in about two minutes."""
    from lora_dist.workflows.demo import run_demo

    command = tyro.cli(DemoCommand, prog="lora-dist demo", args=argv)
    return run_demo(command.out, command.seed)


_ALL = (run, train, decode, score, report, generate, merge, plan, bench, verify, reproduce, doctor, demo)
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {function.__name__: function for function in _ALL}


@contextmanager
def _training_world(command: TrainCommand) -> Iterator["World"]:
    """The processes of a training, once it is clear that its folder may be written to."""
    from lora_dist.distributed.world import on_main, world

    resume = command.resume or restarts() > 0  # what torchrun starts again goes on where it was
    with world(
        command.device, tracker=command.train.tracker, folder=command.out, hang_timeout=command.hang_timeout
    ) as here:
        on_main(here, lambda: RunDir(command.out).check(resume=resume, overwrite=command.overwrite))
        yield here


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 if it worked, 2 for a mistake of the user, which is told in one sentence, `interruption.EXIT_CODE` if a signal
    ended it and the same command goes on where it was.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"there is no command {arguments[0]}: choose one of {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except (UserError, FloatingPointError, Interrupted) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # once a machine: its other ranks would say the same
            print(f"lora-dist: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else INTERRUPTED if isinstance(error, Interrupted) else 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            "lora-dist: the disk is full; nothing that was complete is lost: make room, then give the same command "
            "again, a training with --resume",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("lora-dist: stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT


def _usage() -> str:
    lines = [f"  {name:<9} {(function.__doc__ or '').strip()}" for name, function in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lora-dist COMMAND ...          on one device",
            "       accelerate launch --config_file accelerate_configs/ddp.yaml -m lora_dist COMMAND ...",
            "",
            "LoRA fine-tuning of GPT-2 on the E2E NLG Challenge. Settings of a command: lora-dist COMMAND --help",
            "",
            *lines,
        ]
    )
