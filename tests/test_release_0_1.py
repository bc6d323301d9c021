"""What release 0.1 wrote is read for ever: a checkpoint of every optimizer, and a study's folder.

python tests/test_release_0_1.py        before a release: checkpoints of the names that have none yet
"""

from __future__ import annotations

import copy
import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import hf_optim
from hf_optim.study import conduct
from hf_optim.study.folder import results

FOLDER = Path(__file__).parent / "fixtures" / "release_0_1"
SAVED = torch.load(FOLDER / "checkpoints.pt", weights_only=True)


def closure(params, opt, t):
    """Step t of the runs that were saved: least squares around other random centres every time."""
    g = torch.Generator().manual_seed(100 + t)
    centres = [torch.randn(p.shape, generator=g) * 0.3 for p in params]

    def run():
        opt.zero_grad()
        loss = sum(((p - centre) ** 2).mean() for p, centre in zip(params, centres, strict=True))
        loss.backward()
        return loss

    return run


@pytest.mark.parametrize("name", sorted(SAVED))
def test_a_run_goes_on(name):
    """Three steps were made before the checkpoint; the three after it end where they ended then."""
    saved = SAVED[name]
    params = [torch.nn.Parameter(p.clone()) for p in saved["parameters"]]
    opt = hf_optim.create(name, params, **saved["arguments"])
    opt.load_state_dict(saved["state_dict"])
    for t in range(3, 6):
        opt.step(closure(params, opt, t))
    for p, after in zip(params, saved["after"], strict=True):
        torch.testing.assert_close(p.detach(), after, rtol=2e-5, atol=2e-6)


def test_no_name_of_the_release_is_missing():
    assert len(SAVED) >= 56


def test_a_study_is_read_and_reported(tmp_path, capsys):
    folder = tmp_path / "study"
    shutil.copytree(FOLDER / "study", folder)
    for row in csv.DictReader((FOLDER / "study" / "table.csv").open(encoding="utf-8")):
        values = [
            record["metrics"]["test_accuracy"]
            for run, record in results.load(folder).runs(row["task"], row["optimizer"])
            if record is not None and record["status"] == "ok"
        ]
        assert len(values) == 2 and sum(values) / 2 == pytest.approx(float(row["mean"]), abs=5e-7)
    assert conduct.remake(str(folder)) == 0
    again = {row["optimizer"]: row for row in csv.DictReader((folder / "table.csv").open(encoding="utf-8"))}
    for row in csv.DictReader((FOLDER / "study" / "table.csv").open(encoding="utf-8")):
        assert again[row["optimizer"]]["mean"] == row["mean"]
    assert (folder / "report.html").stat().st_size > 10_000
    assert json.loads((folder / "plan.json").read_text())["name"] == "smoke"


def main() -> None:
    """Three steps, the checkpoint, three steps more; what is there already stays as it was written."""
    from contract import NAMES, REQUIRED

    for name in (name for name in NAMES if name not in SAVED):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,), (1,))]
        opt = hf_optim.create(name, params, **REQUIRED.get(name, {}))
        for t in range(3):
            opt.step(closure(params, opt, t))
        state = copy.deepcopy({"state_dict": opt.state_dict(), "parameters": [p.detach() for p in params]})
        for t in range(3, 6):
            opt.step(closure(params, opt, t))
        SAVED[name] = {"arguments": REQUIRED.get(name, {}), **state, "after": [p.detach().clone() for p in params]}
    torch.save(SAVED, FOLDER / "checkpoints.pt")


if __name__ == "__main__":
    main()
