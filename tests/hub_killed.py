"""Trains, dies by SIGKILL inside a step, resumes; started once by test_hub_killed.py, with a process for each run.

The parent imports, the children are forked from it: each is a process of its own, and none pays for imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from contract import REQUIRED
from hub_parts import LINE_SEARCH, Honest, make, rows, weights
from transformers import TrainerCallback

import hf_optim

#: every registered name, and optimizers of others
CASES = {
    **{name: (name, REQUIRED.get(name, {})) for name in hf_optim.list_optimizers()},
    "lookahead(smaran)": ("lookahead", {"base": "smaran"}),
    "foreign search": (LINE_SEARCH, {}),
    "lbfgs": ("torch.optim:LBFGS", {"lr": 0.2, "max_iter": 2}),
}
SAVED, KILLED, TOTAL = 2, 3, 4


class Kill(TrainerCallback):
    """Dies when the optimizer's step has begun: gradients and loss are there, nothing is written."""

    def on_train_begin(self, args, state, control, **kwargs):
        inner = hf_optim.hub.feed.unwrapped(kwargs["optimizer"])

        def die(*_):
            if state.global_step == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)

        inner.register_step_pre_hook(die)


def run(folder: Path, case: str, kill: bool = False, resume: bool = False) -> dict:
    trainer = make(
        folder, Honest, n=32, dropout=0.3, norm=True, gradient_accumulation_steps=2, lr_scheduler_type="cosine",
        save_strategy="steps", save_steps=SAVED, callbacks=[Kill()] if kill else None,
    )  # fmt: skip
    name, hyper = CASES[case]
    attachment = hf_optim.attach(trainer, name, **hyper)
    trainer.train(resume_from_checkpoint=resume or None)
    assert trainer.state.global_step == TOTAL
    state = attachment.optimizer.state_dict()
    keys = ("loss", "grad_norm", "effective_lr", "learning_rate")
    return {
        "weights": weights(trainer),
        "state": {i: {k: v for k, v in s.items()} for i, s in state["state"].items()},
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
        "log": [[row[k] for k in keys] for row in rows(trainer)],
    }


def in_child(work) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def compare(folder: Path, case: str) -> None:
    whole = run(folder / "whole", case)
    resumed = run(folder / "killed", case, resume=True)
    equal = {key: same(whole[key], resumed[key]) for key in whole}
    equal["moved"] = not torch.equal(whole["weights"], torch.load(folder / "start.pt"))
    (folder / "found.json").write_text(json.dumps(equal))


def main(root: Path) -> None:
    report = {}
    for case in CASES:
        folder = root / case.replace(" ", "_")
        folder.mkdir()

        def killed(folder=folder, case=case):
            torch.save(weights(make(folder / "start", Honest, norm=True).model), folder / "start.pt")
            run(folder / "killed", case, kill=True)

        status = in_child(killed)
        code = in_child(lambda folder=folder, case=case: compare(folder, case))
        outcome = json.loads((folder / "found.json").read_text()) if code == 0 else {}
        report[case] = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "found": outcome}
    (root / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
