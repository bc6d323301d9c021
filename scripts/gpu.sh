#!/usr/bin/env bash
# Everything that only a machine with a GPU can show, in one JSON, and docs/gpu.md made of it.
#
#   bash scripts/gpu.sh [--only SECTION ...] [--names NAME ...] [--output docs/gpu.json]
#   bash scripts/gpu.sh --device cpu --output gpu.json     a dry run: Triton's interpreter, gloo, tiny sizes
#
# Needs Python with torch and transformers, and no network. A section that fails is written down as that.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then PYTHON=python; [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" scripts/gpu_run.py "$@"
