#!/usr/bin/env bash
# Reproduce the paper's four tables with our own columns: GPT-2 Small and Medium, both configurations, three seeds each.
# Each is an ordinary run below --out; report.md and report.html cover all of them.
# Hardware: the GPUs of this machine with 6 GiB each (one process per GPU), or CPU cores.
# Time: twelve runs of five epochs; it measures a few steps first and prints an estimate. Not timed on GPUs yet.
# Leaves: runs/reproduce/NAME for each run, runs/reproduce/report.md, report.html and plots/. After a kill, the same
# command resumes.
# Usage: bash launch/reproduce.sh [--out runs/NAME] [--seeds 1 2 3 4 5] [--models gpt2] [--compare-decoding] ...
set -euo pipefail
source "$(dirname "$0")/setup.sh" ""
exec python -m lora_dist reproduce "$@"
