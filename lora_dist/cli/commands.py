"""The commands, each of which parses, builds and calls. Their docstrings are the lines of `lora-dist --help`.

Modules with torch are imported inside the commands that need them, so that scoring and `--help` start at once.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from lora_dist.cli.arguments import (
    DecodeCommand,
    DemoCommand,
    DoctorCommand,
    GenerateCommand,
    MergeCommand,
    PlanCommand,
    ReportCommand,
    ScoreCommand,
    SweepCommand,
    TrainCommand,
    VerifyCommand,
)
from lora_dist.cli.parsing import parse, parse_with_preset, parse_with_settings
from lora_dist.config import DataSettings, ModelSettings
from lora_dist.errors import UserError
from lora_dist.files import save_text
from lora_dist.run_dir import RunDir
from lora_dist.run_guard import require_writable_file
from lora_dist.workflows.settings import ReproduceCommand


def run(argv: Sequence[str]) -> int:
    """Train, decode, score and report in one launch: run PRESET --out DIR."""
    from lora_dist.cli.training import claimed_output, training_world
    from lora_dist.decoding.decode import check_test_set, decode
    from lora_dist.distributed.collectives import on_main
    from lora_dist.evaluation.dev_scores import DevScorer
    from lora_dist.evaluation.formats import scores_table
    from lora_dist.evaluation.scoring import score_run
    from lora_dist.metrics.java import find_java
    from lora_dist.report.write import write_report
    from lora_dist.training.trainer import train as train_adapter

    command = parse_with_preset(TrainCommand, "run", run.__doc__, argv)
    settings, folder = command.sections(), RunDir(command.out)
    with training_world(command) as here, claimed_output(command, here) as overwrite:
        on_main(here, find_java)  # not after hours of training
        on_main(here, lambda: check_test_set(settings))
        train_adapter([(settings, folder)], here, overwrite=overwrite, scorer=DevScorer)
        decode(settings, folder, here)
        is_main = here.is_main
    if is_main:  # no rank waits while Java computes METEOR
        print(scores_table(score_run(folder)))
        print(write_report([folder], folder))
    return 0


def train(argv: Sequence[str]) -> int:
    """Train an adapter to OUT/adapter: train PRESET --out DIR."""
    from lora_dist.cli.training import claimed_output, training_world
    from lora_dist.evaluation.dev_scores import DevScorer
    from lora_dist.training.trainer import train as train_adapter

    command = parse_with_preset(TrainCommand, "train", train.__doc__, argv)
    folder = RunDir(command.out)
    with training_world(command) as here, claimed_output(command, here) as overwrite:
        train_adapter([(command.sections(), folder)], here, overwrite=overwrite, scorer=DevScorer)
        if here.is_main:
            print(f"adapter in {folder.adapter}; next: lora-dist decode {folder.root}")
    return 0


def sweep(argv: Sequence[str]) -> int:
    """Train many seeds or settings as one training, then decode, score and report: sweep PRESET --seeds 42 43 44."""
    from lora_dist.distributed.world import world
    from lora_dist.workflows.launch import report_launches
    from lora_dist.workflows.sweep import sweep_runs

    command = parse_with_preset(SweepCommand, "sweep", sweep.__doc__, argv)
    with world(command.device, hang_timeout=command.hang_timeout) as here:
        launches, is_main = sweep_runs(command, command.sections(), here), here.is_main
    return report_launches(launches, RunDir(command.out)) if is_main else 0


def decode(argv: Sequence[str]) -> int:
    """Write one sentence for each test MR to RUN/decode: decode RUN."""
    from lora_dist.decoding.decode import decode as decode_test_set
    from lora_dist.decoding.derived_run import check_target, derived_run, is_adapter, source_settings
    from lora_dist.distributed.collectives import context_on_main, on_main
    from lora_dist.distributed.world import world
    from lora_dist.run_guard import exclusive

    parsed = parse(DecodeCommand, "decode", argv)
    folder = RunDir(parsed.out or parsed.run)
    with world(parsed.device, hang_timeout=parsed.hang_timeout) as here:
        if parsed.out is None and on_main(here, lambda: is_adapter(parsed.run)):
            raise UserError(f"{parsed.run} is an adapter, not a run: add --out RUN, the folder for its sentences")
        saved = on_main(here, lambda: source_settings(parsed.run))  # another machine may not see it
        command = parse_with_settings(parsed, saved, "decode", argv)
        settings = replace(saved, model=command.model, data=command.data, decode=command.decode)
        with ExitStack() as stack:
            if command.out is not None:
                on_main(here, lambda: check_target(folder, command.run))  # before a lock is put there
            stack.enter_context(context_on_main(here, exclusive(folder)))
            if command.out is not None:
                stack.enter_context(context_on_main(here, derived_run(folder, command.run, settings)))
            decode_test_set(settings, folder, here)
        if here.is_main:
            print(f"sentences in {folder.outputs}; next: lora-dist report {folder.root}")
    return 0


def score(argv: Sequence[str]) -> int:
    """Score any outputs with the five official metrics: score REFERENCES OUTPUTS."""
    from lora_dist.evaluation.formats import scores_table
    from lora_dist.evaluation.scoring import score_files

    command = parse(ScoreCommand, "score", argv)
    used = [path for path in (command.references, command.outputs, command.mrs, command.against) if path is not None]
    for flag, target in (("--save", command.save), ("--sentence-level", command.sentence_level)):
        if target is not None:
            require_writable_file(target, flag, used)
            used.append(target)
    scores = score_files(
        command.references,
        command.outputs,
        command.mteval,
        mrs=command.mrs,
        partial=command.partial,
        sentence_level=command.sentence_level,
        resamples=command.bootstrap,
        against=command.against,
    )
    text = json.dumps(scores, indent=2)
    if command.save is not None:
        save_text(command.save, text + "\n")
    print(text if command.json else scores_table(scores))
    return 0


def report(argv: Sequence[str]) -> int:
    """Write the paper's tables with runs next to them, plots and sentences: report RUN..."""
    command = parse(ReportCommand, "report", argv)
    if not command.runs:
        raise UserError("report needs the folder of at least one decoded run: lora-dist report RUN...")
    runs = [RunDir(path) for path in command.runs]
    if command.compare:
        from lora_dist.report.compare import compare

        print(compare(*runs))
        return 0
    from lora_dist.report.write import write_report

    print(write_report(runs, RunDir(command.out or command.runs[0]), command.published))
    if command.push is not None:
        from lora_dist.evaluation.model_card import push

        print(push(runs[0], command.push))
    return 0


