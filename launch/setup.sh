#!/usr/bin/env bash
# Sourced by the other scripts: creates .venv on the first call, installs this project, and activates it.
#   setup.sh [EXTRA]   EXTRA is one of pyproject's optional-dependencies, such as test or dev
# Time: some minutes the first time (torch and DeepSpeed), a second afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
# Launchers pass on the signal by which SLURM tells that the time is nearly over (sbatch --signal=USR1@120).
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# Install again only when what is asked for has changed since the last time.
wanted=$(cat pyproject.toml constraints.txt <(echo "$extra") | sha256sum | cut -d' ' -f1)
if [ "$(cat ".venv/installed-${extra:-base}" 2>/dev/null)" != "$wanted" ]; then
  echo "installing lora_dist${extra:+ with extra $extra} into .venv ..."
  pip install --quiet --constraint constraints.txt --editable ".${extra:+[$extra]}"
  echo "$wanted" >".venv/installed-${extra:-base}"
fi
