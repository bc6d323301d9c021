"""Runs the scripts of scripts/situations with every kind of rule, whole, resumed and in two processes, as real
processes, compares the trained weights, and writes docs/trainer/situations.md and situations.json.

    python scripts/build_situations.py                      every script whose results are not kept yet
    python scripts/build_situations.py --only glue dpo      these, anew

Whole: against the same steps in plain torch (scripts/situations/plain.py). Resumed: against the run that was not
interrupted, with dropout, bit for bit; where batches are drawn anew, against plain torch. Two processes: against the
batches of both in plain torch in one process. A script takes about half a minute on one core; results are kept six
scripts at a time, so it can be stopped in between.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "scripts" / "situations"
PAGE = ROOT / "docs" / "trainer" / "situations.md"
RESULTS = PAGE.with_suffix(".json")
sys.path.insert(0, str(HERE))

from table import KINDS, SITUATIONS, STEPS, Situation  # noqa: E402

#: difference from plain torch, as a share of how far the weights were moved, up to which both are called equal
ROUNDING = 1e-3
#: what the page says of a run that there was none of
NOT_RUN = "not run"
#: scripts that share a process in each phase
TOGETHER = 6
MODES = {"whole": "whole", "resumed": "resumed", "two": "two processes"}

HEAD = f"""# The scripts that people have

Written by `scripts/build_situations.py`, which ran every script of `scripts/situations` ({STEPS} steps on tiny models
and data made there) with one rule of each kind, as processes of their own, and compared the weights that came out. The
scripts read as those that they are like; what brings the rule is one line, `hf_optim.attach(trainer, ...)`, or
`hf_optim.create` and `hf_optim.Session` in loops of one's own.

- **whole**: equal to the same steps in plain torch over the same batches, without any of the doors: gradient, clipping,
  schedule and step written out (`scripts/situations/plain.py`).
- **resumed**: stopped at step 3 and gone on with in a new process, under dropout: equal bit for bit to the run that was
  not interrupted. "-": the script has no checkpoints. Where batches are masked or flipped anew (`mlm`,
  `image_classification`), Trainer draws the next one before it keeps the random state in a checkpoint, so that a
  resumed run sees other batches, with stock's optimizer, too: it is held against plain torch over those of both parts.
- **2 processes**: gloo, half of every batch each: equal to the batches of both in plain torch in one process; under
  LocalSGD, where each goes its own way, to two processes without the doors.

The number beside "equal" is the largest difference in a weight, as a share of the largest distance that a weight was
moved by training; above {ROUNDING:g} it would not be called equal. KTO's is more than rounding: its loss compares with
the mean divergence of both processes' batches, and plain torch here with each batch's own.

