#!/usr/bin/env bash
# From nothing to a verdict on the code: environment, install, style, types, the whole suite.
# Arguments go to pytest: bash scripts/test.sh -k smaran
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
"$VENV/bin/ruff" check .
"$VENV/bin/mypy"
cores=$("$VENV/bin/python" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
# a file stays in one process, so that what its tests share is made once
"$VENV/bin/python" -m pytest -n "$cores" --dist loadfile --no-loadscope-reorder "$@"
