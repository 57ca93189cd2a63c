"""The help of a command before a preset is chosen: what it does, its main settings, and where the others are."""

from lora_dist.presets import PRESETS

_RUN = {
    "--out DIR": "folder of the run (runs/run)",
    "--resume": "resume it from its newest complete checkpoint, or start it if there is none",
}
_SWEEP = {
    "--seeds N ...": "one run for each (42 43 44), times each of these, and",
    "--learning-rates X ...": "of --alphas, --dropouts, --inits, --warmup-steps, --weight-decays, --label-smoothings",
    "--out DIR": "folder of the runs and their report (runs/sweep); given again, complete runs are skipped",
}
_PLAN = {
    "--processes N": "processes to plan for (1)",
    "--device D": "auto, cpu or cuda (auto: what this machine has)",
}
_ALL = {
    "--model.name M": "hub id or folder of a GPT-2 (gpt2; with original gpt2-medium)",
    "--data.dir DIR": "folder with E2E's CSV files, or your own (E2E from the hub)",
}

MAIN_SETTINGS = {
    "run": (_RUN, "lora-dist run improved --out runs/small"),
    "train": (_RUN, "lora-dist train improved --out runs/small"),
    "sweep": (_SWEEP, "lora-dist sweep improved --seeds 42 43 44 --learning-rates 1e-4 2e-4 --out runs/sweep"),
    "plan": (_PLAN, "lora-dist plan improved --processes 2 --device cuda"),
}
"""The settings of a command that a first run needs, defaults in brackets, and an example."""


def usage(name: str, summary: str) -> str:
    """Return the help of the command `name` without a preset, with what it does as `summary`."""
    presets = [f"  {preset:<9} {PRESETS[preset].summary}" for preset in PRESETS]
    lines = [f"usage: lora-dist {name} {{{','.join(PRESETS)}}} [settings]", "", summary, "", "presets:", *presets, ""]
    if name in MAIN_SETTINGS:
        main, example = MAIN_SETTINGS[name]
        settings = {**main, **_ALL}
        width = max(map(len, settings))
        lines += ["main settings (and their defaults):"]
        lines += [f"  {flag:<{width}}  {meaning}" for flag, meaning in settings.items()]
        lines += ["", f"example: {example}", ""]
    first = next(iter(PRESETS))
    return "\n".join([*lines, f"All settings, with their meaning and defaults: lora-dist {name} {first} --help"])
