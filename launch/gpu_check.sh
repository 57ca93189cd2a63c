#!/usr/bin/env bash
# Check and measure everything on one GPU: the GPU tests, the training step and decoding next to their peers, and the
# time and memory of a whole training. Prints one table. Nothing is installed and nothing is downloaded.
# Hardware: one GPU with 16 GiB. Time: meant for eight minutes on an H100, where it has not been timed yet. Without a
# GPU it is a dry run of a few steps.
# Leaves: OUT/NAME.json and OUT/NAME.log of each part, and OUT/table.md (default OUT: runs/gpu_check).
# Usage: bash launch/gpu_check.sh [--out OUT] [tests] [train] [decode] [epochs]    no name: all parts
# MODEL and DATA name the base model, whose tokenizer is used, and the corpus: gpt2 from the hub's cache and
# tuetschek/e2e_nlg by default, or what stands in ../shared.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
if [ -x .venv/bin/python ]; then source .venv/bin/activate; fi
export HF_HUB_OFFLINE=1
out=runs/gpu_check
if [ "${1:-}" = --out ]; then
  out=${2:?--out needs a folder}
  shift 2
fi
parts=${*:-tests train decode epochs}
for part in $parts; do
  case $part in tests | train | decode | epochs) ;; *)
    echo "$part is no part: give some of tests, train, decode, epochs" >&2
    exit 2
    ;;
  esac
done
mkdir -p "$out" || exit 2
model=${MODEL:-$([ -d ../shared/mini-gpt2 ] && echo ../shared/mini-gpt2 || echo gpt2)}
data=${DATA:-$([ -d ../shared/e2e ] && echo ../shared/e2e)}
inputs=(--model.name "$model" ${data:+--data.dir "$data"})

# Lines of SHAPE:PRESET; the empty shape is the model's own.
if python3 -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  cases="small:baseline small:improved medium:baseline medium:improved"
  train=(--updates 12 --together 8 --programs "ours, bf16" "ours, eager, bf16" "ours, 8 together" "PEFT and Trainer, bf16")
  epochs=(--updates 300)
  limit=150
else
  echo "no GPU here: a dry run, in which the tests skip and train and epochs make a few steps; decode is left out"
  cases=":baseline"
  parts=${parts/decode/}
  train=(--updates 1 --programs ours)
  epochs=(--updates 3)
  limit=900
fi

failed=()
measure() { # NAME SECONDS COMMAND...: the output goes to NAME.log; a failing or late part does not stop the others
  local name=$1 seconds=$2 begin=$SECONDS
  shift 2
  echo "$name ..."
  rm -f "$out/$name.json"
  # As by Ctrl-C, so that pytest tells what has failed until then.
  if timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1; then
    echo "$name: $((SECONDS - begin)) s"
  else
    failed+=("$name")
    echo "$name FAILED after $((SECONDS - begin)) s, see $out/$name.log:"
    tail -n 3 "$out/$name.log"
  fi
}

bench() { # NAME ARGUMENTS...
  measure "$1" "$limit" python3 -m lora_dist bench "${@:2}" "${inputs[@]}" --json "$out/$1.json"
}

each_case() { # PART ARGUMENTS...: for every shape and preset
  local part=$1 one shape preset
  shift
  for one in $cases; do
    shape=${one%%:*} preset=${one##*:}
    bench "$part-${shape:-own}-$preset" "$part" "$preset" ${shape:+--shape "$shape"} "$@"
  done
}

for part in $parts; do
  case $part in
    tests) measure tests 240 python3 -m pytest -m gpu -n 8 -rs --tb=short tests/launched/test_gpu*.py tests/model/kernels/test_gpu_kernels.py ;;
    train) each_case train "${train[@]}" ;;
    decode)
      limit=300 # a process for each program and round, most of whose time is its start
      bench decode decode --shape small --programs "ours, bf16" "ours, fp32" "ours, eager, bf16" \
        "generate, batch 64, fp32" "generate, batch 128, bf16"
      bench decode-medium decode --shape medium --programs "ours, bf16"
      ;;
    epochs) each_case epochs "${epochs[@]}" ;;
  esac
done
echo
python3 -m lora_dist.bench.gpu_table "$out" | tee "$out/table.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
