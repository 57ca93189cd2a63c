"""A plan as text, at most 100 columns wide."""

from collections.abc import Sequence

from lora_dist.planning.memory import MIB
from lora_dist.planning.plan import Plan

LABELS = {
    "weights": "frozen weights",
    "gathering": "buffers to gather them",
    "adapter": "adapter, fp32",
    "gradients": "gradients, fp32",
    "graphs": "gradient of CUDA graphs, fp32",
    "moments": "AdamW's moments, fp32",
    "activations": "activations for backward",
    "logits": "logits",
    "dev": "additional for the dev set",
    "process": "process without its tensors",
    "unused": "unused heap and pages",
    "loading": "additional while loading",
}
"""Names of the parts of `Memory` in the table."""


def plan_table(plan: Plan) -> str:
    """Format the plan as text."""
    needs, shape, schedule = plan.memory.values(), plan.corpus.largest, plan.schedule
    lines = [
        f"{plan.model}: {plan.trainable:,} trainable parameters, {plan.frozen:,} frozen ones in {plan.precision}, "
        f"on {plan.processes} x {plan.device}",
        "",
        _row("peak memory per process, MiB", list(plan.memory)),
    ]
    for part, label in LABELS.items():
        if any(sizes := [getattr(need, part) for need in needs]):
            lines.append(_row(f"  {label}", [_mib(size) for size in sizes]))
    lines.append(_row("  total", [_mib(need.total) for need in needs]))
    if plan.available is not None:
        fits = ["yes" if need.total <= plan.available else "NO" for need in needs]
        lines.append(_row(f"  fits into {plan.available / MIB:,.0f}", fits))
    lines += [_row("sent per step, MiB", [_mib(size) for size in plan.sent.values()]), ""]
    lines += [
        f"examples         {plan.corpus.examples:,}; the largest micro-batch of a process has {shape.rows} of them, "
        f"{shape.tokens} tokens, {shape.labels} labels",
        f"steps            {schedule.steps_per_epoch:,} per epoch, {schedule.steps:,} in total, of which "
        f"{schedule.warmup:,} warm-up ({schedule.warmup / schedule.steps:.1%})",
        f"at step          {''.join(f'{step:>12,}' for step, _ in schedule.learning_rates)}",
        f"learning rate    {''.join(f'{rate:>12.2g}' for _, rate in schedule.learning_rates)}",
        f"dev evaluations  {schedule.dev_evaluations}, each on {plan.corpus.dev_examples:,} examples "
        f"(--data.limit-dev); together about the time of {schedule.dev_steps:,} steps",
        f"checkpoints      {schedule.checkpoints}, of which the newest {schedule.checkpoints_kept} are kept, "
        f"{_mib(schedule.checkpoint_bytes)} MiB each",
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _row(label: str, values: Sequence[str]) -> str:
    return f"{label:<30}" + "".join(f"{value:>14}" for value in values)


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
