#!/usr/bin/env bash
# The tests, on any machine with Python >= 3.10. Those that need the E2E corpus and base model in ../shared, or a GPU,
# skip where these are absent. Hardware: two CPU cores. Time: under ten minutes after the install.
# Extra arguments go to pytest: `launch/test.sh -m slow` runs the long ones, `-k beam` those about the beam search.
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev
export HF_HUB_OFFLINE=1
exec python -m pytest "$@"
