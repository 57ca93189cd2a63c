"""launch/multi_node.slurm with stand-ins for SLURM's commands: both nodes are this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, TIMEOUT, assert_same_training, lora_dist, train_arguments

pytestmark = pytest.mark.launched

SRUN = """#!/usr/bin/env bash
# One task per node, all on this machine; the step fails as its first failing task does.
[ "$1" = --kill-on-bad-exit=1 ] && shift
export SLURM_STEP_NUM_TASKS=$SLURM_NNODES
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit ${code:-0}
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1-2]" ] || exit 1
printf 'localhost\\nelsewhere.invalid\\n'
"""
ACCELERATE = """#!/usr/bin/env bash
# Writes its arguments to a file per node instead of starting processes; fails on node $FAILING.
printf '%s\\n' "$@" >"$ARGUMENTS.$SLURM_NODEID"
[ "$SLURM_NODEID" != "${FAILING:-}" ]
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch job on two nodes without GPUs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    submitted = tmp_path / "checkout"
    (submitted / ".venv" / "bin").mkdir(parents=True)
    (submitted / ".venv" / "bin" / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    config = Path("accelerate_configs") / "multi_node.yaml"
    (submitted / config).parent.mkdir()
    (submitted / config).write_text((ROOT / config).read_text().replace("precision: bf16", 'precision: "no"'))
    job = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    job |= {"SLURM_SUBMIT_DIR": str(submitted), "SLURM_JOB_CPUS_PER_NODE": "16(x2)", "SLURM_CPUS_PER_TASK": "16"}
    common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **common, **job, "PATH": f"{tools}:{os.environ['PATH']}"}


def sbatch(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "launch" / "multi_node.slurm"
    return subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.slow
def test_the_batch_script_joins_its_nodes(
    cluster: dict[str, str], tiny_gpt2: Path, corpus: Path, tmp_path: Path
) -> None:
    out, single = tmp_path / "a run's folder", tmp_path / "one"
    command = [*train_arguments(tiny_gpt2, corpus), "--decode.limit", 3, "--decode.max-new-tokens", 8]
    done = sbatch(cluster, *command, "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["world"]["processes"] == 2
    assert (out / "scores.json").is_file()
    lora_dist("train", *command, "--out", single)
    assert_same_training(out, single)


def without_processes(cluster: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of the batch job with a stand-in for accelerate, which writes `folder`/arguments.NODE."""
    accelerate = folder / "tools" / "accelerate"
    accelerate.write_text(ACCELERATE)
    accelerate.chmod(0o755)
    (folder / "checkout" / ".venv" / "bin" / "activate").write_text("")
    return {**cluster, "ARGUMENTS": str(folder / "arguments")}


def test_the_batch_script_starts_one_launcher_per_node_with_its_rank_and_the_first_nodes_address(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    done = sbatch(without_processes(cluster, tmp_path), "improved", "--out", "a run's folder")
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        _, *words = (tmp_path / f"arguments.{rank}").read_text().splitlines()
        options = dict(zip(words[: words.index("-m")][::2], words[1::2], strict=False))
        assert options == {
            "--config_file": "accelerate_configs/multi_node.yaml",
            "--num_machines": "2",
            "--num_processes": "2",
            "--machine_rank": str(rank),
            "--main_process_ip": "localhost",
            "--main_process_port": "24711",
        }
        assert words[words.index("-m") :] == [
            "-m",
            "lora_dist",
            "run",
            "improved",
            "--out",
            "a run's folder",
            "--resume",
        ]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_node_that_fails_fails_the_job(failing: int, cluster: dict[str, str], tmp_path: Path) -> None:
    environment = without_processes(cluster, tmp_path)
    assert sbatch({**environment, "FAILING": str(failing)}, "improved").returncode != 0


# By default, a stand-in for the launcher fails, see above.
@pytest.mark.slow
def test_a_mistake_fails_the_job(cluster: dict[str, str], tmp_path: Path) -> None:
    done = sbatch(cluster, "improved", "--train.epochs", -1, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "--train.epochs" in done.stderr