"""


def launch(names: list[str], phase: str, folder: Path) -> str:
    """Run one phase of these scripts; gives the end of its output where it failed."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if phase == "two" else []
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")},
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *many, str(HERE / "worker.py"), phase, str(folder), *names],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def weights(folder: Path) -> dict[str, Any]:
    """Every tensor that a run has saved."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {k: v.double() for file in files for k, v in load_file(file).items()}


def outcome(folder: Path, mode: str) -> dict[str, Any]:
    """What the worker said of a run: nothing where all is well."""
    file = folder / f"{mode}.json"
    return json.loads(file.read_text()) if file.is_file() else {NOT_RUN: "stopped before it"}


def compared(folder: Path, mode: str, other: str) -> dict[str, Any]:
    """The verdict on a run: equal to `other`, and how far apart."""
    for each in (mode, other):
        said = outcome(folder, each)
        if said:
            return {"status": next(iter(said)), "why": next(iter(said.values()))}
    ended, expected, start = (weights(folder / each) for each in (mode, other, "start"))
    if not ended or ended.keys() != expected.keys() or ended.keys() != start.keys():
        return {"status": "failed", "why": "the runs saved different tensors"}
    moved = max(float((expected[k] - start[k]).abs().max()) for k in start)
    apart = max(float((expected[k] - ended[k]).abs().max()) for k in start)
    if not moved > 1e-4:
        return {"status": "failed", "why": f"training moved no weight by more than {moved:g}"}
    same = apart == 0 if other == "straight" else apart <= ROUNDING * moved
    return {"status": "equal" if same else "different", "apart": apart / moved}


def logged(folder: Path, kind: str) -> str:
    """What is wrong with the log of a whole run in a Trainer; nothing if all is well."""
    file = folder / "whole" / "trainer_state.json"
    state = json.loads(file.read_text())
    rows = [row for row in state["log_history"] if "loss" in row]
    if state["global_step"] != STEPS or len(rows) != STEPS:
        return f"{state['global_step']} steps and {len(rows)} rows of the log, not {STEPS}"
    if not all("effective_lr" in row for row in rows):
        return "rows without effective_lr"
    if kind == "loss-aware" and not all(abs(r["hf_optim_loss"] - r["loss"]) <= 2e-3 * abs(r["loss"]) for r in rows):
        return f"the loss fed is not the loss logged: {[(r['hf_optim_loss'], r['loss']) for r in rows]}"
    return ""


def judge(script: Situation, folder: Path) -> dict[str, dict[str, Any]]:
    """kind -> mode -> verdict, for one script."""
    cells: dict[str, dict[str, Any]] = {}
    ends = []
    for kind in KINDS:
        here = folder / kind.replace(" ", "_")
        other = "plain_two" if script.door == "attach" or script.local else "plain"
        cell = {"whole": compared(here, "whole", "plain"), "two": compared(here, "two", other)}
        if script.checkpoint:
            cell["resumed"] = compared(here, "resumed", "plain_resumed" if script.draws else "straight")
            if cell["whole"]["status"] == "refused" and "refused" in outcome(here, "straight"):
                cell["resumed"] = cell["whole"]
        if cell["whole"]["status"] == "equal":
            ends.append(weights(here / "whole"))
            wrong = logged(here, kind) if script.door == "attach" else ""
            if wrong:
                cell["whole"] = {"status": "failed", "why": wrong}
        cells[kind] = cell
    for i, end in enumerate(ends):
        assert all(any((end[k] - two[k]).abs().max() > 1e-4 for k in end) for two in ends[:i]), "two rules are one"
    return cells


def cell(verdict: dict[str, Any] | None) -> str:
    """A verdict in the table."""
    if verdict is None:
        return "-"
    if verdict["status"] == "equal":
        return "equal" if not verdict["apart"] else f"equal ({verdict['apart']:.0e})"
    if verdict["status"] == NOT_RUN:
        return NOT_RUN
    if verdict["status"] == "different":
        return f"**different** ({verdict['apart']:.0e})"
    return "refused" if verdict["status"] == "refused" else "**failed**"


def page(results: dict[str, Any]) -> str:
    """The page of these results."""
    lines = ["| script | like | rule | whole | resumed | 2 processes |", "|---|---|---|---|---|---|"]
    words: dict[str, list[str]] = {}
    for name, script in SITUATIONS.items():
        if name not in results:
            lines.append(f"| `{name}` | {script.like} | each | not run | not run | not run |")
        for kind, verdicts in results.get(name, {}).items():
            row = " | ".join(cell(verdicts.get(mode)) for mode in ("whole", "resumed", "two"))
            lines.append(f"| `{name}` | {script.like} | {kind} | {row} |")
            for mode, verdict in verdicts.items():
                if verdict["status"] == "refused":
                    words.setdefault(verdict["why"], []).append(f"{name}, {kind}, {MODES[mode]}")
    rules = ", ".join(f"{kind}: `{json.dumps(spec)}`" for kind, spec in KINDS.items())
    said = "".join(f'\n- {"; ".join(where)}: "{why}"' for why, where in words.items())
    return (
        HEAD
        + "\n".join(lines)
        + f"\n\nThe rules: {rules}.\n"
        + (f"\nRefused, in these words:\n{said}\n" if said else "")
    )


def kept() -> dict[str, Any]:
    """script -> kind -> mode -> verdict; read anew each time, so that two of this may run beside each other."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def _unfinished(kinds: dict[str, dict[str, Any]]) -> bool:
    return any(verdict["status"] == NOT_RUN for verdicts in kinds.values() for verdict in verdicts.values())


def main() -> int:
    """Run what is asked for; 1 where something is neither equal nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SITUATIONS), help="run these anew")
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one, removed)")
    given = parser.parse_args()
    results = kept()
    names = given.only or [n for n in SITUATIONS if n not in results or _unfinished(results[n])]
    for some in (names[i : i + TOGETHER] for i in range(0, len(names), TOGETHER)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = (given.keep or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            for name in some:
                shutil.rmtree(folder / name, ignore_errors=True)
            for phase in ("first", "two", "last"):
                trouble = launch(some, phase, folder)
                if trouble:
                    print(f"{', '.join(some)}, {phase}:\n{trouble}", file=sys.stderr, flush=True)
            results = {**kept(), **{name: judge(SITUATIONS[name], folder / name) for name in some}}
        RESULTS.write_text(json.dumps({n: results[n] for n in SITUATIONS if n in results}, indent=1) + "\n")
        print(", ".join(some), flush=True)
    PAGE.write_text(page(results), encoding="utf-8")
    every = [verdict for kinds in results.values() for verdicts in kinds.values() for verdict in verdicts.values()]
    return 0 if all(verdict["status"] in ("equal", "refused") for verdict in every) else 1


if __name__ == "__main__":
    raise SystemExit(main())