def generate(argv: Sequence[str]) -> int:
    """Print a sentence for each MR: generate RUN "name[The Eagle], food[French]" ..."""
    from lora_dist.data.e2e import format_mr, parse_mr
    from lora_dist.decoding.decoder import generate as generate_sentences
    from lora_dist.decoding.derived_run import adapter_folder, source_settings
    from lora_dist.distributed.world import world

    parsed = parse(GenerateCommand, "generate", argv)
    saved = source_settings(parsed.run)
    command = parse_with_settings(parsed, saved, "generate", argv)
    if not command.mrs:
        raise UserError('generate needs a meaning representation, such as "name[The Eagle], food[French]"')
    mrs = [format_mr(parse_mr(mr)) for mr in command.mrs]
    settings = replace(saved, model=command.model, decode=command.decode)
    with world(command.device) as here:
        for sentences in generate_sentences(settings, adapter_folder(command.run), here.device, mrs):
            for text, value in sentences:
                print(text if settings.decode.num_return == 1 else f"{value:.4f}\t{text}")
    return 0


def merge(argv: Sequence[str]) -> int:
    """Write a plain GPT-2 checkpoint with the adapter merged: merge RUN OUT."""
    from lora_dist.decoding.derived_run import adapter_folder, source_settings
    from lora_dist.model.adapter import save_merged

    parsed = parse(MergeCommand, "merge", argv)
    command = parse_with_settings(parsed, source_settings(parsed.run), "merge", argv)
    save_merged(command.model, adapter_folder(command.run), command.out)
    print(f"merged model in {command.out}")
    return 0


def bench(argv: Sequence[str]) -> int:
    """Measure our speed compared with other programs that do the same work: bench {decode,scaling,score,train}."""
    from lora_dist.cli.bench import bench as run_benchmark

    return run_benchmark(argv)


def plan(argv: Sequence[str]) -> int:
    """Print memory, communication volume and schedule of a training before anything is loaded: plan PRESET."""
    from lora_dist.planning.plan import check_memory, make_plan, to_json
    from lora_dist.planning.table import plan_table

    command = parse_with_preset(PlanCommand, "plan", plan.__doc__, argv)
    available = None if command.memory is None else int(command.memory * 2**30)
    planned = make_plan(command, command.processes, command.device, command.precision, available, command.together)
    print(plan_table(planned))
    if command.json is not None:
        save_text(command.json, json.dumps(to_json(planned), indent=2) + "\n")
    check_memory(planned)
    return 0


def doctor(argv: Sequence[str]) -> int:
    """Check this machine: versions, devices, Java, DeepSpeed, and whether two processes find each other."""
    from lora_dist.workflows.doctor import examine

    parse(DoctorCommand, "doctor", argv)
    return examine()


def verify(argv: Sequence[str]) -> int:
    """Verify on this machine that every strategy and number of processes gives the same result."""
    from lora_dist.distributed.device import default_processes
    from lora_dist.workflows.verify import verify as verify_here

    command = parse(VerifyCommand, "verify", argv)
    model = None if command.model is None else ModelSettings(name=str(command.model))
    data = None if command.data is None else DataSettings(dir=command.data)
    return verify_here(model, data, command.processes or (default_processes(),), command.accumulation)


def reproduce(argv: Sequence[str]) -> int:
    """Make the paper's tables from base models x presets x seeds: reproduce --out DIR."""
    from lora_dist.workflows.reproduce import reproduce as reproduce_tables

    return reproduce_tables(parse(ReproduceCommand, "reproduce", argv))


def demo(argv: Sequence[str]) -> int:
    """Run the whole pipeline offline on a synthetic corpus, in about two minutes."""
    from lora_dist.workflows.demo import run_demo

    command = parse(DemoCommand, "demo", argv)
    return run_demo(command.out, command.seed)
