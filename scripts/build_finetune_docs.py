"""Writes the section "Seen" of docs/tasks/finetune.md from runs of the task.

    for m in full lora; do for o in adamw muon amvt; do
        hf-optim train --task finetune --model $m --optimizer $o --output runs/$m-$o; done; done
    hf-optim train --task finetune --model lora --output runs/lora-preset
    python scripts/build_finetune_docs.py runs

Every number of the section comes from the records.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from build_ladder_docs import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks" / "finetune.md"
BEGIN = "## Seen\n"


def section(records: Sequence[Mapping[str, Any]]) -> str:
    """The section, of the records of runs on the same data and of the same steps."""
    shared = {(r["data"]["fingerprint"], r["time"]["steps"], r["spec"]["seed"], r["spec"]["size"]) for r in records}
    if len(shared) != 1:
        raise SystemExit("the runs differ in data, steps, seed or size: give a folder of one comparison")
    ((_, steps, seed, size),) = shared
    head = ["model", "optimizer", "trained", "test loss", "answers right", "tokens right", "bits a byte", "ms a step"]
    rows = []
    for record in sorted(records, key=lambda r: (r["spec"]["model"], r["metrics"]["test_loss"])):
        values, spec = record["metrics"], record["spec"]
        trained = sum(group["parameters"] for group in record["groups"])
        rate = f", rate {spec['optimizer']['lr']:g}" if "lr" in spec["optimizer"] else ""
        rows.append(
            [
                f"`{spec['model']}`",
                spec["optimizer"]["name"] + rate,
                f"{trained:,}",
                f"{values['test_loss']:.3f}",
                f"{values['test_accuracy']:.1%}",
                f"{values['test_token_accuracy']:.1%}",
                f"{values['test_bits_per_byte']:.2f}",
                f"{record['time']['step_ms_median']:.0f}",
            ]
        )
    note = records[0]["data"]["note"]
    return (
        f"{BEGIN}\nBy `python scripts/build_finetune_docs.py`: size `{size}`, {steps} steps, seed {seed}, "
        f"{records[0]['data']['test_samples']:,} questions of test ({note}). Rates are the optimizers' defaults where "
        f"none is named, nothing was tuned and one seed has no interval: this shows that the task works, and ranks "
        f"nothing. Times are of a machine that did other things besides.\n\n{markdown(head, rows)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of runs' folders")
    files = sorted(parser.parse_args().runs.glob("*/record.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    page, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{page.rstrip()}\n\n{section(records)}", encoding="utf-8")


if __name__ == "__main__":
    main()
