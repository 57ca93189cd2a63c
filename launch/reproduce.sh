#!/usr/bin/env bash
# The paper's four tables with our own columns: GPT-2 Small and Medium, both configurations, three seeds each, every one
# an ordinary run below --out, then report.md and report.html over all of them.
# Hardware: the GPUs of this machine with 6 GiB each (one process a GPU), or CPU cores.
# Time: it measures a few updates and says; twelve runs of five epochs. Ours have not been timed on GPUs yet.
# Leaves: runs/reproduce/NAME for each run, runs/reproduce/report.md, report.html and plots/. Killed, it goes on where it
# was when started again.
# Usage: bash launch/reproduce.sh [--out runs/NAME] [--seeds 1 2 3 4 5] [--models gpt2] [--compare-decoding] ...
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec python -m lora_dist reproduce "$@"
