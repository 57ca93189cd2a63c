#!/usr/bin/env bash
# Run the whole pipeline offline, on any machine with Python >= 3.11: a synthetic corpus in E2E's format, a tiny GPT-2
# trained from scratch, LoRA in two processes (or on all GPUs), beam search, the five scores, a report.
# Hardware: two CPU cores and 4 GiB of memory. Time: about two minutes after the installation.
# Leaves: runs/demo/run with scores.json, report.md and report.html. Extra arguments go to `lora-dist demo`.
set -euo pipefail
source "$(dirname "$0")/setup.sh" ""
export HF_HUB_OFFLINE=1
exec python -m lora_dist demo "$@"
