"""What a run has spent is counted, and a budget of passes or seconds ends it and its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_optim.errors import UserError
from hf_optim.experiment import files, plain_json, resuming
from hf_optim.experiment.flops import PassCost
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.spending import Spending
from hf_optim.experiment.training import train


def run(folder: Path, optimizer: str, **overrides: float) -> tuple[dict, list[dict]]:
    spec = RunSpec("vision", model="mlp", size="smoke", optimizer={"name": optimizer}, schedule={"name": "linear"},
                   overrides={"steps": 12, **overrides})  # fmt: skip
    record = train(spec, folder, progress=False)
    return record, [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_every_row_says_what_was_spent_and_a_line_search_spends_more(tmp_path: Path) -> None:
    record, rows = run(tmp_path / "adamw", "adamw")
    assert (record["time"]["forward_passes"], record["time"]["backward_passes"]) == (12, 12)
    assert all(row["forward_passes"] == row["backward_passes"] == row["step"] for row in rows)
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(rows, rows[1:], strict=False))
    decayed, whole = sorted(group.get("weight_decay", 0.0) for group in record["groups"])
    assert (decayed, whole) == (0.0, 0.01)
    # What a reader asks of a task: how it was trained, on how much.
    told = {key: record["execution"][key] for key in ("batch_size", "schedule", "max_grad_norm", "precision")}
    assert told == {"batch_size": 64, "schedule": "linear", "max_grad_norm": 0.0, "precision": "fp32"}
    assert record["time"]["epochs"] == 12 / (512 // 64)
    splits = ("train", "validation", "test")
    assert [record["data"][f"{split}_samples"] for split in splits] == [512, 500, 512]
    record, _ = run(tmp_path / "sls", "sls")
    assert record["time"]["backward_passes"] == 12 < record["time"]["forward_passes"]


def test_a_budget_of_passes_ends_the_run_and_its_schedule(tmp_path: Path) -> None:
    record, rows = run(tmp_path, "adamw", passes=12)
    assert record["status"] == "ok" and record["time"]["steps"] == 6
    rates = [row["lr"] for row in rows if "lr" in row]
    # Twelve passes are six steps: the rate falls to zero over these, not over the twelve.
    assert rates == pytest.approx([0.001 * (1 - k / 6) for k in range(6)], rel=1e-6)
    assert rows[-1]["step"] == 6 and "validation_loss" in rows[-1]


def test_a_budget_of_seconds_ends_the_run(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "adamw", seconds=1e-6)
    assert record["time"]["steps"] == 1
    for bad in (0, -1.0):
        with pytest.raises(UserError, match="seconds must be above 0"):
            RunSpec("vision", optimizer={"name": "adamw"}, overrides={"seconds": bad})


def test_tokens_are_those_that_a_backward_pass_went_over():
    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(9, 3)

        def forward(self, input_ids=None, x=None):
            return {"logits": self.words(input_ids if x is None else x)}

    model, spending, ids = Reader(), Spending(processes=2), torch.zeros(4, 7, dtype=torch.long)
    spending.watch(model)
    spending.begin([])
    model(x=ids)["logits"].sum().backward()
    assert "tokens" not in spending.row()  # numbers are no tokens
    model(input_ids=ids)["logits"].sum().backward()
    with torch.no_grad():
        model(input_ids=ids)  # a second look trains on none
    assert spending.row()["tokens"] == 2 * 4 * 7
    resumed = Spending()
    resumed.begin([{"step": 1, **spending.row()}, {"step": 2}])
    assert resumed.row()["tokens"] == 56


@pytest.mark.parametrize("flops", [10**15 + 1, 10**19, 10**25])
def test_what_a_long_run_has_computed_can_be_read_again(flops, tmp_path):
    """A day of one large GPU is beyond 64 bits: its checkpoints and its history were refused."""
    spending = Spending(cost=PassCost(1, 2, None))
    spending.begin([{"step": 1, "forward_passes": 1, "flops": flops}])
    row = {"step": 1, "epoch": 1.0, **spending.row()}
    files.write_rows(tmp_path, "history.jsonl", [row])
    assert plain_json.parse_json((tmp_path / "history.jsonl").read_text()) == row
    assert row["flops"] == pytest.approx(flops, rel=1e-15)
    state = {"global_step": 1, "log_history": [row], "stateful_callbacks": {"TrainerControl": {}}}
    files.write_json(tmp_path, resuming.STATE, state)
    resuming._check_state(tmp_path)
