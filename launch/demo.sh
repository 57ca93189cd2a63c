#!/usr/bin/env bash
# The whole job, offline, on any machine with Python >= 3.10: a synthetic corpus in E2E's format, a tiny GPT-2 made on
# the spot, LoRA on two processes (or on all GPUs), beam search, the five scores, a report.
# Hardware: two CPU cores and 4 GiB will do. Time: about two minutes after the install.
# Leaves: runs/demo/run with scores.json, report.md and report.html. Extra arguments go to `lora-dist demo`.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1
exec python -m lora_dist demo "$@"
