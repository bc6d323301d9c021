"""Measures how often a verdict is wrong, and writes docs/calibration.md and docs/calibration.json.

    python scripts/calibrate.py cells      # 2,000 simulated studies a cell, through the shipped path: ten minutes
    python scripts/calibrate.py profile    # AlgoPerf's published scores from its published times
    python scripts/calibrate.py page       # the page again, from the numbers in docs/calibration.json

Interrupt `cells` at any moment: the same command goes on. A cell is kept if its first twenty studies say today, to six
digits, what they said when it was measured, that is if neither the cell nor what plans and judges it became another;
--anew measures it again all the same. The tuned cells resample the real runs of scripts/calibration_bank.npz, which
`calibration_bank.py` makes.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
PAGE, DATA = ROOT / "docs" / "calibration.md", ROOT / "docs" / "calibration.json"
PUBLISHED = ROOT / "tests" / "algoperf_leaderboard.csv"
STUDIES = 2000


def measure(
    data: dict[str, Any], studies: int = STUDIES, *, only: str = "", anew: bool = False, minutes: float = math.inf
) -> None:
    """Every cell whose name holds `only`, but for those that were measured as they are now; saved after each. After
    so many `minutes` none is begun.
    """
    import calibration_cells as c
    import calibration_tuned

    from hf_optim.commands.check import Bar

    cells = {cell.name: cell for cell in (*c.cells(), *calibration_tuned.cells(calibration_tuned.Bank()))}
    before: dict[str, Any] = data.get("cells", {})
    data["cells"] = kept = {name: before[name] for name in cells if name in before}
    asked = [cell for name, cell in cells.items() if only in name]
    end, left = time.monotonic() + 60 * minutes, 0
    for number, cell in enumerate(asked, 1):
        now = {"asked": studies, "digest": c.digest(cell)}
        if not anew and now.items() <= kept.get(cell.name, {}).items():
            continue
        if time.monotonic() >= end:
            left += 1
            continue
        start = time.process_time()
        with Bar(f"cell {number} of {len(asked)}") as bar:
            kept[cell.name] = {**c.measure(cell, studies, advance=bar.advance), **now}
        data["cells"] = kept = {name: kept[name] for name in cells if name in kept}
        save(data)
        row = kept[cell.name]
        print(f"{row['hits']}/{row['studies']} ({time.process_time() - start:.0f} s) {cell.name}", flush=True)
    if left:
        print(f"{left} of {len(asked)} cells are left: the same command goes on")


def profile() -> list[dict[str, Any]]:
    """AlgoPerf's published scores beside those made from its published times."""
    import numpy as np

    from hf_optim.study.findings import profiles

    lines = [line for line in PUBLISHED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = list(csv.reader(lines))[1:]
    times = np.array([[float(x) if x else math.nan for x in row[2:]] for row in rows])
    scores = profiles.score(times)
    return [
        {"submission": row[0], "published": float(row[1]), "ours": float(score)}
        for row, score in sorted(zip(rows, scores, strict=True), key=lambda pair: -pair[1])
    ]


def within(tally: dict[str, Any], cells: int) -> bool:
    """Whether a cell keeps its promise, within a binomial bound that is corrected for the number of cells."""
    import calibration_cells as c

    if tally["promise"] == "false":
        return int(tally["hits"]) <= c.bound(tally["studies"], cells)
    return tally["promise"] != "found" or tally["studies"] - int(tally["hits"]) <= c.bound(tally["studies"], cells, 0.2)


def page(data: dict[str, Any]) -> str:
    """docs/calibration.md."""
    from calibration_promises import PROMISES

    cells = list(data.get("cells", {}).values())
    lines = [
        "# Calibration: how often a verdict is wrong",
        "",
        "A testbed that calls equal things different is worse than none, so its rules are tried where the truth is "
        "known. A study here goes the way of every study, from its YAML to its verdicts: the plan is expanded, the "
        "settings are drawn, chosen and judged, look after look, by the code that is shipped. Only the training is "
        "replaced, by numbers that are drawn, or by real runs that are drawn from a bank. All of it is made by",
        "",
        "```bash",
        "python scripts/calibration_bank.py     # the bank of real runs: minutes of one core",
        "python scripts/calibrate.py cells      # the tables below: ten minutes of one core; goes on after a kill",
        "python scripts/calibrate.py profile    # AlgoPerf's published scores",
        "```",
        "",
        "and kept in `docs/calibration.json`, with a digest of what each row's first studies say, by which a test sees "
        "that the code that judges is still the one that was measured. A row gives the share, in per cent, of studies "
        "that say at least one false thing (at most 5 are promised), or that find a planted effect (at least 80). "
        "Chance alone moves the shares; a row within its bound is one that a rule of exactly the promised level "
        "reaches in 999 of 1,000 tables as large as this. What lies beyond is in bold.",
        "",
    ]
    for title, tuned in (("1. Simulated studies", False), ("2. Tuned studies, from real runs", True)):
        some = [tally for tally in cells if tally["tuned"] == tuned]
        lines += [f"## {title}", "", *(_bank_text() if tuned else []), "| what is counted | promised | studies | % |"]
        lines += ["|---|---|---:|---:|", *(_row(tally, len(cells)) for tally in some), ""]
    lines += [
        "## What this does not cover",
        "",
        "- Two optimizers of the same mean whose metrics are skewed in very different degrees: no test of means holds "
        "its level there at ten units. A rare collapse that counts as a failure (an error, no number, no better than "
        "untrained) is told apart from the rest; one that merely loses much is part of the mean.",
        "- Satterthwaite's degrees of freedom as they stand in books: at three units they turn the promised 5 % of a "
        "score into 6, and the 0.25 % of twenty optimizers into 0.7. The score here lowers them for being estimated.",
        "- No rule can exclude a collapse in one run of ten below 29 runs: “failures 0 of 10, at most 31 %”.",
        "- Folders that were deleted and begun anew, and records that were looked at before a planned look.",
        "- Other models and data: the bank is one small network on one set of digits.",
        "",
    ]
    if "profile" in data:
        lines += _profile_text(data["profile"])
    lines += ["## Every promise, and what stands behind it", "", "| promise | where | behind it |", "|---|---|---|"]
    return "\n".join([*lines, *(_promise(*row) for row in PROMISES), ""])


def _promise(promise: str, where: str, behind: tuple[str, ...]) -> str:
    named = (f"`tests/{place}`" if "::" in place else place for place in behind)
    return f"| {promise} | {where} | {'; '.join(named)} |"


def _bank_text() -> list[str]:
    return [
        "A multilayer perceptron on 5,000 real digits, trained by AdamW and by momentum SGD at 25 rates from 1e-4 to 1 "
        "with 64 seeds each, whose initial weights and batches are the same for both. A study tunes over the rate "
        "(8 trials, judged on two seeds in each repetition, looks after 5 and 10 repetitions); each of its seeds is "
        "another real one. The last row shows what repetitions are for: there the chosen settings of one tuning are "
        "judged on ten seeds, and the verdict is read as if it spoke of the optimizers.",
        "",
    ]


def _row(tally: dict[str, Any], cells: int) -> str:
    share = f"{100 * tally['hits'] / tally['studies']:.1f}"
    promised = {"false": "at most 5", "found": "at least 80"}.get(tally["promise"], "nothing")
    return (
        f"| {tally['cell']} | {promised} | {tally['studies']:,} | {share if within(tally, cells) else f'**{share}**'} |"
    )


def _profile_text(rows: list[dict[str, Any]]) -> list[str]:
    worst = max(abs(row["ours"] - row["published"]) for row in rows)
    return [
        "## A published performance profile",
        "",
        "AlgoPerf's public self-tuning results (github.com/mlcommons/submissions_algorithms, `analysis/data/"
        "time_to_targets.csv` and `leaderboard.csv` of commit 0007993): the scores made here from the published times "
        f"to target of {len(rows)} submissions on nine workloads differ from the published by at most {worst:.0e}.",
        "",
        "| submission | published | here |",
        "|---|---:|---:|",
        *(f"| {row['submission']} | {row['published']:.4f} | {row['ours']:.4f} |" for row in rows),
        "",
    ]


def save(data: dict[str, Any]) -> None:
    """Writes docs/calibration.json, and the page from it."""
    kept = {key: data[key] for key in ("cells", "profile") if key in data}
    DATA.write_text(json.dumps(kept, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(data), encoding="utf-8")


def main() -> int:
    """Measures what the arguments say, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cells", "profile", "page"))
    parser.add_argument("--studies", type=int, default=STUDIES, help="simulated studies a cell (default: 2000)")
    parser.add_argument("--only", default="", help="cells whose name holds this text (default: all)")
    parser.add_argument("--anew", action="store_true", help="measure what is kept again, too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many (default: all)")
    options = parser.parse_args()
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if options.part == "cells":
        measure(data, options.studies, only=options.only, anew=options.anew, minutes=options.minutes)
    elif options.part == "profile":
        data["profile"] = profile()
    save(data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
