#!/usr/bin/env bash
# From nothing to a report: environment, install, a small study of ten optimizers on real digits.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="${EXTRAS:-study}"
. scripts/environment.sh
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
"$VENV/bin/hf-optim" study quickstart --output "${1:-studies/quickstart}"
