#!/usr/bin/env bash
# Train, decode, score and report on one device.
# Hardware: one GPU with 4 GiB, or CPU cores.
# Time: the paper needed about an hour for GPT-2 Small on one RTX A6000; ours has not been timed on GPUs yet.
# Leaves: the run directory given by --out (default runs/run): adapter, checkpoints, decode, scores.json, report.html.
# Usage: bash launch/single.sh {baseline,improved,original} [--out runs/NAME] [--model.name gpt2-medium] [--data.dir DIR] ...
set -euo pipefail
source "$(dirname "$0")/setup.sh" ""
exec python -m lora_dist run "$@"
