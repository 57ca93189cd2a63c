#!/usr/bin/env bash
# Run the tests: the unit tests on all cores, then those that start processes. On any machine with
# Python >= 3.11; tests that need the E2E corpus and base model in ../shared, Chromium or a GPU skip where it is missing.
# Hardware: two CPU cores. Time: under six minutes after the install.
# Usage: bash launch/test.sh [--require shared,java,chromium]   a test that skips for want of one of these fails
#        bash launch/test.sh -k beam                            arguments go to pytest, here for both parts
#        bash launch/test.sh -m slow                            with -m only what it selects, in one part
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
export HF_HUB_OFFLINE=1
for argument in "$@"; do
  if [ "$argument" = -m ]; then exec python -m pytest "$@"; fi
done
tier() {  # pytest's exit code 5 is that nothing was selected
  local code=0
  python -m pytest "$@" || code=$?
  [ "$code" = 0 ] || [ "$code" = 5 ] || exit "$code"
}
tier -n auto --dist loadfile -m "not launched and not slow" "$@"
tier -n 3 --dist loadfile -m "launched and not slow" "$@"  # they spend a third of their time waiting
