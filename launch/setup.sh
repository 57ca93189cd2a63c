#!/usr/bin/env bash
# Create .venv on the first call, install this project in it, and activate it; the other scripts source this one.
#   setup.sh [EXTRA]   EXTRA is one of pyproject's optional-dependencies, such as test or dev
# A script that sources this one always gives EXTRA, if only "": bash would pass on its own arguments otherwise.
# Time: some minutes the first time (torch and DeepSpeed), a second afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}
if [ ! -x .venv/bin/python ]; then
  if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1): lora_dist needs Python >= 3.11, name one with" \
      "PYTHON=python3.12 bash $0" >&2
    exit 2
  fi
  "${PYTHON:-python3}" -m venv .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
# Launchers forward these signals; SLURM sends USR1 shortly before the time limit (sbatch --signal=USR1@120).
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# Install again only if the dependencies or the extra have changed since the last time.
wanted=$(cat pyproject.toml constraints.txt <(echo "$extra") | sha256sum | cut -d' ' -f1)
if [ "$(cat ".venv/installed-${extra:-base}" 2>/dev/null)" != "$wanted" ]; then
  echo "installing lora_dist${extra:+ with extra $extra} into .venv ..."
  pip install --quiet --constraint constraints.txt --editable ".${extra:+[$extra]}"
  echo "$wanted" >".venv/installed-${extra:-base}"
fi
