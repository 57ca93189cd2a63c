#!/usr/bin/env bash
# Install the oldest version of each dependency that pyproject.toml admits, in a venv of its own, and run the unit tests.
# Hardware: two CPU cores, 12 GiB of disk (torch may come as a CUDA build). Time: about ten minutes.
# Leaves: .venv-oldest. PYTHON=python3.12 picks the interpreter. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"${PYTHON:-python3}" -m venv .venv-oldest
# shellcheck disable=SC1091
source .venv-oldest/bin/activate
python - >.venv-oldest/floors.txt <<'PYTHON'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    print(requirement.replace(">=", "==", 1))
PYTHON
pip install --quiet --constraint .venv-oldest/floors.txt --editable ".[test]"
pip list --format freeze
HF_HUB_OFFLINE=1 exec python -m pytest -n auto -m "not launched and not slow and not gpu" "$@"
