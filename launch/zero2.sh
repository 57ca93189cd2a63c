#!/usr/bin/env bash
# Train, decode, score and report on all GPUs of this machine with DeepSpeed ZeRO-2.
# Hardware: two or more GPUs. Saves little memory compared with DDP, as gradients and optimizer state of LoRA are tiny.
# Time: the paper needed about an hour for GPT-2 Small on one RTX A6000; ours has not been timed on GPUs yet.
# Leaves: the run directory given by --out (default runs/run): adapter, checkpoints, decode, scores.json, report.html.
# Usage: bash launch/zero2.sh {baseline,improved,original} [--out runs/NAME] [--model.name gpt2-medium] [--data.dir DIR] ...
set -euo pipefail
source "$(dirname "$0")/setup.sh" ""
# One process per GPU, or two on CPU cores; NUM_PROCESSES=N overrides it.
gpus=$(python -c "import torch; print(torch.cuda.device_count() or 2)")
exec accelerate launch --config_file accelerate_configs/zero2.yaml --num_processes "${NUM_PROCESSES:-$gpus}" \
  -m lora_dist run "$@"
