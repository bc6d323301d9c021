#!/usr/bin/env bash
# From nothing to a report: environment, install, a small study on real digits, and what to try next.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="${EXTRAS:-study}"
. scripts/environment.sh
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
FOLDER="${1:-studies/quickstart}"
"$VENV/bin/hf-optim" study quickstart --output "$FOLDER"
cat <<END

How to read it: better or worse is said where the ten pairs of runs, with equal weights and batches, decide it.
Undecided is no tie: the sentence says how much worse or better it may be, and what more seeds would find.

Next, on a model of your own (docs/notebook.md; source $VENV/bin/activate first):
  hf-optim train --task lm --model gpt2 --size smoke --data YOUR_TEXTS --optimizer smaran --output runs/mine
  cd docs/examples && hf-optim study own.yaml              # your own training function, several optimizers and seeds
  hf-optim export $FOLDER --table latex        # the table, for a paper
END
