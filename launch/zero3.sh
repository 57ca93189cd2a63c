#!/usr/bin/env bash
# Train, decode, score and report on all GPUs of this machine with DeepSpeed ZeRO-3.
# Hardware: two or more GPUs, for a base model that does not fit into one.
# Time: slower than DDP, as every layer's weights are all-gathered in every forward pass.
# Leaves: the run directory given by --out (default runs/run): adapter, checkpoints, decode, scores.json, report.html.
# Usage: bash launch/zero3.sh {baseline,improved,original} [--out runs/NAME] [--model.name gpt2-medium] [--data.dir DIR] ...
set -euo pipefail
source "$(dirname "$0")/setup.sh" ""
# One process per GPU, or two on CPU cores; NUM_PROCESSES=N overrides it.
gpus=$(python -c "import torch; print(torch.cuda.device_count() or 2)")
exec accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes "${NUM_PROCESSES:-$gpus}" \
  -m lora_dist run "$@"
