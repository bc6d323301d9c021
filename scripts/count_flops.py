"""Counts the operations of a forward pass of every preset that a claim's study uses, for `configs/claims/flops.json`,
from which `hf-optim reproduce` says beforehand what a study costs.

They are counted as a run counts its own (`hf_optim.experiment.flops`), on random data of the preset's form. Nothing is
downloaded: sizes of the data are those of the papers.

    python scripts/count_flops.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_optim.claims import claim
from hf_optim.experiment.flops import pass_cost, probe
from hf_optim.experiment.forecast import stand_in
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import check_run
from hf_optim.study.plan import plan

FILE = Path(__file__).resolve().parent.parent / "configs" / "claims" / "flops.json"


def counted(spec: RunSpec) -> list[float] | None:
    """[train samples, operations of one sample's forward pass] of a run; None where the task has no synthetic data."""
    task, model, preset = check_run(spec)
    data = stand_in(task, model, preset, spec.data)
    if data is None:
        return None
    cost = pass_cost(task.model(model, preset, data), probe(data.train, task.collate(data)))
    return [data.facts["train_samples"], cost.forward]


def main() -> None:
    """Every task of every study of the claims."""
    known: dict[str, list[float]] = {}
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in claim.names():
        for setting in claim.load(name).settings.values():
            for task in plan.expand(setting.study).tasks if setting.study is not None else ():
                key = f"{task['task']}/{task['model']} {task['size']}{' ' + task['data'] if task['data'] else ''}"
                if key in known:
                    continue
                values = {k: task[k] for k in ("task", "model", "size", "data")} | {
                    "options": task.get("options") or {}
                }
                counts = counted(RunSpec.from_dict({**values, "optimizer": "sgd"}))
                if counts is not None:
                    known[key] = counts
                    print(key, counts, flush=True)
    rows = ",\n".join(f" {json.dumps(key)}: [{int(n)}, {ops:.4g}]" for key, (n, ops) in sorted(known.items()))
    FILE.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
